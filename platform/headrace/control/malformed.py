"""What is no HTTP request gets a clear answer on the control port, too, and not the server's plain line."""

from __future__ import annotations

import json
import sys
from http import HTTPStatus

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from headrace.control.problems import MEDIA_TYPE
from headrace.errors import CallerError

_LINGER_S = 1.0  # who is refused may still be sending; a close at once would take the answer away with it


class ClearH11(H11Protocol):
    """uvicorn's HTTP/1.1 with problem JSON for what h11 cannot read: 431 for headers over its limit, else 400."""

    _refused = False

    def data_received(self, data: bytes) -> None:
        if not self._refused:
            super().data_received(data)

    def send_400_response(self, msg: str) -> None:
        """Answer and end the connection; uvicorn calls it while it handles the error of h11."""
        self._refused = True
        reason = sys.exception()
        status = HTTPStatus(getattr(reason, "error_status_hint", None) or 400)
        text = f"this is no request that can be read ({reason or msg}): correct it and send it on a new connection."
        problem = {**CallerError(text).problem(), "title": status.phrase, "status": status.value}
        body = json.dumps(problem, separators=(",", ":")).encode()
        headers = [("content-type", MEDIA_TYPE), ("content-length", str(len(body))), ("connection", "close")]
        for event in (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(_LINGER_S, self.transport.close)

"""The conversation between the processes of one Headrace: one asks, the other answers, over a unix socket.

It speaks the frames of `wire`: a CALL with `{"op": name}` and a JSON body, a REPLY with a JSON body, or with
`{"problem": {...}}` when the operation failed. One connection per question: they are rare, and a peer that was
restarted is found again by its path.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from headrace import errors, wire

logger = logging.getLogger(__name__)

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
_READ = 64 << 10
_LONGEST = 64 << 20  # bytes of a question or answer; the metrics of many versions are long


class PeerServer:
    """Answers questions on a unix socket until closed. A stale socket file of a dead process is replaced."""

    def __init__(self, path: Path, handlers: Mapping[str, Handler]) -> None:
        self._path = path
        self._handlers = handlers
        self._server: asyncio.Server | None = None
        self._conversations: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, str(self._path))
        self._path.chmod(0o600)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)
        for task in list(self._conversations):
            task.cancel()
        await asyncio.gather(*self._conversations, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._conversations.add(task)
        try:
            frame = await _read_frame(reader)
            writer.write(await self._answer(frame))
            await writer.drain()
        except (OSError, wire.ProtocolError, asyncio.IncompleteReadError) as error:
            logger.warning("a question on %s was cut off: %s", self._path.name, error)
        finally:
            self._conversations.discard(task)
            writer.close()

    async def _answer(self, frame: wire.Frame) -> bytes:
        op = str(wire.loads(frame.header).get("op"))
        try:
            handler = self._handlers.get(op)
            if handler is None:
                raise errors.Invalid(f"this process does not know the operation {op!r}.")
            answer = await handler(json.loads(frame.body))
        except errors.HeadraceError as error:
            return wire.encode(wire.REPLY, 1, wire.dumps({"problem": error.problem()}))
        except Exception as error:
            logger.exception("operation %s failed", op)
            problem = errors.HeadraceError(f"{op} failed: {type(error).__name__}.").problem()
            return wire.encode(wire.REPLY, 1, wire.dumps({"problem": problem}))
        return wire.encode(wire.REPLY, 1, b"", wire.dumps(answer))


async def ask(address: str, op: str, question: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """Put `question` to the process that listens on `address`; its answer.

    Raises the error that the other side answered with, or `NodeUnavailable` when it can't be reached or does not
    answer within `timeout_s`.
    """
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(address)
            try:
                writer.write(wire.encode(wire.CALL, 1, wire.dumps({"op": op}), wire.dumps(question)))
                frame = await _read_frame(reader)
            finally:
                writer.close()
    except TimeoutError:
        raise errors.NodeUnavailable(f"no answer to {op} within {timeout_s:g} s; try again.") from None
    except (OSError, wire.ProtocolError, asyncio.IncompleteReadError) as error:
        raise errors.NodeUnavailable(f"the process that answers {op} can't be reached ({error}); try again.") from None
    problem = wire.loads(frame.header).get("problem")
    if problem is not None:
        raise errors.from_problem(problem)
    answer: dict[str, Any] = json.loads(frame.body)
    return answer


async def _read_frame(reader: asyncio.StreamReader) -> wire.Frame:
    decoder = wire.Decoder(_LONGEST)
    while data := await reader.read(_READ):
        for frame in decoder.feed(data):
            return frame
    raise asyncio.IncompleteReadError(b"", None)

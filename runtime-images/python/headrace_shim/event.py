"""What a handler is called with: the event, in the shape of API Gateway's HTTP payload 2.0, and the context.

Keys that API Gateway leaves out when they are empty are always there: `cookies` [], `queryStringParameters` {},
`body` "". So `event["body"]` never fails, and code that asks with `.get` sees the same falsy value.
"""

from __future__ import annotations

import json
import time
from binascii import b2a_base64
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .call import Call

if TYPE_CHECKING:
    from .sockets import Connections

_TEXT_TYPES = ("application/json", "application/xml", "application/javascript", "application/x-www-form-urlencoded")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class BadPayload(ValueError):
    """The payload of a call is not JSON."""

    __module__ = "builtins"  # stacks show its bare name


class Function:
    """Which function this instance runs: the part of LOAD that events and contexts show."""

    __slots__ = ("arn", "concurrency", "instance", "log_group", "loop", "memory_mb", "name", "namespace", "version")

    def __init__(self, spec: Mapping[str, Any], instance: str) -> None:
        self.namespace = str(spec["namespace"])
        self.name = str(spec["function"])
        self.version = str(spec["version"])
        self.memory_mb = int(spec["memory_mb"])
        self.concurrency = int(spec["concurrency"])
        self.instance = instance
        self.loop: Any = None  # that runs the calls, once there is one
        self.arn = f"arn:headrace:function:{self.namespace}:{self.name}:{self.version}"
        self.log_group = f"/headrace/{self.namespace}/{self.name}"


class Context:
    """The second argument of a handler: who runs, for whom, for how long yet."""

    __slots__ = ("_call", "_function")

    client_context = None
    identity = None

    def __init__(self, call: Call, function: Function) -> None:
        self._call = call
        self._function = function

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until the platform answers 504 in the function's place; never below 0."""
        return max(0, int((self._call.deadline - time.monotonic()) * 1000))

    @property
    def ws(self) -> Connections:
        """The WebSockets of this function: answer, close, send to others and to groups."""
        if self._call.sockets is None:
            from .sockets import Connections  # most functions need none of it

            self._call.sockets = Connections(self._call, self._function.loop)
        return self._call.sockets

    @property
    def invocation_id(self) -> str:
        return self._call.head["id"]

    aws_request_id = invocation_id

    @property
    def namespace(self) -> str:
        return self._function.namespace

    @property
    def function_name(self) -> str:
        return self._function.name

    @property
    def function_version(self) -> str:
        return self._function.version

    @property
    def memory_limit_in_mb(self) -> int:
        return self._function.memory_mb

    @property
    def invoked_function_arn(self) -> str:
        return self._function.arn

    @property
    def log_group_name(self) -> str:
        return self._function.log_group

    @property
    def log_stream_name(self) -> str:
        return self._function.instance

    def __repr__(self) -> str:
        return f"Context({self._function.arn}, invocation {self.invocation_id})"


class Events:
    """Makes events. Keeps the time of day as text for the second it is true in."""

    def __init__(self, function: Function) -> None:
        self._name = function.name
        self._second = 0
        self._text = ""

    def event(self, head: dict[str, Any], body: bytes) -> Any:
        """The event of a call; raises `BadPayload` for a payload that is not JSON."""
        if "c" in head:
            return self._socket(head, body)
        if "m" in head:
            return self._http(head, body)
        if not body:
            return {}
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise BadPayload(f"the payload of this call is not JSON: {error}") from None

    def _socket(self, head: dict[str, Any], body: bytes) -> dict[str, Any]:
        """In the shape of API Gateway's WebSocket events."""
        kind = head.get("ev", "connect")
        request: dict[str, Any] = self._http(head, b"") if kind == "connect" else {}
        domain = request["requestContext"]["domainName"] if request else _without_port(head["host"])
        now = time.time()
        context: dict[str, Any] = {
            "apiId": self._name,
            "connectedAt": head["at"],
            "connectionId": head["c"],
            "domainName": domain,
            "eventType": kind.upper(),
            "extendedRequestId": head["id"],
            "identity": {"sourceIp": head["ip"]},
            "messageDirection": "IN",
            "requestId": head["id"],
            "requestTime": _clf_time(int(now)),
            "requestTimeEpoch": int(now * 1000),
            "routeKey": "$default" if kind == "message" else f"${kind}",
            "stage": "$default",
        }
        event: dict[str, Any] = {"requestContext": context, "body": "", "isBase64Encoded": False}
        if kind == "connect":
            context["identity"]["userAgent"] = request["requestContext"]["http"]["userAgent"]
            event.update(
                (key, request[key]) for key in ("headers", "queryStringParameters", "rawPath", "rawQueryString")
            )
        elif kind == "message":
            context["messageId"] = head["id"]
            event["body"] = body.decode("utf-8", "replace") if head["t"] else b2a_base64(body, newline=False).decode()
            event["isBase64Encoded"] = not head["t"]
        else:
            context["disconnectStatusCode"] = head["code"]
            context["disconnectReason"] = head["r"]
        return event

    def _http(self, head: dict[str, Any], body: bytes) -> dict[str, Any]:
        headers: dict[str, str] = {}
        for name, value in head["h"]:
            if name in headers:
                headers[name] += ("; " if name == "cookie" else ",") + value
            else:
                headers[name] = value
        query = head["q"]
        path = head["p"]
        cookie = headers.get("cookie")
        host = headers.get("host", "")
        domain = host if ":" not in host else _without_port(host)
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second, self._text = second, _clf_time(second)
        text, is_base64 = _body(headers.get("content-type"), body) if body else ("", False)
        return {
            "version": "2.0",
            "routeKey": "$default",
            "rawPath": path,
            "rawQueryString": query,
            "cookies": [item.strip() for item in cookie.split(";")] if cookie else [],
            "headers": headers,
            "queryStringParameters": _parameters(query) if query else {},
            "requestContext": {
                "accountId": "anonymous",
                "apiId": self._name,
                "domainName": domain,
                "domainPrefix": domain.partition(".")[0],
                "http": {
                    "method": head["m"],
                    "path": path,
                    "protocol": "HTTP/" + head["v"],
                    "sourceIp": head["ip"],
                    "userAgent": headers.get("user-agent", ""),
                },
                "requestId": head["id"],
                "routeKey": "$default",
                "stage": "$default",
                "time": self._text,
                "timeEpoch": int(now * 1000),
            },
            "body": text,
            "isBase64Encoded": is_base64,
        }


def _without_port(host: str) -> str:
    name, _, port = host.rpartition(":")
    return name if port.isdigit() else host


def _clf_time(second: int) -> str:
    at = time.gmtime(second)
    return f"{at.tm_mday:02}/{_MONTHS[at.tm_mon - 1]}/{at.tm_year}:{at.tm_hour:02}:{at.tm_min:02}:{at.tm_sec:02} +0000"


def _parameters(query: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in query.split("&"):
        if not part:
            continue
        name, _, value = part.partition("=")
        if "%" in part or "+" in part:
            name, value = _unquote(name), _unquote(value)
        found[name] = f"{found[name]},{value}" if name in found else value
    return found


def _unquote(text: str) -> str:
    from urllib.parse import unquote_plus  # most calls need none of it

    return unquote_plus(text)


def _body(content_type: str | None, body: bytes) -> tuple[str, bool]:
    if content_type is None or is_text(content_type):
        try:
            return body.decode(), False
        except UnicodeDecodeError:
            pass
    return b2a_base64(body, newline=False).decode("ascii"), True


def is_text(content_type: str) -> bool:
    """True for the media types whose bodies reach a handler as text."""
    media = content_type.partition(";")[0].strip().lower()
    return media.startswith("text/") or media in _TEXT_TYPES or media.endswith(("+json", "+xml"))

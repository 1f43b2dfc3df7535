"""Every failure of the control API as RFC 9457 problem JSON, and the same failures in its OpenAPI document.

`HeadraceError` carries the answer with it. Values that pydantic refuses become one readable 422. What nobody
expected is logged with its stack and answered with a 500 that shows nothing of the inside.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headrace.control.schemas import TEXT_PATTERN, WINDOW_PATTERN
from headrace.errors import (
    CallerError,
    ClientGone,
    Fault,
    Forbidden,
    HeadraceError,
    Invalid,
    MethodNotAllowed,
    NotFound,
    StoreUnavailable,
    TooLarge,
    Unauthenticated,
    UnsupportedMedia,
)
from headrace.model import NAME_PATTERN

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1
_MOST_SHOWN = 5  # violations in one detail; all are in `errors`, up to _MOST_LISTED
_MOST_LISTED = 50
_LONGEST_PLACE = 120
_PATTERNS = {
    NAME_PATTERN: "use 1 to 63 of a-z, 0-9 and '-', starting with a letter.",
    TEXT_PATTERN: "this holds a NUL character; remove it.",
    WINDOW_PATTERN: "write a number and s, m, h or d, such as 30m (up to 5 digits).",
}


class Violation(BaseModel):
    """One value that was refused."""

    at: str = Field(description="Where it is, such as `body.traffic.3` or `query.limit`.")
    problem: str = Field(description="What is wrong and what to do.")


class Problem(BaseModel):
    """RFC 9457. Further members name the things concerned: `version`, `generation`, `traffic`, ..."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [NotFound("function 'helo' does not exist in namespace 'default'.", function="helo").problem()]
        },
    )

    type: str = Field(description="`urn:headrace:error:` and the code.")
    title: str = Field(description="The kind of failure, for people.")
    status: int = Field(description="The HTTP status.")
    code: str = Field(description="The kind of failure, for programs; stable.")
    fault: Fault = Field(description="Who can mend it: the caller, the function's author, or the platform's keeper.")
    detail: str = Field(description="What happened and what to do about it.")
    errors: list[Violation] | None = Field(None, description="Each refused value, when `code` is `invalid`.")


def problems(*kinds: type[HeadraceError]) -> dict[int | str, dict[str, Any]]:
    """`kinds` as the `responses` of a route."""
    grouped: dict[int | str, list[type[HeadraceError]]] = {}
    for kind in kinds:
        grouped.setdefault(kind.status, []).append(kind)
    return {status: _documented(same) for status, same in sorted(grouped.items(), key=lambda item: str(item[0]))}


def _documented(kinds: Sequence[type[HeadraceError]]) -> dict[str, Any]:
    told = {kind.code: _first_line(kind) for kind in kinds}
    content: dict[str, Any] = {"schema": {"$ref": "#/components/schemas/Problem"}}
    content["examples"] = {
        kind.code: {"summary": kind.title, "value": kind(_first_line(kind)).problem()} for kind in kinds
    }
    answer: dict[str, Any] = {
        "description": " ".join(f"`{code}`: {text}" for code, text in told.items()),
        "content": {MEDIA_TYPE: content},
    }
    headers = {}
    if any(kind.retryable for kind in kinds):
        headers["Retry-After"] = {"description": "Seconds to wait before trying again.", "schema": {"type": "string"}}
    if Unauthenticated in kinds:
        headers["WWW-Authenticate"] = {"description": "Always `Bearer`.", "schema": {"type": "string"}}
    return {**answer, "headers": headers} if headers else answer


def _first_line(kind: type[HeadraceError]) -> str:
    return (kind.__doc__ or kind.title).strip().splitlines()[0]


# What can go wrong anywhere: in routes that list, that show one thing, that take a body, that change one thing.
READS = (Unauthenticated, Forbidden, Invalid, HeadraceError, StoreUnavailable)
READS_ONE = (*READS, NotFound)
WRITES = (*READS, CallerError, ClientGone, TooLarge, UnsupportedMedia)
WRITES_ONE = (*WRITES, NotFound)


def answer(error: HeadraceError, headers: Mapping[str, str] | None = None) -> Response:
    """`error` as a response."""
    body = json.dumps(error.problem(), ensure_ascii=False, default=str).encode("utf-8", "replace")
    response = Response(body, error.status, headers=dict(headers or {}), media_type=MEDIA_TYPE)
    if isinstance(error, Unauthenticated):
        response.headers["WWW-Authenticate"] = "Bearer"
    if error.retryable:
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return response


def unexpected() -> HeadraceError:
    """What a caller learns of a failure that nobody foresaw: no more than this."""
    return HeadraceError("This failed inside the platform. Try again; the log of the control process says why.")


def install(app: FastAPI) -> None:
    """Make `app` answer every failure as a problem."""
    app.add_exception_handler(HeadraceError, _on_headrace_error)
    app.add_exception_handler(RequestValidationError, _on_refused_values)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_middleware(Edge)


async def _on_headrace_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HeadraceError)
    if type(error) is HeadraceError:
        logger.error("%s %s: %s", request.method, request.url.path, error.detail)
    return answer(error)


async def _on_refused_values(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return answer(refused(error.errors()))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path[:200]
    if error.status_code == 404:
        return answer(NotFound(f"there is nothing at {path}; /docs lists every address."))
    if error.status_code == 405:
        allowed = sorted(_methods(request))
        told = ", ".join(allowed)
        return answer(MethodNotAllowed(f"{path} does not take {request.method}, but {told}."), {"Allow": told})
    logger.error("%s %s: unforeseen status %s: %s", request.method, path, error.status_code, error.detail)
    return answer(unexpected() if error.status_code >= 500 else CallerError(str(error.detail)))


def _methods(request: Request) -> set[str]:
    """Every method that the address of `request` takes: several routes may share it."""
    allowed: set[str] = set()
    for context in iter_route_contexts(request.app.routes):
        methods = context.methods or set()
        for method in methods:
            probe = {"type": "http", "method": method, "path": request.scope["path"], "headers": []}
            if context.matches(probe)[0] is Match.FULL:
                allowed.add(method)
    return allowed


def refused(violations: Sequence[Mapping[str, Any]]) -> Invalid:
    """Pydantic's `errors()` as one error that people can read."""
    listed = [{"at": _place(item["loc"]), "problem": _advice(item)} for item in violations[:_MOST_LISTED]]
    detail = " ".join(f"{item['at']}: {item['problem']}" for item in listed[:_MOST_SHOWN])
    if len(violations) > _MOST_SHOWN:
        detail += f" And {len(violations) - _MOST_SHOWN} more."
    return Invalid(detail, errors=listed)


def _place(location: Sequence[int | str]) -> str:
    return "".join(character if character.isprintable() else "?" for character in ".".join(map(str, location)))[
        :_LONGEST_PLACE
    ]


def _advice(item: Mapping[str, Any]) -> str:
    kind: str = item["type"]
    if kind == "missing":
        return "this is missing; add it."
    if kind == "extra_forbidden":
        return "this is not known here; remove it or correct its name."
    if kind == "string_pattern_mismatch" and (advice := _PATTERNS.get(item["ctx"]["pattern"])):
        return advice
    if kind == "string_unicode":
        return "this is not valid Unicode text; send UTF-8 without lone surrogates."
    text = str(item["msg"]).removeprefix("Value error, ").removesuffix(".")
    return text[:1].lower() + text[1:] + "."


class Edge:
    """The outermost layer: what escapes becomes a 500, and a connection with an unread body is closed.

    A caller that was refused before its body was read may still be sending gigabytes. Reading them to find the
    next request on the connection would be work for nothing, so the answer says `Connection: close`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception:
            if exchange.started:
                raise
            logger.exception("%s %s failed", scope["method"], scope["path"])
            await answer(unexpected())(scope, exchange.receive, exchange.send)


class _Exchange:
    """One request and its answer: has the answer begun, is the body read?"""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        names = dict(scope["headers"])
        self._unread = b"transfer-encoding" in names or names.get(b"content-length", b"0") != b"0"
        self._receive = receive
        self._send = send
        self.started = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body"):
            self._unread = False
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            if message["status"] >= 400 and self._unread:
                message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
        await self._send(message)

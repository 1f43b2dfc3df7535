"""Who calls, and may they? Checked before anything else of the request is looked at.

Every route of a noun is a `Guarded` one and declares the scope it needs with `needs(...)`; a route that does not
cannot be made at all. The scopes of a token: `admin` allows everything, `deploy` what changes functions and what
reads, `read` what reads; `invoke` is for calling functions and allows nothing here. A token may be limited to
namespaces: `Namespace` checks the one a request is about, `everywhere` refuses limited tokens for what shows or
changes more than one.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Annotated, Any

from fastapi import Depends, Query, Request, Response, params
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer

from headrace.control import reading
from headrace.control.services import Services, services_of
from headrace.errors import Forbidden, Invalid, Unauthenticated, UnsupportedMedia
from headrace.model import DEFAULT_NAMESPACE, NAME_PATTERN, Scope, Token

GRANTS: Mapping[Scope, frozenset[Scope]] = {
    "admin": frozenset({"admin", "deploy", "read"}),
    "deploy": frozenset({"deploy", "read"}),
    "read": frozenset({"read"}),
    "invoke": frozenset(),
}
_LONGEST_SECRET = 200

bearer = HTTPBearer(
    scheme_name="token",
    description="`Authorization: Bearer <token>`. The first one is in `HOME/admin-token`.",
    auto_error=False,
)


def needs(scope: Scope) -> params.Security:
    """Declare, in `dependencies=[...]` of a route, the scope that it needs."""
    return params.Security(dependency=bearer, scopes=[scope])


async def authenticate(request: Request, services: Services) -> Token:
    """The token of `request`; raises `Unauthenticated`."""
    headers = request.headers.getlist("authorization")
    if not headers:
        raise Unauthenticated("this needs a token: send the header 'Authorization: Bearer <token>'.")
    scheme, _, secret = headers[0].partition(" ")
    secret = secret.strip()
    if len(headers) > 1 or scheme.lower() != "bearer" or not 0 < len(secret) <= _LONGEST_SECRET:
        raise Unauthenticated("the Authorization header can't be read: send one, as 'Bearer <token>'.")
    token = await services.tokens.find(secret)
    if token is None:
        raise Unauthenticated("the token is unknown, expired or was deleted: use another one.")
    return token


def authorize(token: Token, scope: Scope) -> None:
    """Raise `Forbidden` unless `token` allows what needs `scope`."""
    if not any(scope in GRANTS[held] for held in token.scopes):
        held = ", ".join(token.scopes)
        raise Forbidden(f"this needs the scope '{scope}', and token '{token.name}' has {held}: use another token.")


class Guarded(APIRoute):
    """A route that checks token, scope, query names and body before its endpoint is asked."""

    needs: Scope

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        self.needs = _declared(path, options.get("dependencies") or ())
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        known = _query_names(self.dependant)

        async def guarded(request: Request) -> Response:
            token = await authenticate(request, services_of(request))
            authorize(token, self.needs)
            request.state.token = token
            _check_query(request, known)
            return await handle(await _received(request) if self.body_field else request)

        return guarded


def _declared(path: str, dependencies: Sequence[params.Depends]) -> Scope:
    for dependency in dependencies:
        if isinstance(dependency, params.Security) and dependency.dependency is bearer and dependency.scopes:
            scope: Scope = dependency.scopes[0]  # type: ignore[assignment]
            return scope
    raise TypeError(f"the route {path} does not say which scope it needs: add dependencies=[needs(...)]")


def _query_names(dependant: Dependant) -> frozenset[str]:
    own = {field.alias for field in dependant.query_params}
    return frozenset(own.union(*(_query_names(below) for below in dependant.dependencies)))


def _check_query(request: Request, known: frozenset[str]) -> None:
    given = [name for name, _ in request.query_params.multi_items()]
    for name in given:
        if name not in known:
            told = f"known are {', '.join(sorted(known))}" if known else "there are none"
            raise Invalid(f"query.{name[:80]}: this is not known here; remove it or correct its name ({told}).")
        if given.count(name) > 1:
            raise Invalid(f"query.{name}: this is given more than once; keep one.")


async def _received(request: Request) -> Request:
    """`request` with its JSON body read and checked."""
    raw = await reading.whole(request, reading.JSON_LIMIT)
    if raw and not reading.is_json(reading.media_type(request)[0]):
        raise UnsupportedMedia("send the body as JSON, with the header 'Content-Type: application/json'.")
    return _Received(request, raw)


class _Received(Request):
    """A request whose body is here already."""

    def __init__(self, request: Request, raw: bytes) -> None:
        super().__init__(request.scope, request.receive)
        self._raw = raw
        self._value = reading.parse_json(raw) if raw else None

    async def body(self) -> bytes:
        return self._raw

    async def json(self) -> Any:
        return self._value


async def caller(request: Request) -> Token:
    token: Token = request.state.token
    return token


def may_see(token: Token, namespace: str) -> bool:
    return not token.namespaces or namespace in token.namespaces


def check_namespace(token: Token, namespace: str) -> None:
    """Raise `Forbidden` when `token` is limited to other namespaces."""
    if not may_see(token, namespace):
        limit = ", ".join(token.namespaces)
        raise Forbidden(f"token '{token.name}' is limited to {limit}, and this is about namespace '{namespace}'.")


async def _namespace(
    request: Request,
    namespace: Annotated[
        str, Query(pattern=NAME_PATTERN, description="Namespace of the function.", examples=[DEFAULT_NAMESPACE])
    ] = DEFAULT_NAMESPACE,
) -> str:
    check_namespace(request.state.token, namespace)
    return namespace


async def everywhere(request: Request) -> None:
    """Refuse tokens that are limited to namespaces."""
    token: Token = request.state.token
    if token.namespaces:
        limit = ", ".join(token.namespaces)
        raise Forbidden(f"this is about all namespaces, and token '{token.name}' is limited to {limit}.")


Caller = Annotated[Token, Depends(caller)]
Namespace = Annotated[str, Depends(_namespace)]

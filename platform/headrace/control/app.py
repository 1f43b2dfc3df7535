"""The control API: one router per noun, one guard, one way to fail, one document that says it all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from headrace import runtimes
from headrace.control import (
    aliases,
    docs,
    functions,
    invocations,
    logs,
    metrics,
    problems,
    system,
    tokens,
    uploads,
    versions,
)
from headrace.control.services import Services
from headrace.model import IMAGE_RUNTIME

PREFIX = "/v1"
_REF = "#/components/schemas/{model}"
_DESCRIPTION = """\
Headrace runs functions: upload code, publish a version, call it over HTTP, roll back in milliseconds.

Every call but the health checks needs the header `Authorization: Bearer <token>`; the first token is in the file \
`admin-token` of Headrace's home. Names match `[a-z][a-z0-9-]{0,62}`. `namespace` defaults to `default`.

Failures are problem JSON (RFC 9457): `code` is for programs, `fault` says who can mend it (`caller`, `function` or \
`platform`), `detail` says what happened and what to do. Lists take `limit` and `cursor` and answer `items` and \
`next`, the cursor of the page that follows, null at the end. Times are RFC 3339 in UTC.

Functions are called at another port: `ANY /fn/<name>[@<version or alias>][/<path>]`, with `<name>.<namespace>` \
outside `default`; WebSockets at the same URLs."""
_TAGS = {
    "functions": "Names with settings. A function exists from its first upload, or from the moment it is put here.",
    "versions": "Immutable code and config under a number. Upload, wait for `ready`, publish.",
    "aliases": "Movable pointers to versions. Each move is guarded by a generation and kept in a history.",
    "invocations": "Every call that was served, and what came of it.",
    "logs": "What functions printed and logged.",
    "metrics": "Counts and durations, per function and for Prometheus.",
    "tokens": "Who may do what. All of it needs the scope `admin`, in a token that is not limited to namespaces.",
    "system": "The platform itself.",
}
# Models that routes take or give without the framework's help.
_MODELS: list[type[BaseModel]] = [problems.Problem, versions.VersionIn, versions.VersionForm]
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


class ControlApi(FastAPI):
    """FastAPI with the schemas straight from the models: its own lack what is read by hand, and every null."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            document = super().openapi()
            models = {*_MODELS, *_models_of(self)}
            _, defined = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
            document["components"]["schemas"] = dict(sorted(defined["$defs"].items()))
            _close_patterns(document)
            _name_runtimes(document)
        assert self.openapi_schema is not None
        return self.openapi_schema


def create_app(services: Services) -> FastAPI:
    """The ASGI application that serves the control API with `services`."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        uploads.sweep(services.settings)
        yield

    app = ControlApi(
        title="Headrace",
        version=version("headrace"),
        description=_DESCRIPTION,
        openapi_tags=[{"name": name, "description": about} for name, about in _TAGS.items()],
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        separate_input_output_schemas=False,
        generate_unique_id_function=_operation_id,
        lifespan=lifespan,
    )
    app.state.services = services
    problems.install(app)
    for noun in (functions, versions, aliases, invocations, logs, metrics, tokens, system):
        app.include_router(noun.router, prefix=PREFIX)
    app.include_router(system.open_router, prefix=PREFIX)
    app.include_router(system.open_router, include_in_schema=False)
    app.include_router(_documents())
    return app


def _models_of(app: FastAPI) -> Iterator[type[BaseModel]]:
    for route in iter_route_contexts(app.routes):
        if isinstance(route.original_route, APIRoute):
            declared = [route.response_model, *(answer.get("model") for answer in route.responses.values())]
            body = route.original_route.body_field
            declared.append(body.field_info.annotation if body else None)
            yield from (model for model in declared if isinstance(model, type) and issubclass(model, BaseModel))


def _name_runtimes(document: dict[str, Any]) -> None:
    """Which runtimes there are is known by their folders, not by a type."""
    runtime = document["components"]["schemas"]["VersionConfig"]["properties"]["runtime"]
    runtime.pop("pattern", None)
    runtime["enum"] = [*runtimes.names(), IMAGE_RUNTIME]


def _close_patterns(schema: Any) -> None:
    """Say what pydantic enforces but leaves out: where keys follow a pattern, others are refused."""
    if isinstance(schema, dict):
        if "patternProperties" in schema:
            schema.setdefault("additionalProperties", False)
        for below in schema.values():
            _close_patterns(below)
    elif isinstance(schema, list):
        for below in schema:
            _close_patterns(below)


def _operation_id(route: APIRoute) -> str:
    return route.name


def _documents() -> APIRouter:
    """The pages that describe the API; they hold no data and need no token."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def front() -> Response:
        return RedirectResponse("/docs")

    @router.get("/docs")
    async def page(request: Request) -> Response:
        base = str(request.base_url).rstrip("/")
        return HTMLResponse(docs.page(request.app.openapi(), base), headers=_PAGE_HEADERS)

    @router.get("/openapi.json")
    @router.get(f"{PREFIX}/openapi.json")
    async def document(request: Request) -> Response:
        return JSONResponse(request.app.openapi())

    return router

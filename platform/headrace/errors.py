"""Every failure the platform reports, as one small tree.

An error says whose fault it is (`fault`), which HTTP status carries it (`status`), a stable machine name
(`code`), whether the same request may succeed later (`retryable`), and in `detail` what happened and what to
do about it. `ids` names the things concerned (function, version, invocation, ...). The control API and the
gateway render it as RFC 9457 problem JSON; the CLI prints `detail`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

Fault = Literal["caller", "function", "platform"]


class HeadraceError(Exception):
    """Something failed inside the platform."""

    code: ClassVar[str] = "internal"
    fault: ClassVar[Fault] = "platform"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str, **ids: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.ids = ids

    def problem(self) -> dict[str, Any]:
        """The RFC 9457 body: `type`, `title`, `status`, `detail`, `code`, `fault` and the ids concerned."""
        return {
            "type": f"urn:headrace:error:{self.code}",
            "title": self.title,
            "status": self.status,
            "code": self.code,
            "fault": self.fault,
            "detail": self.detail,
            **self.ids,
        }


class CallerError(HeadraceError):
    """The request cannot be served as it was sent."""

    code, fault, status, title = "bad_request", "caller", 400, "Bad request"


class Invalid(CallerError):
    """A value is malformed or out of range."""

    code, status, title = "invalid", 422, "Invalid value"


class SettingsError(CallerError):
    """A setting is unknown or malformed; the detail names it, the problem and the fix."""

    code, title = "settings", "Bad setting"


class BundleRejected(CallerError):
    """The bundle cannot become a version: what is wrong with it, and where."""

    code, status, title = "bundle_rejected", 422, "Bundle rejected"


class Unauthenticated(CallerError):
    """A valid token is needed."""

    code, status, title = "unauthenticated", 401, "Authentication needed"


class Forbidden(CallerError):
    """The token is valid but does not allow this."""

    code, status, title = "forbidden", 403, "Not allowed"


class NotFound(CallerError):
    """No such thing."""

    code, status, title = "not_found", 404, "Not found"


class MethodNotAllowed(CallerError):
    """This address exists but does not take this method."""

    code, status, title = "method_not_allowed", 405, "Method not allowed"


class Conflict(CallerError):
    """The state has moved on, or forbids this; `ids` carries the current state."""

    code, status, title = "conflict", 409, "Conflict"


class RequestTimeout(CallerError):
    """The request's body did not arrive in time."""

    code, status, title = "request_timeout", 408, "Request not finished in time"


class TooLarge(CallerError):
    """The body is over the limit."""

    code, status, title = "too_large", 413, "Too large"


class HeadersTooLarge(CallerError):
    """The request's headers are over the limit."""

    code, status, title = "headers_too_large", 431, "Headers too large"


class UpgradeRequired(CallerError):
    """This address speaks another version of the protocol."""

    code, status, title = "upgrade_required", 426, "Upgrade required"


class UnsupportedMedia(CallerError):
    """The body is of a type that cannot be read here."""

    code, status, title = "unsupported_media_type", 415, "Unsupported media type"


class ClientGone(CallerError):
    """The caller went away before the answer, or never finished its request."""

    code, status, title = "client_gone", 400, "Request not finished"


class QueueFull(CallerError):
    """More calls wait for this version than its `queue` allows."""

    code, status, title, retryable = "queue_full", 429, "Queue full", True


class NoCapacity(HeadraceError):
    """No instance could take the call in time."""

    code, status, title, retryable = "no_capacity", 503, "No capacity", True


class EngineUnavailable(HeadraceError):
    """The container engine does not answer or refuses to work."""

    code, status, title, retryable = "engine_unavailable", 503, "Container engine unavailable", True


class StoreUnavailable(HeadraceError):
    """The database does not answer, or can't be written."""

    code, status, title, retryable = "store_unavailable", 503, "Database unavailable", True


class NodeUnavailable(HeadraceError):
    """No node can do this now."""

    code, status, title, retryable = "node_unavailable", 503, "Node unavailable", True


class FunctionError(HeadraceError):
    """The function's own code failed."""

    code, fault, status, title = "function_error", "function", 500, "The function raised an error"


class LoadFailed(FunctionError):
    """The version's code could not be loaded."""

    code, title = "load_failed", "The function could not be loaded"


class BuildFailed(FunctionError):
    """The version's dependencies could not be installed."""

    code, title = "build_failed", "Build failed"


class InstanceDied(FunctionError):
    """The instance running the call died."""

    code, status, title = "instance_died", 502, "The instance died"


class NotSent(InstanceDied):
    """The instance was gone before anything of the call was written to it: another one may take the call."""


class OutOfMemory(InstanceDied):
    """The instance was killed for using more than its memory limit."""

    code, title = "out_of_memory", "The instance ran out of memory"


class TimedOut(FunctionError):
    """The call took longer than the version's `timeout_s`."""

    code, status, title = "timeout", 504, "Time is up"


def from_problem(problem: dict[str, Any]) -> HeadraceError:
    """The error that `HeadraceError.problem` was made from; a plain `HeadraceError` for an unknown code."""
    known = {"type", "title", "status", "code", "fault", "detail"}
    ids = {name: value for name, value in problem.items() if name not in known}
    kind = _by_code(HeadraceError).get(str(problem.get("code")), HeadraceError)
    return kind(str(problem.get("detail", "")), **ids)


def _by_code(root: type[HeadraceError]) -> dict[str, type[HeadraceError]]:
    found = {root.code: root}
    for kind in root.__subclasses__():
        found.update(_by_code(kind))
    return found

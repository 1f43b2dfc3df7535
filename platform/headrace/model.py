"""The words of the platform as values: no I/O, no state. Times are seconds since the epoch (float, UTC)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationInfo, field_validator, model_validator

from headrace.errors import Invalid

NAME_PATTERN = r"^[a-z][a-z0-9-]{0,62}$"
HANDLER_PATTERN = r"^[A-Za-z_][A-Za-z0-9_./-]{0,190}\.[A-Za-z_][A-Za-z0-9_]{0,62}$"  # ASCII: \w is too big a class
ENV_NAME_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]{0,127}$"
LIVE = "live"
DEFAULT_NAMESPACE = "default"
DEFAULT_RUNTIME = "python"
DEFAULT_HANDLER = "handler.handler"
IMAGE_RUNTIME = "image"  # of versions that bring an image: named in `image`, or built from the bundle's Dockerfile
DEFAULT_PORT = 8080  # on which such an image serves
MOST_ENV = 256 << 10  # bytes of a version's environment; it travels in one frame
SLOT_S = 10.0  # seconds of one MetricSlot

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
_IMAGE_WORD = "[a-z0-9]+(?:[._-]+[a-z0-9]+)*"
IMAGE_PATTERN = (
    r"^(?:sha256:[0-9a-f]{64}"  # an id; else registry, path, tag, digest
    rf"|(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]{{1,5}})?/)?{_IMAGE_WORD}(?:/{_IMAGE_WORD})*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?)$"
)
ImageName = Annotated[str, StringConstraints(pattern=IMAGE_PATTERN, max_length=512)]
UrlPath = Annotated[str, StringConstraints(pattern=r"^/[!-~]{0,1023}$")]
EnvName = Annotated[str, StringConstraints(pattern=ENV_NAME_PATTERN)]
EnvText = Annotated[
    str, StringConstraints(max_length=32_768), Field(json_schema_extra={"pattern": r"^[^\x00]*$"})  # checked below
]
Runtime = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]  # a folder of runtime-images
Kind = Literal["auto", "handler", "asgi"]
Network = Literal["egress", "none"]
Access = Literal["public", "private"]
Balancing = Literal["least-loaded", "round-robin", "random", "weighted", "hash"]
Scope = Literal["admin", "deploy", "read", "invoke"]

_NAME = re.compile(NAME_PATTERN)


def check_name(value: str, what: str = "name") -> str:
    """Return `value` when it is a legal name; raise `Invalid` saying what a legal one looks like."""
    if not _NAME.fullmatch(value) or value.endswith("\n"):
        raise Invalid(f"{what} {value[:80]!r} is not valid: use 1 to 63 of a-z, 0-9 and '-', starting with a letter.")
    return value


class VersionState(StrEnum):
    """PENDING -> BUILDING -> PROBING -> READY | FAILED; READY -> RETIRED when deleted while in use."""

    PENDING = "pending"
    BUILDING = "building"
    PROBING = "probing"
    READY = "ready"
    FAILED = "failed"
    RETIRED = "retired"


class VersionConfig(BaseModel):
    """How a version runs. Part of the version: a change of config is a new version."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [
                {"handler": "handler.handler", "memory_mb": 256, "timeout_s": 10},
                {"image": "registry.example/shop:4", "ready_path": "/healthz", "memory_mb": 256},
            ]
        },
    )

    runtime: Runtime = Field(DEFAULT_RUNTIME, description="Language runtime: one of the installation's.")
    handler: Annotated[str, StringConstraints(pattern=HANDLER_PATTERN)] = Field(
        DEFAULT_HANDLER, description="`module.attribute` of the handler or ASGI application."
    )
    kind: Kind = Field("auto", description="`handler`, `asgi`, or `auto`: found from the code when it loads.")
    memory_mb: int = Field(128, ge=32, le=65_536, description="Memory limit of one instance, MiB; no swap.")
    cpus: float = Field(1.0, ge=0.05, le=64, description="CPU limit of one instance, in cores.")
    timeout_s: float = Field(30.0, gt=0, le=900, description="Longest run of one call, seconds.")
    concurrency: int = Field(10, ge=1, le=1000, description="Calls at once in one instance.")
    min_instances: int = Field(0, ge=0, le=100, description="Instances kept ready without any call.")
    max_instances: int = Field(10, ge=1, le=1000, description="Most instances of this version on a node.")
    idle_s: float = Field(300.0, ge=1, le=86_400, description="An instance without calls stops after this, seconds.")
    queue: int = Field(100, ge=0, le=100_000, description="Calls that may wait; the next one gets 429.")
    env: dict[EnvName, EnvText] = Field(
        default_factory=dict, max_length=256, description="Environment of the function."
    )
    secrets: list[Name] = Field(default_factory=list, max_length=0, description="Names of secrets; none exist yet.")
    network: Network = Field("egress", description="`egress`: may dial out; `none`: no network at all.")
    image: ImageName | None = Field(
        None, description="An OCI image that serves HTTP on `$PORT`; without it, runtime `image` builds the Dockerfile."
    )
    port: int | None = Field(None, ge=1, le=65_535, description="Port that an image serves on; 8080 when left out.")
    ready_path: UrlPath | None = Field(
        None, description="Path that an image answers with 200 to 399 once it is ready; else an open port is enough."
    )
    start_timeout_s: float | None = Field(
        None, gt=0, le=40, description="How long an image may take until it is ready, seconds; 30 when left out."
    )

    @model_validator(mode="before")
    @classmethod
    def _an_image_is_a_runtime(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("image") is not None and "runtime" not in values:
            return {**values, "runtime": IMAGE_RUNTIME}
        return values

    @field_validator("handler", "kind")
    @classmethod
    def _images_have_none(cls, value: str, info: ValidationInfo) -> str:
        if info.data.get("runtime") == IMAGE_RUNTIME and value not in (DEFAULT_HANDLER, "auto"):
            raise ValueError("an image serves HTTP by itself and has none; leave it out")
        return value

    @field_validator("image", "port", "ready_path", "start_timeout_s")
    @classmethod
    def _for_images(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and info.data.get("runtime") != IMAGE_RUNTIME:
            raise ValueError(f"this is for images only; leave it out, or set runtime to {IMAGE_RUNTIME!r}")
        return value

    @property
    def pinned(self) -> bool:
        """False when another deploy of the same may run something else: a tag can be moved."""
        return self.image is None or "sha256:" in self.image

    @field_validator("secrets", mode="before")
    @classmethod
    def _no_secrets_exist(cls, value: Any) -> Any:
        if value:
            raise ValueError("this release keeps no secrets yet; leave it out and use env")
        return value

    @field_validator("env")
    @classmethod
    def _env_is_usable(cls, value: dict[str, str]) -> dict[str, str]:
        size = sum(len(name) + len(text.encode("utf-8", "surrogatepass")) for name, text in value.items())
        if size > MOST_ENV:
            raise ValueError(
                f"it takes {size} bytes and may take {MOST_ENV}; put large values into files of the bundle"
            )
        for name, text in value.items():
            if "\0" in text:
                raise ValueError(f"{name} holds a NUL byte, which no environment variable can carry")
            if name.startswith("HEADRACE_"):
                raise ValueError(f"{name}: names starting with HEADRACE_ are the platform's own; rename it")
        return value


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A part of a list; `next` is the cursor of the part that follows, None at the end."""

    items: list[T]
    next: str | None


@dataclass(frozen=True, slots=True)
class Function:
    """A name inside a namespace, with settings."""

    id: int
    namespace: str
    name: str
    description: str
    access: Access
    balancing: Balancing
    sticky: bool
    labels: dict[str, str]
    created_at: float
    updated_at: float


@dataclass(frozen=True, slots=True)
class Version:
    """Immutable code and config under a number; only `state`, `reason` and `built_at` move, forward."""

    id: int
    function_id: int
    namespace: str
    function: str
    number: int
    state: VersionState
    reason: str | None
    digest: str  # sha256 hex of the canonical bundle
    layer: str | None  # digest of the dependency layer, None without dependencies
    config: VersionConfig
    size_bytes: int  # unpacked
    created_at: float
    built_at: float | None

    def __str__(self) -> str:
        return f"{self.namespace}/{self.function}@{self.number}"


@dataclass(frozen=True, slots=True)
class Alias:
    """A movable pointer. `traffic` maps version number to a whole weight; weights sum to 100."""

    function_id: int
    namespace: str
    function: str
    name: str
    generation: int
    traffic: dict[int, int]
    moved_at: float


@dataclass(frozen=True, slots=True)
class Move:
    """One audit row of an alias: who moved it, when, how, from where to where. Deleting is `traffic == {}`."""

    alias: str
    generation: int
    action: Literal["publish", "rollback", "traffic", "delete"]
    actor: str
    at: float
    traffic: dict[int, int]
    previous: dict[int, int]


@dataclass(frozen=True, slots=True)
class Target:
    """Everything a node needs to route to one function: its settings, aliases and runnable versions."""

    function: Function
    aliases: dict[str, dict[int, int]]
    versions: dict[int, Version]
    revision: int

    @property
    def in_traffic(self) -> set[int]:
        """Numbers of the versions that an alias leads to."""
        return {number for traffic in self.aliases.values() for number in traffic}


Outcome = Literal[
    "ok", "function_error", "timeout", "instance_died", "out_of_memory", "client_gone", "rejected", "platform_error"
]


@dataclass(frozen=True, slots=True)
class Invocation:
    """One finished call. Durations in milliseconds; `start_ms` is 0 for a warm call."""

    id: str
    namespace: str
    function: str
    version: int
    instance: str
    node: str
    started_at: float
    queue_ms: float
    start_ms: float
    run_ms: float
    status: int
    outcome: Outcome
    method: str
    path: str
    bytes_in: int
    bytes_out: int
    error: dict[str, Any] | None = None  # {"type", "message", "stack": str}

    @property
    def duration_ms(self) -> float:
        return self.queue_ms + self.start_ms + self.run_ms


@dataclass(frozen=True, slots=True)
class MetricSlot:
    """What one node saw of one version during `SLOT_S` seconds from `at`. Slots of the same key add up."""

    at: float  # start of the slot, a multiple of SLOT_S
    node: str
    namespace: str
    function: str
    version: int
    outcomes: dict[str, int]  # Outcome -> count
    cold_starts: int
    throttled: int
    histogram: dict[int, int]  # bucket of telemetry.metrics.Histogram -> count of durations
    max_ms: float
    concurrency: int  # most calls at once
    instances: int  # most instances at once


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line a function wrote. `invocation` is empty for what it wrote outside any call (while loading)."""

    at: float
    namespace: str
    function: str
    version: int
    invocation: str
    instance: str
    stream: Literal["stdout", "stderr", "log", "platform"]
    level: str  # DEBUG INFO WARNING ERROR CRITICAL
    text: str
    seq: int = 0  # position in the log, set by the store; a cursor for readers


@dataclass(frozen=True, slots=True)
class Token:
    """Who may do what. The secret itself is never stored, only its SHA-256."""

    id: int
    name: str
    scopes: tuple[Scope, ...]
    namespaces: tuple[str, ...]  # empty: all
    created_at: float
    expires_at: float | None


@dataclass(frozen=True, slots=True)
class Node:
    """A node process as it last reported itself."""

    id: str
    address: str  # where control and worker reach it: path of its unix socket
    url: str  # where functions are called
    started_at: float
    seen_at: float
    info: dict[str, Any] = field(default_factory=dict)  # instance counts per version, recovery report


class InstanceState(StrEnum):
    """States only grow, in this order; FAILED and LOST are ends beside STOPPED. WAITING: generic, for a version."""

    REQUESTED = "requested"
    CREATING = "creating"
    STARTING = "starting"
    WAITING = "waiting"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"
    LOST = "lost"


def check_traffic(traffic: dict[int, int]) -> dict[int, int]:
    """Return `traffic` without zero weights, by version; raise `Invalid` unless whole weights sum to 100."""
    if not traffic:
        raise Invalid('traffic is empty: give weights by version, for example {"3": 100}.')
    for number, weight in traffic.items():
        if number < 1 or not 0 <= weight <= 100:
            raise Invalid(f"traffic {number}={weight}: versions start at 1 and weights are whole, 0 to 100.")
    total = sum(traffic.values())
    if total != 100:
        raise Invalid(f"traffic weights sum to {total}: make them sum to 100.")
    return {number: weight for number, weight in sorted(traffic.items()) if weight}

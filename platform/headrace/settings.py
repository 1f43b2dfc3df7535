"""Every knob, read once from the environment into one frozen value. Nothing else reads the environment."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from headrace.errors import SettingsError

PREFIX = "HEADRACE_"
_LONGEST_RUN_DIR = 70  # a unix socket path holds 107 bytes, and `i/<instance>/s` comes after it


class Settings(BaseModel):
    """Settings of every process. Each field is `HEADRACE_<NAME>` in the environment."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    home: Path = Field(default_factory=lambda: Path.home() / ".headrace", description="All state lives here.")
    database_url: str = Field("", description="SQLAlchemy URL of PostgreSQL; empty: SQLite in HOME.")
    redis_url: str = Field("", description="redis://...; empty: none, the database's rows are polled slowly.")
    control_url: str = Field("", description="Where the CLI finds the control API; empty: HOST and CONTROL_PORT.")
    token: str = Field("", repr=False, description="Token of the CLI; empty: HOME/admin-token.")
    host: str = Field("127.0.0.1", description="Address on which both ports listen.")
    port: int = Field(7780, ge=1, le=65_535, description="Port on which functions are called.")
    control_port: int = Field(7700, ge=1, le=65_535, description="Port of the control API.")
    driver: Literal["docker", "process"] = Field("docker", description="`process` has no isolation: development only.")
    engine_socket: str = Field("/var/run/docker.sock", description="Unix socket of the Docker engine.")
    runtimes: dict[str, str] = Field(
        default_factory=dict, repr=False, description="What the runtimes declare: base images and package indexes."
    )
    build_ca_bundle: str = Field("", description="CA bundle that builds trust; empty: the host's own, if found.")
    max_body_mb: int = Field(32, ge=1, le=1024, description="Longest request body, MiB.")
    drain_s: float = Field(30.0, ge=0, le=900, description="A stopping node waits this long for running calls.")
    retention_days: float = Field(7.0, gt=0, le=3650, description="Invocations and logs are kept this long.")
    retention_mb: int = Field(1024, ge=16, le=1_000_000, description="Invocations and logs take up to this, MiB.")
    prewarm: int = Field(2, ge=0, le=100, description="Generic instances of each kind that wait for a cold call.")
    base_domain: str = Field("", description="Functions also answer as <name>.<base domain>; empty: paths only.")
    instance_memory_mb: int = Field(
        0, ge=0, description="All instances of a node together, MiB; 0: three quarters of the machine."
    )

    @field_validator("home")
    @classmethod
    def _home_is_absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("database_url")
    @classmethod
    def _database_is_known(cls, value: str) -> str:
        scheme, separator, rest = value.partition("://")
        if not value:
            return value
        drivers = {
            "postgres": "postgresql+asyncpg",
            "postgresql": "postgresql+asyncpg",
            "postgresql+asyncpg": "postgresql+asyncpg",
            "sqlite": "sqlite+aiosqlite",
            "sqlite+aiosqlite": "sqlite+aiosqlite",
        }
        if not separator or scheme not in drivers:
            raise ValueError("write it as postgresql://user:password@host/database, or leave it out for SQLite")
        return f"{drivers[scheme]}://{rest}"

    @field_validator("redis_url", "control_url")
    @classmethod
    def _is_url(cls, value: str) -> str:
        if value and "://" not in value:
            raise ValueError("write it as a URL, with its scheme")
        return value.rstrip("/")

    @property
    def database(self) -> str:
        """The SQLAlchemy URL in force."""
        return self.database_url or f"sqlite+aiosqlite:///{self.home / 'headrace.db'}"

    @property
    def control(self) -> str:
        """The base URL of the control API, without `/v1`."""
        return self.control_url or f"http://{_dialable(self.host)}:{self.control_port}"

    @property
    def functions(self) -> str:
        """The base URL of function calls on this machine."""
        return f"http://{_dialable(self.host)}:{self.port}"

    @property
    def loopback(self) -> bool:
        return self.host in {"localhost", "::1"} or self.host.startswith("127.")

    @property
    def run_dir(self) -> Path:
        """Sockets live here: HOME/run, or a short path of its own when HOME is too deep for a socket path."""
        run = self.home / "run"
        if len(str(run)) <= _LONGEST_RUN_DIR:
            return run
        tag = hashlib.sha256(str(self.home).encode()).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"headrace-{tag}"

    @property
    def home_tag(self) -> str:
        """Marks what belongs to this home, for an engine shared with others."""
        return hashlib.sha256(str(self.home).encode()).hexdigest()[:12]

    def code_dir(self, digest: str) -> Path:
        """Where the unpacked bundle `digest` is."""
        return self.home / "code" / digest

    def layer_dir(self, digest: str) -> Path:
        """Where the dependency layer `digest` is."""
        return self.home / "layers" / digest

    def environment(self) -> dict[str, str]:
        """These settings as the environment of a child process."""
        own = self.model_dump(exclude_defaults=True, exclude={"runtimes"})
        return {PREFIX + name.upper(): str(value) for name, value in {**own, **self.runtimes}.items() if value != ""}


def load(environ: Mapping[str, str], declared: Collection[str], **overrides: Any) -> Settings:
    """Settings from `HEADRACE_*` in `environ`, with `overrides` (None: not given) on top.

    `declared` are the settings, without prefix, that the runtimes have.

    Raises `SettingsError` naming every unknown or malformed setting, its problem and what to do.
    """
    values: dict[str, Any] = {}
    of_runtimes: dict[str, str] = {}
    fields = Settings.model_fields.keys() - {"runtimes"}
    problems = []
    for name, value in environ.items():
        if name.startswith(PREFIX):
            field = name.removeprefix(PREFIX).lower()
            if field in fields:
                values[field] = value
            elif field.upper() in declared:
                of_runtimes[field.upper()] = value
            else:
                known = ", ".join(PREFIX + known.upper() for known in (*sorted(fields), *sorted(declared)))
                problems.append(f"{name} is not a setting: remove it or correct its name. Known: {known}.")
    values.update({name: value for name, value in overrides.items() if value is not None}, runtimes=of_runtimes)
    try:
        settings = Settings(**values)
    except ValidationError as error:
        for item in error.errors(include_url=False):
            name = PREFIX + "_".join(str(part) for part in item["loc"]).upper()
            shown = "" if name.endswith(("TOKEN", "URL")) else f" (it is {str(item.get('input'))[:80]!r})"
            problems.append(f"{name}: {item['msg'].removeprefix('Value error, ')}{shown}.")
    if problems:
        raise SettingsError("\n".join(problems))
    return settings


def _dialable(host: str) -> str:
    if host in ("0.0.0.0", "::"):  # noqa: S104 - a listening address; this machine dials itself on loopback
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host

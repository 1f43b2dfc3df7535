"""Every knob, read once from the environment into one frozen value. Nothing else reads the environment."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Collection, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, urlencode, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from headrace.errors import SettingsError

PREFIX = "HEADRACE_"
_LONGEST_RUN_DIR = 70  # a unix socket path holds 107 bytes, and `i/<instance>/s` comes after it
_LABEL = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST_NAME = re.compile(rf"(?=.{{1,189}}$){_LABEL}(?:\.{_LABEL})*")  # `<name>.` goes before it
_DATABASE_URL = re.compile(r"(?P<place>(?:[^@]*@)?[^?]*)(?:\?(?P<query>.*))?", re.DOTALL)
_DATABASE_OPTIONS = ("host", "port", "ssl", "sslmode")
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")


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
    tls_cert: str = Field("", description="PEM file of the certificate (and its chain): both ports then speak TLS.")
    tls_key: str = Field("", description="PEM file of the certificate's key, not encrypted.")
    trusted_proxies: str = Field(
        "", description="Addresses and networks (CIDR), with commas, whose X-Forwarded-* headers are believed."
    )
    driver: Literal["docker", "process"] = Field("docker", description="`process` has no isolation: development only.")
    engine_socket: str = Field("/var/run/docker.sock", description="Unix socket of the Docker engine.")
    runtimes: dict[str, str] = Field(
        default_factory=dict, repr=False, description="What the runtimes declare: base images and package indexes."
    )
    build_ca_bundle: str = Field("", description="CA bundle that builds trust; empty: the host's own, if found.")
    max_body_mb: int = Field(32, ge=1, le=1 << 20, description="Longest request body, MiB.")
    header_timeout_s: float = Field(15.0, ge=1, le=300, description="A caller has this long for its request's headers.")
    body_timeout_s: float = Field(30.0, ge=1, le=900, description="Longest pause between two pieces of a body.")
    idle_timeout_s: float = Field(75.0, ge=5, le=3600, description="A connection without a call is kept this long.")
    drain_s: float = Field(30.0, ge=0, le=900, description="A stopping node waits this long for running calls.")
    socket_drain_s: float = Field(
        300.0, ge=0, le=86_400, description="A WebSocket stays this long with a version that lost its traffic."
    )
    retention_days: float = Field(7.0, gt=0, le=3650, description="Invocations and logs are kept this long.")
    retention_mb: int = Field(1024, ge=16, le=1_000_000, description="Invocations and logs take up to this, MiB.")
    prewarm: int = Field(2, ge=0, le=1000, description="Generic instances of each kind that wait for a cold call.")
    prewarm_most: int = Field(
        50, ge=0, le=1000, description="So many wait at most, where many published functions have no instance."
    )
    base_domain: str = Field("", description="Functions also answer as <name>.<base domain>; empty: paths only.")
    instance_memory_mb: int = Field(
        0, ge=0, description="All instances of a node together, MiB; 0: three quarters of the machine."
    )

    @field_validator("home")
    @classmethod
    def _home_is_absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("tls_cert", "tls_key")
    @classmethod
    def _file_is_absolute(cls, value: str) -> str:
        return str(Path(value).expanduser().absolute()) if value else value

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
        place, options = _split_options(rest)
        if drivers[scheme].startswith("sqlite"):
            _check_sqlite(place, options)
        return f"{drivers[scheme]}://{place}" + ("?" + urlencode(options) if options else "")

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, value: str) -> str:
        fix = "write it as redis://host:port, rediss://host:port or unix:///path/of/the.sock"
        return _url(value, ("redis", "rediss", "unix"), fix)

    @field_validator("control_url")
    @classmethod
    def _is_http(cls, value: str) -> str:
        fix = "write it as http://host:port or https://host"
        checked = _url(value, ("http", "https"), fix)
        if checked and not urlsplit(checked).hostname:
            raise ValueError(f"it names no host: {fix}")
        return checked

    @field_validator("base_domain")
    @classmethod
    def _is_host_name(cls, value: str) -> str:
        name = value.lower()
        if name and _HOST_NAME.fullmatch(name) is None:
            raise ValueError(
                "this is no host name: write one such as fn.example.org, without scheme, port or outer dot"
            )
        return name

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, value: str) -> str:
        for part in _parts(value):
            try:
                ip_network(part, strict=False)
            except ValueError:
                raise ValueError(
                    f"{part[:40]!r} is no address or network: write them as 10.0.0.0/8,192.168.1.5,fd00::/8"
                ) from None
        return value

    @property
    def proxies(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The networks of `trusted_proxies`."""
        return tuple(ip_network(part, strict=False) for part in _parts(self.trusted_proxies))

    @property
    def scheme(self) -> Literal["http", "https"]:
        """What both ports speak."""
        return "https" if self.tls_cert else "http"

    @property
    def database(self) -> str:
        """The SQLAlchemy URL in force."""
        return self.database_url or f"sqlite+aiosqlite:///{self.home / 'headrace.db'}"

    @property
    def control(self) -> str:
        """The base URL of the control API, without `/v1`."""
        return self.control_url or f"{self.scheme}://{_dialable(self.host)}:{self.control_port}"

    @property
    def functions(self) -> str:
        """The base URL of function calls on this machine."""
        return f"{self.scheme}://{_dialable(self.host)}:{self.port}"

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
    else:
        problems += _contradictions(settings)
    if problems:
        raise SettingsError("\n".join(problems))
    return settings


def _contradictions(settings: Settings) -> list[str]:
    """What is wrong with settings that are well-formed one by one."""
    problems = []
    if settings.port == settings.control_port:
        problems.append(
            f"HEADRACE_PORT and HEADRACE_CONTROL_PORT are both {settings.port}: give each a port of its own."
        )
    if bool(settings.tls_cert) != bool(settings.tls_key):
        given, missing = ("CERT", "KEY") if settings.tls_cert else ("KEY", "CERT")
        problems.append(f"HEADRACE_TLS_{missing} is missing: HEADRACE_TLS_{given} needs it, or leave out both.")
    if settings.build_ca_bundle and not _is_file(Path(settings.build_ca_bundle).expanduser()):
        problems.append(
            f"HEADRACE_BUILD_CA_BUNDLE: there is no file {settings.build_ca_bundle}: "
            "name a file of certificates in PEM, or leave it out."
        )
    return problems


def _parts(value: str) -> list[str]:
    """The parts of a list that is written with commas."""
    return [part.strip() for part in value.split(",") if part.strip()]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a directory that may not be searched, a name that is too long
        return False


def _url(value: str, schemes: Collection[str], fix: str) -> str:
    """`value` without the slash at its end; `ValueError` with `fix` unless it is empty or has one of `schemes`."""
    if not value:
        return value
    scheme, separator, rest = value.partition("://")
    if not separator or scheme.lower() not in schemes:
        raise ValueError(f"its scheme is none of {', '.join(schemes)}: {fix}")
    url = f"{scheme.lower()}://{rest.rstrip('/')}"
    try:
        urlsplit(url).port  # noqa: B018 - it is parsed when it is asked for
    except ValueError as error:
        raise ValueError(f"{error}: {fix}") from None
    return url


def _split_options(rest: str) -> tuple[str, list[tuple[str, str]]]:
    """A database URL without scheme as what is before `?` and the options behind it, in asyncpg's words."""
    found = _DATABASE_URL.fullmatch(rest)
    assert found is not None, "the pattern takes any text"
    options = parse_qsl(found["query"] or "", keep_blank_values=True)
    for name, value in options:
        if name not in _DATABASE_OPTIONS:
            raise ValueError(f"the option {name[:40]!r} is not known: remove it; known are host, port and sslmode")
        if name in ("ssl", "sslmode") and value not in _SSL_MODES:
            raise ValueError(f"{name}={value[:40]} is not known: use one of {', '.join(_SSL_MODES)}")
    return found["place"], [("ssl" if name == "sslmode" else name, value) for name, value in options]


def _check_sqlite(place: str, options: Collection[Any]) -> None:
    if options:
        raise ValueError("SQLite takes no options: remove what follows '?'")
    if len(place) < 2 or not place.startswith("/"):
        raise ValueError("this names no file: write it as sqlite:////absolute/path.db, or leave it out")


def _dialable(host: str) -> str:
    if host in ("0.0.0.0", "::"):  # noqa: S104 - a listening address; this machine dials itself on loopback
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host

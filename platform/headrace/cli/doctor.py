"""`headrace doctor`: looks at everything that Headrace stands on, and says what to do where something is wrong.

Every check is one function that answers with one line and changes nothing. One that fails does not keep the others
from being made.
"""

from __future__ import annotations

import asyncio
import os
import platform
import resource
import shutil
import ssl
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import httpx

from headrace import errors, runtimes, tls
from headrace.cli.client import Control, http_client
from headrace.cli.output import Output, bytes_text
from headrace.cli.ports import check_free
from headrace.cli.uplock import UpLock
from headrace.errors import HeadraceError
from headrace.model import DEFAULT_RUNTIME
from headrace.settings import Settings

State = Literal["ok", "warn", "fail"]

_PATIENCE_S = 15.0
_LEAST_DISK, _LITTLE_DISK = 256 << 20, 2 << 30
_FEW_FILES = 4096
_EARLIEST = 1_735_689_600  # 2025-01-01: no machine that runs this release is older
_SKEW_S = 2.0
_LITTLE_TIME_DAYS = 14


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, what was found, and where it is not well what to do."""

    name: str
    state: State
    detail: str
    fix: str = ""


Checker = Callable[[Settings], Awaitable[Check]]


def doctor(out: Output, settings: Settings, json: bool) -> None:
    """Print all checks; raises `SystemExit(1)` when one failed."""
    found = asyncio.run(examine(settings))
    failed = any(check.state == "fail" for check in found)
    if json:
        out.document({"ok": not failed, "checks": [asdict(check) for check in found]})
    else:
        out.table(["state", "check", "finding"], [[check.state, check.name, check.detail] for check in found])
        for check in found:
            if check.fix:
                out.line(f"{check.name}: {check.fix}", "red" if check.state == "fail" else "yellow")
        if not failed:
            out.line("Headrace can run here.", "bold green")
    if failed:
        raise SystemExit(1)


async def examine(settings: Settings) -> list[Check]:
    """All checks, made one after the other."""
    return [await _guarded(name, check, settings) for name, check in _CHECKS.items()]


async def _guarded(name: str, check: Checker, settings: Settings) -> Check:
    try:
        async with asyncio.timeout(_PATIENCE_S):
            return await check(settings)
    except HeadraceError as error:
        return Check(name, "fail", error.title, error.detail)
    except TimeoutError:
        return Check(name, "fail", f"no answer within {_PATIENCE_S:g} s", "see whether this machine is overloaded.")
    except OSError as error:
        return Check(name, "fail", error.strerror or str(error), "see the message; it comes from the system.")


async def _software(_: Settings) -> Check:
    python = platform.python_version()
    detail = f"headrace {version('headrace')}, Python {python}, {platform.system()} {platform.release()}"
    if sys.platform == "linux":
        return Check("versions", "ok", detail)
    fix = "it runs on Linux; elsewhere, processes can outlive a killed `headrace up`."
    return Check("versions", "warn", detail, fix)


async def _home(settings: Settings) -> Check:
    home = settings.home
    if not home.exists():
        return Check("home", "ok", f"{home} does not exist yet; `headrace up` makes it")
    status = home.stat()
    if status.st_uid != os.geteuid() or not os.access(home, os.W_OK | os.X_OK):
        fix = f"run as its owner, or `sudo chown -R $USER {home}`, or set HEADRACE_HOME."
        return Check("home", "fail", f"{home} is not yours to write", fix)
    if status.st_mode & 0o077:
        fix = f"it holds code, logs and tokens: `chmod 700 {home}`."
        return Check("home", "warn", f"{home} is open to other users", fix)
    token = home / "admin-token"
    if token.exists() and token.stat().st_mode & 0o077:
        return Check("home", "fail", f"{token} can be read by other users", f"`chmod 600 {token}`.")
    return Check("home", "ok", str(home))


async def _disk(settings: Settings) -> Check:
    place = next(path for path in (settings.home, *settings.home.parents) if path.exists())
    usage = shutil.disk_usage(place)
    detail = f"{bytes_text(usage.free)} free of {bytes_text(usage.total)} at {place}"
    fix = f"free some space there; logs and records may take {settings.retention_mb} MiB, bundles and layers more."
    if usage.free < _LEAST_DISK:
        return Check("disk", "fail", detail, fix)
    return Check("disk", "warn", detail, fix) if usage.free < _LITTLE_DISK else Check("disk", "ok", detail)


async def _limits(_: Settings) -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    detail = f"{soft} open files (at most {hard})"
    if soft < _FEW_FILES:
        return Check("limits", "warn", detail, f"each open connection takes one: `ulimit -n {_FEW_FILES * 4}`.")
    return Check("limits", "ok", detail)


async def _clock(_: Settings) -> Check:
    now = time.time()
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < _EARLIEST:
        return Check("clock", "fail", f"it says {shown}", "set the clock of this machine; certificates depend on it.")
    return Check("clock", "ok", shown)


async def _engine(settings: Settings) -> Check:
    if settings.driver == "process":
        fix = "functions run as processes of this user, for development only: HEADRACE_DRIVER=docker isolates them."
        return Check("engine", "warn", "the process driver isolates nothing", fix)
    from headrace.drivers.docker_engine import DockerDriver

    driver = DockerDriver(settings)
    try:
        info = await driver.check()
    finally:
        await driver.close()
    return Check("engine", "ok", f"{info.name} {info.version}: {info.detail}")


async def _images(settings: Settings) -> Check:
    if settings.driver == "process":
        return Check("images", "ok", "none are needed by the process driver")
    from headrace.drivers.engine import Engine

    name = runtimes.get(DEFAULT_RUNTIME).image_name(settings)
    engine = Engine(settings.engine_socket)
    try:
        there = await engine.call("looking for images", lambda client: bool(client.images(name=name)))
    finally:
        await engine.close()
    if not there:
        return Check("images", "warn", f"missing: {name}", "`headrace up` gets it, once.")
    return Check("images", "ok", name)


async def _ports(settings: Settings) -> Check:
    holder = UpLock(settings.run_dir).holder() if settings.run_dir.exists() else None
    if holder is not None:
        return Check("ports", "ok", f"Headrace runs here as process {holder.pid}: {holder.functions}, {holder.control}")
    check_free(settings.host, settings.port, "HEADRACE_PORT")
    check_free(settings.host, settings.control_port, "HEADRACE_CONTROL_PORT")
    detail = f"{settings.port} and {settings.control_port} on {settings.host} are free"
    if not settings.loopback:
        fix = "they can be reached from other machines: keep the control port behind a firewall."
        return Check("ports", "warn", detail, fix)
    return Check("ports", "ok", detail)


async def _tls(settings: Settings) -> Check:
    if not settings.tls_cert:
        if settings.loopback:
            return Check("TLS", "ok", "none configured; both ports are on loopback")
        fix = "set HEADRACE_TLS_CERT and HEADRACE_TLS_KEY, or put a proxy that speaks TLS in front."
        return Check("TLS", "warn", "none configured: calls and tokens cross the network in clear", fix)
    found = tls.check(settings.tls_cert, settings.tls_key)
    days = (found.until - time.time()) / 86_400
    detail = f"{settings.tls_cert} for {', '.join(found.names) or 'no name'}, valid for {days:.0f} days"
    if days < _LITTLE_TIME_DAYS:
        return Check("TLS", "warn", detail, "renew it, then restart Headrace.")
    if not found.names:
        return Check("TLS", "warn", detail, "clients refuse it: make one with a subjectAltName.")
    return Check("TLS", "ok", detail)


async def _control(settings: Settings) -> Check:
    return await asyncio.to_thread(_ask_control, settings)


def _ask_control(settings: Settings) -> Check:
    with http_client(settings, settings.control, timeout=5.0) as client:
        try:
            answer = client.get(f"{settings.control}/readyz")
        except httpx.TransportError:
            return Check("control", "warn", f"nothing answers at {settings.control}", "start it with `headrace up`.")
    if not answer.is_success:
        problem = answer.json() if "json" in answer.headers.get("content-type", "") else {}
        fix = problem.get("detail", "is it Headrace that listens there? See HEADRACE_CONTROL_URL.")
        return Check("control", "fail", f"{settings.control} is not ready ({answer.status_code})", fix)
    control = Control(settings)
    try:
        control.get("/functions", limit=1)
    except errors.Forbidden:
        return Check("control", "ok", f"{settings.control} is ready; the token may not read")
    finally:
        control.close()
    return Check("control", "ok", f"{settings.control} is ready and takes the token")


async def _database(settings: Settings) -> Check:
    from alembic.script import ScriptDirectory
    from sqlalchemy import inspect, text

    from headrace.store.sql import Database, alembic_config

    kind = "SQLite" if settings.database.startswith("sqlite") else "PostgreSQL"
    if not settings.database_url and not (settings.home / "headrace.db").exists():
        return Check("database", "ok", "SQLite; `headrace up` makes it")
    database = Database(settings.database)
    try:
        async with database.connect() as connection:
            if not await connection.run_sync(lambda plain: inspect(plain).has_table("alembic_version")):
                return Check("database", "warn", f"{kind} is empty", "`headrace up` makes its tables.")
            found = (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar()
            skew_s = 0.0
            if kind == "PostgreSQL":
                now = (await connection.execute(text("SELECT extract(epoch FROM now())"))).scalar_one()
                skew_s = abs(float(now) - time.time())
    finally:
        await database.close()
    head = ScriptDirectory.from_config(alembic_config(settings.database)).get_current_head()
    if found != head:
        fix = "`headrace up` migrates it; back it up first."
        return Check("database", "warn", f"{kind} has schema {found}, this release {head}", fix)
    if skew_s > _SKEW_S:
        fix = "leases depend on clocks that agree: run a time daemon on both machines."
        return Check("database", "warn", f"{kind}'s clock and this one differ by {skew_s:.1f} s", fix)
    return Check("database", "ok", f"{kind}, schema {found}")


async def _redis(settings: Settings) -> Check:
    if not settings.redis_url:
        return Check("redis", "ok", "not configured, not needed")
    from redis.asyncio import Redis
    from redis.exceptions import RedisError

    client = Redis.from_url(settings.redis_url, socket_connect_timeout=5, socket_timeout=5)
    try:
        info = await client.info("server")
    except (RedisError, ValueError) as error:
        fix = "start it or correct HEADRACE_REDIS_URL; until then the database's rows are polled."
        return Check("redis", "warn", f"it does not answer ({error})", fix)
    finally:
        await client.aclose()
    return Check("redis", "ok", f"Redis {info['redis_version']}")


async def _trust(settings: Settings) -> Check:
    if not settings.build_ca_bundle:
        return Check("CA bundle", "ok", "none chosen; builds trust what this machine trusts")
    bundle = Path(settings.build_ca_bundle)
    try:
        certificates = ssl.create_default_context(cafile=bundle).cert_store_stats()["x509_ca"]
    except (OSError, ssl.SSLError) as error:
        fix = "set HEADRACE_BUILD_CA_BUNDLE to a readable file of certificates in PEM, or leave it out."
        return Check("CA bundle", "fail", f"{bundle} cannot be used ({error})", fix)
    return Check("CA bundle", "ok", f"{bundle}, {certificates} certificates")


_CHECKS: dict[str, Checker] = {
    "versions": _software,
    "home": _home,
    "disk": _disk,
    "limits": _limits,
    "clock": _clock,
    "engine": _engine,
    "images": _images,
    "ports": _ports,
    "TLS": _tls,
    "control": _control,
    "database": _database,
    "redis": _redis,
    "CA bundle": _trust,
}

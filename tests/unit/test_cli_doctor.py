"""Each check of `headrace doctor` against a machine that is well, and one that is not in just this point."""

from __future__ import annotations

import gc
import os
import resource
import shutil
import socket
import sqlite3
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli_kit import Answer, Cli, Server, document, problem
from headrace.cli import doctor
from headrace.cli.doctor import Check
from headrace.cli.uplock import Holder, UpLock
from headrace.errors import EngineUnavailable, Forbidden, StoreUnavailable, Unauthenticated
from headrace.settings import Settings
from headrace.store.sql import migrate


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


def settings(home: Path, **values: Any) -> Settings:
    return Settings(home=home, driver="process", port=_free(), control_port=_free(), **values)


def _free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as trial:
        port: int = trial.getsockname()[1]
        return port


async def check(name: str, configured: Settings) -> Check:
    return await doctor._guarded(name, doctor._CHECKS[name], configured)


async def test_a_fresh_machine_has_nothing_that_fails(tmp_path: Path) -> None:
    found = await doctor.examine(settings(tmp_path / "home"))
    assert [item.name for item in found if item.state == "fail"] == []
    assert not (tmp_path / "home").exists()  # looking changes nothing


async def test_home(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    assert (await check("home", settings(tmp_path))).state == "ok"
    (tmp_path / "admin-token").write_text("hr_x")
    (tmp_path / "admin-token").chmod(0o644)
    found = await check("home", settings(tmp_path))
    assert (found.state, found.fix) == ("fail", f"`chmod 600 {tmp_path / 'admin-token'}`.")
    tmp_path.chmod(0o755)
    found = await check("home", settings(tmp_path))
    assert found.state == "warn"
    assert f"chmod 700 {tmp_path}" in found.fix


async def test_home_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    found = await doctor.examine(settings(tmp_path))
    assert {item.name: item.state for item in found}["home"] == "fail"


@pytest.mark.parametrize(("free", "state"), [(1 << 20, "fail"), (1 << 30, "warn"), (100 << 30, "ok")])
async def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, state: str) -> None:
    total = 200 << 30
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(total, total - free, free))
    assert (await check("disk", settings(tmp_path / "a" / "b"))).state == state


@pytest.mark.parametrize(("soft", "state"), [(1024, "warn"), (4096, "ok")])
async def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, soft: int, state: str) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, 1 << 20))
    assert (await check("limits", settings(tmp_path))).state == state


async def test_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.time, "time", lambda: 0.0)
    found = await check("clock", settings(tmp_path))
    assert (found.state, found.detail) == ("fail", "it says 1970-01-01 00:00:00 UTC")


async def test_the_process_driver_is_called_what_it_is(tmp_path: Path) -> None:
    found = await check("engine", settings(tmp_path))
    assert (found.state, found.detail) == ("warn", "the process driver isolates nothing")


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the docker package drops the socket that did not connect
async def test_no_engine(tmp_path: Path) -> None:
    configured = Settings(home=tmp_path, engine_socket=str(tmp_path / "no.sock"))
    found = await doctor.examine(configured)
    by_name = {item.name: item for item in found}
    assert by_name["engine"].state == "fail"
    assert by_name["engine"].detail == EngineUnavailable.title
    assert "there is no Docker engine" in by_name["engine"].fix
    assert by_name["images"].state == "fail"
    gc.collect()


async def test_ports(tmp_path: Path) -> None:
    configured = settings(tmp_path)
    assert (await check("ports", configured)).state == "ok"
    with socket.create_server(("127.0.0.1", configured.port)):
        found = await check("ports", configured)
    assert found.state == "fail"
    assert f"port {configured.port} on 127.0.0.1 is taken by process {os.getpid()}" in found.fix
    assert "HEADRACE_PORT" in found.fix


async def test_tls(tmp_path: Path) -> None:
    assert (await check("TLS", settings(tmp_path))).state == "ok"
    assert (await check("TLS", settings(tmp_path, host="0.0.0.0"))).state == "warn"
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    found = await check("TLS", settings(tmp_path, tls_cert=cert, tls_key=key))
    assert found.state == "fail"
    assert "key.pem cannot be read" in found.fix
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", "/CN=x", "-days", "60", "-keyout", key, "-out", cert]
    for names, days, state in (([], "60", "warn"), (["-addext", "subjectAltName=DNS:x"], "60", "ok")):
        subprocess.run([*command, *names], check=True, capture_output=True)
        found = await check("TLS", settings(tmp_path, tls_cert=cert, tls_key=key))
        assert (found.state, f"valid for {days} days" in found.detail) == (state, True)


async def test_ports_that_this_headrace_has(tmp_path: Path) -> None:
    configured = settings(tmp_path)
    lock = UpLock(configured.run_dir)
    assert lock.take() is None
    lock.describe(Holder(4711, "http://f", "http://c", ready=True))
    found = await check("ports", configured)
    lock.release()
    shutil.rmtree(configured.run_dir)  # outside of `tmp_path` when that is too long for sockets
    assert (found.state, found.detail) == ("ok", "Headrace runs here as process 4711: http://f, http://c")


async def test_ports_open_to_the_network(tmp_path: Path) -> None:
    found = await check("ports", settings(tmp_path, host="0.0.0.0"))
    assert (found.state, "firewall" in found.fix) == ("warn", True)


async def test_control_that_is_ready(tmp_path: Path, server: Server) -> None:
    server.on("GET", "/readyz", document({"status": "ok"}))
    server.on("GET", "/v1/functions", document({"items": [], "next": None}), problem(Forbidden("no.")))
    configured = settings(tmp_path, control_url=server.url, token="hr_x")
    assert (await check("control", configured)).detail == f"{server.url} is ready and takes the token"
    assert (await check("control", configured)).detail == f"{server.url} is ready; the token may not read"


@pytest.mark.parametrize(
    ("ready", "state", "fix"),
    [
        (problem(StoreUnavailable("not ready: the disk is full.")), "fail", "not ready: the disk is full."),
        (Answer(b"hi", 404), "fail", "is it Headrace that listens there?"),
    ],
)
async def test_control_that_is_not_ready(tmp_path: Path, server: Server, ready: Answer, state: str, fix: str) -> None:
    server.on("GET", "/readyz", ready)
    found = await check("control", settings(tmp_path, control_url=server.url))
    assert found.state == state
    assert fix in found.fix


async def test_control_that_refuses_the_token(tmp_path: Path, server: Server) -> None:
    server.on("GET", "/readyz", document({"status": "ok"}))
    server.on("GET", "/v1/functions", problem(Unauthenticated("the token is unknown.")))
    found = await check("control", settings(tmp_path, control_url=server.url, token="hr_x"))
    assert found.state == "fail"
    assert "the token is the one in HEADRACE_TOKEN" in found.fix


async def test_control_that_is_away(tmp_path: Path) -> None:
    found = await check("control", settings(tmp_path, control_url="http://127.0.0.1:9"))
    assert (found.state, found.fix) == ("warn", "start it with `headrace up`.")


async def test_database(tmp_path: Path) -> None:
    configured = settings(tmp_path)
    assert (await check("database", configured)).detail == "SQLite; `headrace up` makes it"
    await migrate(configured.database)
    found = await check("database", configured)
    assert found.state == "ok"
    assert found.detail.startswith("SQLite, schema ")
    with sqlite3.connect(tmp_path / "headrace.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0000'")
    connection.close()
    found = await check("database", configured)
    assert (found.state, "has schema 0000, this release" in found.detail) == ("warn", True)
    (tmp_path / "headrace.db").unlink()
    sqlite3.connect(tmp_path / "headrace.db").close()
    (tmp_path / "headrace.db").touch()
    assert (await check("database", configured)).detail == "SQLite is empty"


async def test_database_that_is_away(tmp_path: Path) -> None:
    found = await check("database", settings(tmp_path, database_url="postgresql://nobody@127.0.0.1:9/none"))
    assert (found.state, found.detail) == ("fail", StoreUnavailable.title)


async def test_redis_that_is_away(tmp_path: Path) -> None:
    found = await check("redis", settings(tmp_path, redis_url="redis://127.0.0.1:9"))
    assert (found.state, "HEADRACE_REDIS_URL" in found.fix) == ("warn", True)


async def test_ca_bundle(tmp_path: Path) -> None:
    found = await check("CA bundle", settings(tmp_path, build_ca_bundle=str(tmp_path / "none.pem")))
    assert found.state == "fail"
    assert "none.pem cannot be used (" in found.detail
    (tmp_path / "empty.pem").write_text("no certificates here")
    found = await check("CA bundle", settings(tmp_path, build_ca_bundle=str(tmp_path / "empty.pem")))
    assert found.state == "fail"
    bundle = ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt"
    found = await check("CA bundle", settings(tmp_path, build_ca_bundle=bundle))
    assert (found.state, found.detail.startswith(f"{bundle}, ")) == ("ok", True)


async def test_a_check_that_hangs_or_breaks_does_not_keep_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def breaks(_: Settings) -> Check:
        raise OSError(5, "Input/output error")

    async def hangs(_: Settings) -> Check:
        raise TimeoutError

    async def works(_: Settings) -> Check:
        return Check("works", "ok", "fine")

    monkeypatch.setattr(doctor, "_CHECKS", {"breaks": breaks, "hangs": hangs, "works": works})
    found = await doctor.examine(settings(tmp_path))
    assert [(item.name, item.state) for item in found] == [("breaks", "fail"), ("hangs", "fail"), ("works", "ok")]
    assert found[0].detail == "Input/output error"


def test_command(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    state = "warn"

    async def look(_: Settings) -> list[Check]:
        return [Check("disk", state, "1.0 GiB free", "free some."), Check("clock", "ok", "now")]  # type: ignore[arg-type]

    monkeypatch.setattr(doctor, "examine", look)
    cli = Cli(tmp_path, server.url)
    result = cli("doctor")
    assert result.code == 0
    assert result.out.splitlines() == [
        "state  check  finding",
        "warn   disk   1.0 GiB free",
        "ok     clock  now",
        "disk: free some.",
        "Headrace can run here.",
    ]
    state = "fail"
    assert cli("doctor").code == 1
    result = cli("doctor", "--json")
    assert result.code == 1
    assert result.json == {
        "ok": False,
        "checks": [
            {"name": "disk", "state": "fail", "detail": "1.0 GiB free", "fix": "free some."},
            {"name": "clock", "state": "ok", "detail": "now", "fix": ""},
        ],
    }

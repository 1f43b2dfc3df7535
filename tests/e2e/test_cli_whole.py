"""The command line against a platform that runs: what the journey of a new user does not touch."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import httpx

from headrace.cli.uplock import UpLock
from headrace.settings import Settings
from stack import HEADRACE, Headrace

ECHO = (
    "import json\n"
    "def handler(event, context):\n"
    "    print('got', event['rawPath'])\n"
    "    if event['rawPath'] == '/boom':\n"
    "        raise ValueError('no such pet')\n"
    "    return {'body': event.get('body'), 'path': event['rawPath']}\n"
)


def _function(directory: Path, name: str, code: str = ECHO) -> Path:
    home = directory / name
    home.mkdir(exist_ok=True)
    (home / "handler.py").write_text(code)
    return home


def test_invoke(platform: Headrace, tmp_path: Path) -> None:
    platform.cli("deploy", str(_function(tmp_path, "echo")))
    shown = platform.cli("invoke", "echo@1", "--path", "/pets", "--data", '{"a": 1}', "--verbose")
    assert '"path":"/pets"' in shown.replace(" ", "")
    assert "version 1" in shown
    shown = platform.cli("invoke", "echo", "--path", "/boom", check=False, code=1)
    assert "the fault of the function" in shown
    assert "headrace invocations " in shown
    shown = platform.cli("invoke", "nobody", check=False, code=1)
    assert "nobody" in shown


def test_functions_metrics_and_doctor(platform: Headrace, tmp_path: Path) -> None:
    platform.cli("deploy", str(_function(tmp_path, "seen")))
    for _ in range(5):
        platform.cli("invoke", "seen")
    listed = json.loads(platform.cli("functions", "--json"))
    assert "seen" in [item["name"] for item in listed["items"]]
    assert json.loads(platform.cli("functions", "seen", "--json"))["aliases"][0]["traffic"] == {"1": 100}
    platform.until(lambda: json.loads(platform.cli("metrics", "seen", "--json"))["totals"], '"invocations": 5')
    assert "invocations" in platform.cli("metrics", "seen", "--by-version")
    assert "Headrace can run here." in platform.cli("doctor")
    checks = json.loads(platform.cli("doctor", "--json"))["checks"]
    assert {check["name"]: check["state"] for check in checks}["control"] == "ok"


def test_tokens_do_what_they_may(platform: Headrace, tmp_path: Path) -> None:
    secret = json.loads(platform.cli("token", "create", "reader", "--scope", "read", "--json"))["secret"]
    home = _function(tmp_path, "guarded")
    reader = platform.environment | {"HEADRACE_TOKEN": secret}

    def as_reader(*arguments: str) -> tuple[int, str]:
        done = subprocess.run([HEADRACE, *arguments], env=reader, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    assert as_reader("functions")[0] == 0
    code, told = as_reader("deploy", str(home))
    assert (code, "deploy" in told) == (1, True)
    assert "reader" in platform.cli("token", "list")
    platform.cli("token", "delete", "reader")
    code, told = as_reader("functions")
    assert (code, "the token is the one in HEADRACE_TOKEN" in told) == (1, True)


def test_dev_deploys_what_changes_and_shows_the_log(platform: Headrace, tmp_path: Path) -> None:
    home = _function(tmp_path, "growing")
    with platform.running_cli("dev", str(home)) as following:
        following.wait_for("growing@1 is live", 60)
        _function(tmp_path, "growing", ECHO.replace("'got'", "'received'"))
        following.wait_for("growing@2 is live", 60)
        assert httpx.get(f"{platform.url('growing')}/pets").status_code == 200
        following.wait_for("received /pets")


def test_detached_on_a_fresh_home(platform: Headrace, tmp_path: Path) -> None:
    """As on a fresh machine, but without containers, beside the platform of the other tests."""
    home = tmp_path / "fresh"
    port, control_port = _two_ports()
    environment = platform.environment | {
        "HEADRACE_HOME": str(home),
        "HEADRACE_PORT": port,
        "HEADRACE_CONTROL_PORT": control_port,
        "HEADRACE_DRIVER": "process",
    }

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [HEADRACE, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=180
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    try:
        shown = run("up", "--detach", "--deploy", str(_function(tmp_path, "first")))
        token = (home / "admin-token").read_text().strip()
        assert shown.count(token) == 1
        assert f"http://127.0.0.1:{port}/fn/first" in shown
        assert '"path":"/"' in shown.replace(" ", "")
        again = run("up", "--detach")
        assert "runs already" in again
        assert token not in again
        assert run("down") == "Headrace is stopped.\n"
    finally:
        holder = UpLock(Settings(home=home).run_dir).holder()
        if holder is not None:
            os.kill(holder.pid, signal.SIGKILL)


def _two_ports() -> tuple[str, str]:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        return str(one.getsockname()[1]), str(other.getsockname()[1])

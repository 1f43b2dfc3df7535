"""`headrace up` and `down` as processes, with small stand-ins for control, node and worker (`cli_roles.py`)."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import cli_roles
from cli_kit import Answer, Server
from headrace.cli import foreground
from headrace.cli.output import Output
from headrace.cli.ports import PortTaken, check_free
from headrace.cli.session import Session
from headrace.cli.start import StartFailed, plan
from headrace.cli.uplock import Holder, UnusableHome, UpLock, make_private
from headrace.settings import Settings

_BOUND_S = 30.0
_PORTS = iter(range(17600, 17700))


def free_port() -> int:
    for port in _PORTS:
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port is left in the range of these tests")


def until(what: Callable[[], object]) -> None:
    """Wait for `what`; the bound is reached only by a hang."""
    deadline = time.monotonic() + _BOUND_S
    while not what():
        assert time.monotonic() < deadline, "this never happened"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Home:
    """A home with two ports, and the processes that tests start in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.port = free_port()
        self.control_port = free_port()
        self.started: list[subprocess.Popen[str]] = []

    def environ(self, wish: str) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HEADRACE_HOME": str(self.path),
            "HEADRACE_PORT": str(self.port),
            "HEADRACE_CONTROL_PORT": str(self.control_port),
            "HEADRACE_TOKEN": wish,
        }

    def start(self, *arguments: str, wish: str = "nothing") -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, cli_roles.__file__, *arguments],
            env=self.environ(wish),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def run(self, *arguments: str, wish: str = "nothing") -> tuple[int, str, str]:
        process = self.start(*arguments, wish=wish)
        out, err = process.communicate(timeout=_BOUND_S)
        return process.returncode, out, err

    @property
    def events(self) -> list[str]:
        path = self.path / "events"
        return path.read_text().splitlines() if path.exists() else []

    def pids(self, role: str) -> list[int]:
        return [int(words[1]) for words in map(str.split, self.events) if words[0] == role and words[1].isdigit()]

    @property
    def all_pids(self) -> list[int]:
        return [pid for role in ("init", "control", "node", "worker") for pid in self.pids(role)]

    @property
    def note(self) -> Holder | None:
        return UpLock(Settings(home=self.path).run_dir).note()

    def up(self, *arguments: str, wish: str = "nothing") -> subprocess.Popen[str]:
        """Started in front, and ready."""
        process = self.start("up", *arguments, wish=wish)
        ready = Holder(process.pid, f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{self.control_port}", True)
        until(lambda: self.note == ready or process.poll() is not None)
        assert process.poll() is None
        until(lambda: len({len(self.pids(role)) for role in ("control", "node", "worker")}) == 1)
        return process

    def end(self) -> None:
        note = self.note
        if note is not None and alive(note.pid):
            os.kill(note.pid, signal.SIGKILL)
        for process in self.started:
            process.kill()
            process.communicate()


@pytest.fixture
def home() -> Iterator[Home]:
    with tempfile.TemporaryDirectory(prefix="headrace-") as directory:  # short, so that `run` is inside it
        home = Home(Path(directory) / "home")
        try:
            yield home
        finally:
            home.end()


def test_up_starts_serves_and_stops_cleanly(home: Home) -> None:
    process = home.up()
    assert home.path.stat().st_mode & 0o777 == 0o700
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=_BOUND_S)
    assert process.returncode == 0
    assert f"functions  http://127.0.0.1:{home.port}/fn/<name>" in out
    assert f"control    http://127.0.0.1:{home.control_port}/v1" in out
    assert f"API docs   http://127.0.0.1:{home.control_port}/docs" in out
    assert "Setting up\nengine: pretended 1.0\n" in err
    assert "running calls may finish (up to 30 s)" in err
    assert err.endswith("Headrace is stopped.\n")
    stopped = [line.split()[0] for line in home.events if line.endswith(" stopped")]
    assert stopped[0] == "node"
    assert sorted(stopped) == ["control", "node", "worker"]
    assert not any(alive(pid) for pid in home.all_pids)
    assert home.note is None


def test_the_admin_token_is_shown_once_and_never_logged(home: Home) -> None:
    secret = cli_roles.SECRET
    process = home.up()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=_BOUND_S)
    assert out.count(secret) == 1
    assert secret not in err
    assert secret not in (home.path / "log" / "up.log").read_text()
    process = home.up()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=_BOUND_S)
    assert secret not in out + err


@pytest.mark.parametrize("options", [[], ["--detach"]])
def test_a_token_of_a_start_that_failed_is_shown_by_the_next(home: Home, options: list[str]) -> None:
    code, out, err = home.run("up", *options, wish="node-dies")
    assert code == 1
    assert cli_roles.SECRET not in out + err
    assert (home.path / "admin-token").exists()
    assert home.run("up", "--detach")[1].count(cli_roles.SECRET) == 1
    home.run("down")
    assert cli_roles.SECRET not in home.run("up", "--detach")[1]


@pytest.mark.parametrize("role", ["control", "node", "worker"])
def test_a_killed_process_comes_back(home: Home, role: str) -> None:
    process = home.up()
    (first,) = home.pids(role)
    os.kill(first, signal.SIGKILL)
    until(lambda: len(home.pids(role)) == 2)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=_BOUND_S)
    assert f"{role} was ended by SIGKILL after " in err
    assert process.returncode == 0


def test_kill_9_of_the_supervisor_leaves_nothing_and_the_next_start_works(home: Home) -> None:
    process = home.up()
    children = home.all_pids
    assert len(children) == 3
    process.kill()
    process.communicate()
    until(lambda: not any(alive(pid) for pid in children))
    second = home.up()
    assert len(home.all_pids) == 6
    second.send_signal(signal.SIGTERM)
    second.communicate(timeout=_BOUND_S)
    assert second.returncode == 0


def test_kill_9_during_the_set_up_leaves_nothing(home: Home) -> None:
    process = home.start("up", wish="init-hangs")
    until(lambda: home.pids("init"))
    process.kill()
    process.communicate()
    until(lambda: not any(alive(pid) for pid in home.all_pids))


def test_a_second_up_says_where_the_first_one_serves(home: Home) -> None:
    first = home.up()
    code, out, _ = home.run("up", "--port", str(home.port))
    assert code == 0
    assert f"Headrace runs already, as process {first.pid}." in out
    assert f"http://127.0.0.1:{home.port}/fn/<name>" in out
    assert "headrace down" in out
    assert first.poll() is None


@pytest.mark.parametrize("option", ["--port", "--control-port"])
def test_a_second_up_at_other_ports_is_refused(home: Home, tmp_path: Path, option: str) -> None:
    first = home.up()
    (tmp_path / "hello").mkdir()
    code, out, err = home.run("up", option, str(free_port()), "--deploy", str(tmp_path / "hello"))
    assert (code, out) == (1, "")
    assert f"as process {first.pid}, at http://127.0.0.1:{home.port} (functions)" in err
    assert f"http://127.0.0.1:{home.control_port} (API): stop it first with `headrace down`" in err


def test_the_hints_name_the_home_and_the_port_that_were_given(home: Home, tmp_path: Path) -> None:
    other, port = tmp_path / "my home", free_port()
    stop = f"headrace down --home '{other}'"
    where = f"export HEADRACE_HOME='{other}' HEADRACE_CONTROL_PORT={port}\n"
    options = ("--home", str(other), "--control-port", str(port))
    first = home.start("up", *options)
    assert first.stderr is not None
    while "Ctrl-C stops it" not in (line := first.stderr.readline()):
        assert line
    assert stop in line
    code, out, _ = home.run("up", *options)
    assert code == 0
    assert where in out
    assert f"Stop it with: {stop}\n" in out
    assert home.run("down", "--home", str(other))[0] == 0
    assert first.wait(_BOUND_S) == 0


def test_a_second_up_deploys_to_the_first(home: Home, tmp_path: Path) -> None:
    home.up()
    (tmp_path / "hello").mkdir()
    code, out, _ = home.run("up", "--detach", "--deploy", str(tmp_path / "hello"))
    assert code == 0
    url = f"http://127.0.0.1:{home.control_port}"
    assert out.endswith(
        f"cli: deploy {tmp_path / 'hello'} --unless-published at {url}\ncli: invoke hello --verbose at {url}\n\n"
    )


def test_a_second_signal_ends_a_stop_at_once(home: Home) -> None:
    process = home.up(wish="node-hangs")
    process.send_signal(signal.SIGINT)
    until(lambda: "node stopped" in home.events)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=_BOUND_S)
    assert process.returncode == 0
    assert not any(alive(pid) for pid in home.all_pids)


def test_a_signal_during_the_set_up(home: Home) -> None:
    process = home.start("up", wish="init-hangs")
    until(lambda: home.pids("init"))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=_BOUND_S)
    assert process.returncode == 130
    assert "Stopped before it was ready." in err
    assert not any(alive(pid) for pid in home.all_pids)


def test_a_set_up_that_fails_is_told_with_what_it_said(home: Home) -> None:
    code, out, err = home.run("up", wish="init-fails")
    assert (code, out) == (1, "")
    assert "there is no Docker engine. Install it." in err
    assert "setting up ended with exit code 1" in err
    assert "Headrace is stopped" not in err
    assert home.pids("node") == []


def test_a_process_that_cannot_stay_up_ends_the_start(home: Home) -> None:
    code, _, err = home.run("up", wish="node-dies")
    assert code == 1
    assert "node ended with exit code 7 after" in err
    assert "node ended 5 times in a row. Its last lines" in err
    assert "node: the wheel is broken" in err.rpartition("Error:")[2]
    assert not any(alive(pid) for pid in home.all_pids)


@pytest.mark.parametrize("option", ["--port", "--control-port"])
def test_a_taken_port_is_told_before_anything_starts(home: Home, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = home.run("up", option, str(port))
    assert code == 1
    assert f"port {port} on 127.0.0.1 is taken by process {os.getpid()} (" in err
    assert f"choose another with {option}." in err
    assert home.events == []


def test_equal_ports_are_refused_before_anything_starts(home: Home) -> None:
    code, _, err = home.run("up", "--port", "17699", "--control-port", "17699")
    assert code == 2
    assert "are both 17699: give each a port of its own." in err
    assert not home.path.exists()


def test_it_is_ready_when_control_says_that_the_node_serves(home: Home) -> None:
    home.up(wish="node-late")
    assert home.events.count("asked") == 4


@pytest.mark.parametrize(("answers", "late"), [(True, "node"), (False, "control")])
async def test_who_is_late_is_told(home: Home, monkeypatch: pytest.MonkeyPatch, answers: bool, late: str) -> None:
    monkeypatch.setattr(foreground, "_READY_S", 0.0)
    out = Output(sys.stdin, sys.stdout, sys.stderr)
    with Server() as server:
        server.on("GET", "/readyz", Answer(status=503))
        port = server.url.rpartition(":")[2] if answers else str(free_port())
        start = plan(Session(home.environ("t") | {"HEADRACE_CONTROL_PORT": port}, out), {})
        with pytest.raises(StartFailed, match=f"^{late} was not ready within 0 s"):
            await foreground.Foreground(out, start, start.lock)._ready()


def test_detached_it_stays_and_down_stops_it(home: Home) -> None:
    code, out, err = home.run("up", "--detach")
    assert code == 0
    note = home.note
    assert note is not None
    assert note.ready
    assert f"Headrace is ready, as process {note.pid}." in out
    assert "Stop it with: headrace down" in out
    assert cli_roles.SECRET in out
    assert "engine: pretended 1.0" in err
    assert os.getsid(note.pid) == note.pid
    assert os.getsid(note.pid) != os.getsid(0)
    code, out, _ = home.run("down")
    assert (code, out) == (0, "Headrace is stopped.\n")
    assert not alive(note.pid)
    assert not any(alive(pid) for pid in home.all_pids)


def test_detached_it_tells_why_it_failed(home: Home) -> None:
    code, out, err = home.run("up", "--detach", wish="init-fails")
    assert (code, out) == (1, "")
    assert "there is no Docker engine. Install it." in err
    assert "Headrace could not be started" in err


def test_interrupting_a_detached_start_ends_it(home: Home) -> None:
    process = home.start("up", "--detach", wish="init-hangs")
    until(lambda: home.pids("init"))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=_BOUND_S)
    assert process.returncode == 130
    until(lambda: not any(alive(pid) for pid in home.all_pids))


def test_deploy_and_call_after_the_start(home: Home, tmp_path: Path) -> None:
    (tmp_path / "hello").mkdir()
    process = home.up("--deploy", str(tmp_path / "hello"))
    assert process.stdout is not None
    lines = []
    while "invoke" not in (line := process.stdout.readline()):
        lines.append(line)
    assert lines[-1] == f"cli: deploy {tmp_path / 'hello'} --unless-published at None\n"
    assert line == "cli: invoke hello --verbose at None\n"


def test_a_failed_first_deploy_leaves_headrace_running(home: Home, tmp_path: Path) -> None:
    (tmp_path / "hello").mkdir()
    process = home.up("--deploy", str(tmp_path / "hello"), wish="deploy-fails")
    assert process.stderr is not None
    while "Ctrl-C stops it." not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=_BOUND_S)
    assert "cli: deploy" in out
    assert "cli: invoke" not in out


def test_what_cannot_be_deployed_is_told_before_the_start(home: Home, tmp_path: Path) -> None:
    code, _, err = home.run("up", "--deploy", str(tmp_path / "none"))
    assert code == 2
    assert "does not exist" in err
    assert home.events == []


def test_down_with_nothing_to_stop(home: Home) -> None:
    code, _, err = home.run("down")
    assert code == 0
    assert "nothing to stop" in err


def test_the_restart_of_a_child_gets_the_settings(home: Home) -> None:
    """Options of `up` travel to every child as environment, without a trace of another CONTROL_URL."""
    environ = home.environ("t") | {"HEADRACE_CONTROL_URL": "http://elsewhere", "LANG": "C"}
    start = plan(Session(environ, Output(sys.stdin, sys.stdout, sys.stderr)), {"port": 17699, "driver": "process"})
    assert start.settings.control == f"http://127.0.0.1:{home.control_port}"
    assert start.environment["HEADRACE_PORT"] == "17699"
    assert start.environment["HEADRACE_DRIVER"] == "process"
    assert start.environment["LANG"] == "C"
    assert "HEADRACE_CONTROL_URL" not in start.environment


def test_lock_has_one_holder_and_a_note(tmp_path: Path) -> None:
    first, second = UpLock(tmp_path), UpLock(tmp_path)
    assert second.holder() is None
    assert first.take() is None
    holder = Holder(os.getpid(), "http://f", "http://c", ready=False)
    assert second.take() == Holder(0, "", "", ready=False)
    first.describe(holder)
    assert second.take() == holder
    first.release()
    assert second.note() is None
    assert second.take() is None
    second.release()


def test_the_note_of_a_dead_holder_means_nothing(tmp_path: Path) -> None:
    stale = Holder(1, "http://f", "http://c", ready=True)
    UpLock(tmp_path).describe(stale)
    lock = UpLock(tmp_path)
    assert lock.holder() is None
    UpLock(tmp_path).describe(stale)
    assert lock.take() is None
    assert lock.note() is None
    lock.release()


def test_a_broken_note_is_no_note(tmp_path: Path) -> None:
    for text in ("", "{", json.dumps({"pid": 1}), "[]"):
        (tmp_path / "up.json").write_text(text)
        assert UpLock(tmp_path).note() is None


def test_lock_is_not_inherited(tmp_path: Path) -> None:
    lock, next_one = UpLock(tmp_path), UpLock(tmp_path)
    assert lock.take() is None
    sleeper = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"], close_fds=False)
    try:
        lock.release()
        until(next_one.acquire)
        next_one.release()
    finally:
        sleeper.kill()
        sleeper.wait()


def test_home_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnusableHome, match=r"cannot be made .*--home or HEADRACE_HOME"):
        make_private(tmp_path / "file" / "home")


def test_free_and_impossible_addresses() -> None:
    check_free("127.0.0.1", free_port(), "--port")
    with pytest.raises(PortTaken, match="is not an address of this machine"):
        check_free("192.0.2.1", 17600, "--port")
    with pytest.raises(PortTaken, match=r"the host 'no\.such\.host\.invalid' is unknown"):
        check_free("no.such.host.invalid", 17600, "--port")

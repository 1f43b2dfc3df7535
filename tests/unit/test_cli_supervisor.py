"""The supervisor with small real processes. Waits are for events, with a bound that only a hang reaches."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from headrace.cli.rotating import Lines, RotatingFile
from headrace.cli.supervisor import Backoff, Role, Supervisor, ending

QUICK = Backoff(first_s=0.01, most_s=0.04, healthy_s=30.0)
_BOUND_S = 20.0


def python(name: str, code: str, grace_s: float = 10.0) -> Role:
    return Role(name, (sys.executable, "-c", code), grace_s)


class Said(list[str]):
    """What the supervisor said, and a way to wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = asyncio.Event()

    def __call__(self, text: str) -> None:
        self.append(text)
        self._changed.set()

    async def until(self, wanted: Callable[[list[str]], bool]) -> None:
        async with asyncio.timeout(_BOUND_S):
            while not wanted(self):
                self._changed.clear()
                await self._changed.wait()

    async def line(self, *parts: str) -> None:
        await self.until(lambda said: any(all(part in text for part in parts) for text in said))


@asynccontextmanager
async def supervised(said: Said, directory: Path, *stages: list[Role]) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(stages, dict(os.environ), directory, said, QUICK)
    supervisor.start()
    try:
        yield supervisor
    finally:
        supervisor.kill()
        await supervisor.stop()


@pytest.fixture
def said() -> Said:
    return Said()


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_backoff_doubles_to_a_bound_and_starts_again_after_a_healthy_run() -> None:
    backoff = Backoff()
    pauses, pause = [], 0.0
    for _ in range(9):
        pause = backoff.after(pause, 1.0)
        pauses.append(pause)
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    assert backoff.after(10.0, 30.0) == 0.1


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "ended with exit code 0"),
        (3, "ended with exit code 3"),
        (-9, "was ended by SIGKILL"),
        (-99, "was ended by signal 99"),
    ],
)
def test_endings(code: int, words: str) -> None:
    assert ending(code) == words


async def test_one_that_ends_is_started_again_and_it_says_how_it_ended(said: Said, tmp_path: Path) -> None:
    async with supervised(said, tmp_path, [python("worker", "raise SystemExit(3)")]) as supervisor:
        await said.until(lambda lines: sum("worker ended with exit code 3" in line for line in lines) >= 4)
        (child,) = supervisor.children
        assert child.deaths >= 4
    pauses = [line.rpartition(" in ")[2] for line in said[:4]]
    assert pauses == ["0.01 s.", "0.02 s.", "0.04 s.", "0.04 s."]


async def test_one_that_is_killed_is_started_again_with_a_new_pid(said: Said, tmp_path: Path) -> None:
    code = "import os, time; print('WARNING pid', os.getpid(), flush=True); time.sleep(600)"
    async with supervised(said, tmp_path, [python("node", code)]) as supervisor:
        await said.line("node: WARNING pid")
        (child,) = supervisor.children
        first = child.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await said.line("node was ended by SIGKILL", "starts again in 0.01 s")
        await said.until(lambda lines: sum("WARNING pid" in line for line in lines) == 2)
        assert child.pid not in (None, first)
        assert child.deaths == 1


async def test_stages_stop_one_after_the_other(said: Said, tmp_path: Path) -> None:
    """The node, which takes its time to drain, has ended before the others hear of it."""
    log = tmp_path / "order"
    code = (
        "import signal, sys, time\n"
        "def stop(*_):\n"
        "    time.sleep({pause})\n"
        "    open({log!r}, 'a').write('{name}\\n')\n"
        "    sys.exit()\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "print('WARNING up', flush=True)\n"
        "time.sleep(600)\n"
    )

    def role(name: str, pause: float) -> Role:
        return python(name, code.format(log=str(log), name=name, pause=pause))

    async with supervised(said, tmp_path, [role("node", 0.3)], [role("control", 0), role("worker", 0)]) as supervisor:
        for name in ("node", "control", "worker"):
            await said.line(f"{name}: WARNING up")
        pids = [child.pid for child in supervisor.children]
        await supervisor.stop()
    order = log.read_text().split()
    assert order[0] == "node"
    assert sorted(order[1:]) == ["control", "worker"]
    assert not any(running(pid) for pid in pids if pid is not None)
    assert not any("starts again" in line for line in said)


STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('WARNING up', flush=True); "
    "time.sleep(600)"
)


async def test_one_that_will_not_end_is_killed_after_its_grace(said: Said, tmp_path: Path) -> None:
    async with supervised(said, tmp_path, [python("node", STUBBORN, grace_s=0.05)]) as supervisor:
        await said.line("WARNING up")
        await supervisor.stop()
    assert "node did not end within 0.05 s; it is killed." in said


async def test_kill_ends_a_stop_that_waits(said: Said, tmp_path: Path) -> None:
    async with supervised(said, tmp_path, [python("node", STUBBORN, grace_s=600)]) as supervisor:
        await said.line("WARNING up")
        stopping = asyncio.create_task(supervisor.stop())
        await asyncio.sleep(0)
        supervisor.kill()
        async with asyncio.timeout(_BOUND_S):
            await stopping


async def test_stop_takes_what_a_child_has_started_with_it(said: Said, tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time; "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
        "print('WARNING grandchild', child.pid, flush=True); time.sleep(600)"
    )
    async with supervised(said, tmp_path, [python("node", code)]) as supervisor:
        await said.line("WARNING grandchild")
        await supervisor.stop()
    await gone(int(said[0].split()[-1]))


async def gone(pid: int) -> None:
    """Wait until nothing runs under `pid`, not counting a zombie that its new parent has not read yet."""
    async with asyncio.timeout(_BOUND_S):
        while running(pid) and b"Z" not in Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[:1]:
            await asyncio.sleep(0.01)


async def test_stop_during_the_pause_before_a_restart(tmp_path: Path, said: Said) -> None:
    supervisor = Supervisor(
        [[python("worker", "raise SystemExit(1)")]], dict(os.environ), tmp_path, said, Backoff(first_s=600)
    )
    supervisor.start()
    await said.line("it starts again in 600 s")
    async with asyncio.timeout(_BOUND_S):
        await supervisor.stop()


async def test_stop_before_anything_ran(tmp_path: Path, said: Said) -> None:
    supervisor = Supervisor([[python("worker", "")]], dict(os.environ), tmp_path, said, QUICK)
    await supervisor.stop()
    supervisor.start()
    await supervisor.stop()
    assert said == []


async def test_a_command_that_does_not_exist_is_told_and_tried_again(said: Said, tmp_path: Path) -> None:
    async with supervised(said, tmp_path, [Role("node", ("/no/such/program",), 1.0)]):
        await said.until(lambda lines: sum("node could not be started (No such file" in line for line in lines) >= 2)


async def test_everything_goes_to_the_log_and_what_matters_to_the_terminal(said: Said, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "print('2026-01-31 12:00:00,000 INFO node starting')\n"
        "print('2026-01-31 12:00:00,001 WARNING node the disk is slow', file=sys.stderr)\n"
        "print('2026-01-31 12:00:00,002 INFO node ' + 'x' * 60 + ' an ERROR that somebody quotes')\n"
        "sys.stdout.write('the last words have no line end')\n"
        "sys.stdout.flush()\n"
        "raise SystemExit(1)\n"
    )
    async with supervised(said, tmp_path, [python("node", code)]):
        await said.line("node ended with exit code 1", "It said last: the last words have no line end")
    warned = [line for line in said if line.startswith("node: ")]
    assert set(warned) == {"node: 2026-01-31 12:00:00,001 WARNING node the disk is slow"}
    log = (tmp_path / "node.log").read_text()
    assert "INFO node starting" in log
    assert "the last words have no line end" in log
    assert (tmp_path / "node.log").stat().st_mode & 0o077 == 0


async def test_a_grandchild_that_holds_the_output_does_not_hide_the_end(said: Said, tmp_path: Path) -> None:
    code = (
        "import subprocess, sys; "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True); "
        "print('WARNING grandchild', child.pid, flush=True); "
        "raise SystemExit(4)"
    )
    slow = Backoff(first_s=600)
    supervisor = Supervisor([[python("node", code)]], dict(os.environ), tmp_path, said, slow)
    supervisor.start()
    await said.line("node ended with exit code 4")
    await supervisor.stop()
    os.kill(int(said[0].split()[-1]), signal.SIGKILL)


def test_rotating_file_is_bounded_and_keeps_the_newest(tmp_path: Path) -> None:
    file = RotatingFile(tmp_path / "node.log", limit=100, keep=2)
    for number in range(50):
        file.write(f"line {number:02}\n".encode() * 4)  # 32 bytes
    file.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["node.log", "node.log.1", "node.log.2"]
    assert all(path.stat().st_size <= 100 for path in tmp_path.iterdir())
    assert "line 49" in (tmp_path / "node.log").read_text()


def test_rotating_file_goes_on_after_a_restart_and_rotates_what_is_too_long(tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    path.write_bytes(b"old\n")
    file = RotatingFile(path, limit=100)
    file.write(b"new\n")
    file.close()
    assert path.read_bytes() == b"old\nnew\n"
    path.write_bytes(b"x" * 200)
    file = RotatingFile(path, limit=100)
    file.write(b"new\n")
    file.close()
    assert path.read_bytes() == b"new\n"
    assert path.with_name("node.log.1").stat().st_size == 200


async def test_a_log_that_cannot_be_written_is_told_once(said: Said, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file where the directory should be")
    code = "for n in range(3): print('WARNING', n, 'x' * 70_000, flush=True)"
    async with supervised(said, tmp_path / "log", [python("node", code)]):
        await said.line("node: WARNING 2")
    lost = [line for line in said if "is being lost" in line]
    assert lost == [
        f"node: what it says is being lost: {tmp_path / 'log' / 'node.log'} cannot be written. Is the disk full?"
    ]


def test_a_log_that_cannot_be_written_is_counted_not_raised(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file where the directory should be")
    file = RotatingFile(tmp_path / "log" / "node.log")
    file.write(b"12345")
    assert file.lost_bytes == 5


async def test_lines_are_cut_wherever_the_pieces_end() -> None:
    lines: list[str] = []
    data: list[bytes] = []
    reader = Lines(lines.append, data.append)
    text = b"one\n\ntwo \xff\nthree"
    for piece in (text[:2], text[2:5], text[5:]):
        reader.data_received(piece)
    reader.connection_lost(None)
    assert lines == ["one", "two �", "three"]
    assert b"".join(data) == text
    assert reader.closed.is_set()


async def test_a_line_without_end_is_held_within_bounds() -> None:
    lines: list[str] = []
    reader = Lines(lines.append, lambda data: None)
    for _ in range(100):
        reader.data_received(b"x" * 10_000)
    reader.data_received(b"\nnext\n")
    assert [len(line) for line in lines] == [8192, 4]

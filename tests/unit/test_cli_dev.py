from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from cli_kit import Answer, Cli, Request, Server, document, events
from headrace.cli import dev

VERSIONS = "/v1/functions/hello/versions"
LOGS = "/v1/functions/hello/logs"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def code(tmp_path: Path) -> Path:
    directory = tmp_path / "hello"
    directory.mkdir()
    (directory / "handler.py").write_text("1")
    return directory


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """What happens each time that `dev` looks again; after the last one somebody presses Ctrl-C."""

    def script(*steps: Callable[[], object], while_settling: Sequence[Callable[[], object]] = ()) -> None:
        waiting = list(steps)
        half_written = list(while_settling)

        def sleep(seconds: float) -> None:
            if seconds == dev._SETTLED_S:
                if half_written:
                    half_written.pop(0)()
                return
            if not waiting:
                raise KeyboardInterrupt
            waiting.pop(0)()

        monkeypatch.setattr(dev.time, "sleep", sleep)

    return script


def serve(server: Server) -> threading.Event:
    """A platform that takes every version; the event tells that somebody follows the log."""
    followed = threading.Event()
    numbers = iter(range(1, 100))

    def upload(_: Request) -> Answer:
        return document({"number": next(numbers), "state": "ready", "reason": None})

    def follow(request: Request) -> Answer:
        if "follow" not in request.query:
            return document({"items": [], "next": None})
        followed.set()
        problem = '{"code": "not_found", "detail": "the function is gone."}'
        return events(f"event: end\ndata: {problem}")

    server.on("POST", VERSIONS, upload)
    server.on("GET", LOGS, follow)
    server.on("GET", "/v1/functions/hello", document({"url": "http://127.0.0.1:7780/fn/hello"}))
    moved = {"alias": "live", "generation": 1, "traffic": {"1": 100}, "previous": {}}
    server.on("POST", "/v1/functions/hello/publish", document(moved))
    return followed


def test_dev_deploys_after_every_change(server: Server, code: Path, tmp_path: Path, looks: Callable[..., None]) -> None:
    followed = serve(server)
    looks(
        lambda: None,
        lambda: (code / "handler.py").write_text("22"),
        lambda: (code / "headrace.toml").write_text("memory_mb = 64"),
        lambda: followed.wait(10),
    )
    result = Cli(tmp_path / "home", server.url)("dev", str(code))
    assert result.code == 130
    deployed = [text for text in result.out.splitlines() if " is live" in text]
    assert [text.split()[0] for text in deployed] == ["hello@1", "hello@2", "hello@3"]
    uploads = server.seen("POST", VERSIONS)
    assert b'"memory_mb": 64' not in uploads[1].body
    assert b'"memory_mb": 64' in uploads[2].body
    assert followed.is_set()


def test_dev_tells_a_failure_and_waits_for_the_next_change(
    server: Server, code: Path, tmp_path: Path, looks: Callable[..., None]
) -> None:
    serve(server)
    looks(
        lambda: (code / "headrace.toml").write_text("memry_mb = 64"),
        lambda: (code / "headrace.toml").write_text("memory_mb = 64"),
        lambda: (code / "odd").symlink_to("nowhere"),
        (code / "odd").unlink,
    )
    result = Cli(tmp_path / "home", server.url)("dev", str(code))
    assert "did you mean memory_mb?" in result.err
    assert "odd is a link to nothing" in result.err
    assert result.out.count(" is live") == 3


def test_dev_with_a_wrong_start(server: Server, tmp_path: Path) -> None:
    result = Cli(tmp_path / "home", server.url)("dev", str(tmp_path / "none"))
    assert result.code == 2
    assert server.requests == []


def test_dev_waits_until_a_file_is_written(
    server: Server, code: Path, tmp_path: Path, looks: Callable[..., None]
) -> None:
    serve(server)
    handler = code / "handler.py"
    looks(lambda: handler.write_text(""), while_settling=[lambda: handler.write_text("22")])
    result = Cli(tmp_path / "home", server.url)("dev", str(code))
    assert result.code == 130
    assert len(server.seen("POST", VERSIONS)) == 2, "the empty state was deployed too"

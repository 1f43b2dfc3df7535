from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cli_kit import Cli
from headrace.cli import releases
from headrace.errors import HeadraceError

HEAVY = ("httpx", "rich", "sqlalchemy", "docker", "headrace.model", "headrace.settings", "asyncio")


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path, "http://127.0.0.1:9")


def test_help_names_every_command(cli: Cli, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli("--help").code == 0
    shown = capfd.readouterr().out
    wanted = (
        "up down doctor deploy dev invoke publish rollback traffic functions versions delete logs invocations metrics"
    )
    for name in [*wanted.split(), "token", "--install-completion", "--version"]:
        assert name in shown


@pytest.mark.parametrize("command", [[], ["deploy"], ["up"], ["token", "create"]])
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    """Answering at once is a matter of what is not imported."""
    code = (
        "import sys; from headrace.cli import app; from headrace.cli.output import Output; "
        "from headrace.cli.session import Session; "
        f"code = app.run({[*command, '--help']!r}, Session({{}}, Output(sys.stdin, sys.stdout, sys.stderr))); "
        f"print(code, [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "0 []"


def test_version(cli: Cli, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli("--version").code == 0
    assert capfd.readouterr().out.startswith("headrace 0.")


def test_completion_script(cli: Cli) -> None:
    environ = {"_HEADRACE_COMPLETE": "complete_bash", "COMP_WORDS": "headrace rol", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "headrace.cli.app"], env=environ, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "rollback"


@pytest.mark.parametrize(
    "arguments",
    [
        ["deplyo"],
        ["deploy", "--no-such-option"],
        ["publish", "hello"],
        ["publish", "hello", "one"],
        ["publish", "hello", "0"],
        ["rollback", "hello", "--to", "x"],
        ["logs", "hello", "--level", "loud"],
        ["token", "create", "ci", "--scope", "everything"],
        ["token", "create", "ci"],
        ["up", "--driver", "podman"],
    ],
)
def test_wrong_use_is_exit_code_2(cli: Cli, arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert cli(*arguments).code == 2
    assert "Error" in capfd.readouterr().err


def test_unknown_setting_is_named_with_the_fix(cli: Cli) -> None:
    result = cli("functions", HEADRACE_PORTT="1")
    assert result.code == 2
    assert "HEADRACE_PORTT is not a setting" in result.err
    assert result.out == ""


def test_malformed_setting(cli: Cli) -> None:
    result = cli("functions", HEADRACE_PORT="many")
    assert result.code == 2
    assert "HEADRACE_PORT" in result.err


def test_a_mistake_of_ours_is_told_without_a_traceback(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(releases, "functions", fail)
    result = cli("functions")
    assert result.code == 1
    assert "Traceback" not in result.err
    path = Path(result.err.split("Please report it, with ")[1].rstrip().rstrip("."))
    assert "surprise" in path.read_text()
    path.unlink()


def test_a_failing_system_call_is_told_without_a_traceback(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "/somewhere")

    monkeypatch.setattr(releases, "functions", fail)
    result = cli("functions")
    assert result.code == 1
    assert "/somewhere: No space left on device" in result.err


def test_interrupt(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(releases, "functions", interrupt)
    assert cli("functions").code == 130


def test_platform_failures_are_exit_code_1(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise HeadraceError("the wheel is stuck: free it.")

    monkeypatch.setattr(releases, "functions", fail)
    result = cli("functions")
    assert result.code == 1
    assert result.err == "Error: Internal error (the fault of the platform).\n  the wheel is stuck: free it.\n"


def test_nothing_answers(cli: Cli) -> None:
    result = cli("functions")
    assert result.code == 1
    assert "Headrace does not answer at http://127.0.0.1:9" in result.err
    assert "headrace up" in result.err

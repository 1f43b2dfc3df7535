"""What a build takes from this machine, and what it shows of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace import runtimes
from headrace.drivers import install
from headrace.drivers.install import Lines, package_source
from headrace.errors import SettingsError
from headrace.settings import Settings

SECRET_INDEX = "https://user:secret@index.example:8443/simple"
PYTHON = runtimes.get("python")
HIDDEN = tuple(install._addresses(SECRET_INDEX))


def collected(hidden: tuple[str, ...] = ()) -> tuple[Lines, list[str]]:
    shown: list[str] = []
    return Lines(hidden, shown.append, ("Looking in indexes:",), ("ERROR:",)), shown


@given(st.binary(max_size=60), st.data())
def test_lines_are_the_same_wherever_the_output_is_cut(text: bytes, data: st.DataObject) -> None:
    whole, expected = collected()
    whole.feed(text)
    whole.end()
    pieces, shown = collected()
    rest = text
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        pieces.feed(rest[:size])
        rest = rest[size:]
    pieces.end()
    assert shown == expected


def test_a_line_without_end_is_cut() -> None:
    lines, shown = collected()
    for _ in range(100):
        lines.feed(b"x" * 1000)
    lines.end()
    assert len(shown) == 20
    assert max(map(len, shown)) <= 4000


@pytest.mark.parametrize(
    "line",
    [
        f"  Downloading {SECRET_INDEX}/pillow.whl (3 MB)",
        "  Downloading https://index.example:8443/files/pillow.whl",
        "ERROR: HTTPSConnectionPool(host='index.example:8443'): Max retries exceeded",
        f"Looking in indexes: {SECRET_INDEX}",
    ],
)
def test_addresses_of_the_index_are_never_shown(line: str) -> None:
    lines, shown = collected(HIDDEN)
    lines.feed(line.encode() + b"\n")
    assert "index.example" not in "".join([*shown, lines.reason()])
    assert "secret" not in "".join([*shown, lines.reason()])


def test_the_reason_of_a_failure_is_what_the_installer_called_an_error() -> None:
    lines, _ = collected()
    lines.feed(b"Collecting nothing\nERROR: No matching distribution found for nothing\nbye\n")
    assert lines.reason() == "No matching distribution found for nothing"
    lines, _ = collected()
    assert lines.reason() == "the installer printed nothing"


@pytest.mark.parametrize(
    ("runtime", "output", "reason"),
    [
        (
            "python",
            "  error: subprocess-exited-with-error\n    RuntimeError: no libx\n    [end of output]\n"
            "  note: This error originates from a subprocess\nERROR: Failed building wheel for x\n",
            "RuntimeError: no libx",
        ),
        (
            "python",
            "    error: [Errno 2] No such file: 'gcc'\nERROR: Could not build wheels for x\n",
            "No such file: 'gcc'",
        ),
        (
            "python",
            "ERROR: Ignored the following versions: 1\nERROR: No matching distribution found for x\n",
            "No matching",
        ),
        ("node", "npm error code 4\nnpm error path /out/x\nnpm error command failed\nnpm error it broke\n", "it broke"),
        ("shell", "Reading package lists...\nE: Unable to locate package x\n", "Unable to locate package x"),
    ],
)
def test_the_reason_is_the_word_that_helps(runtime: str, output: str, reason: str) -> None:
    rules = runtimes.get(runtime).dependencies
    assert rules is not None
    lines = Lines((), lambda _: None, rules.noise, rules.errors, rules.vague)
    lines.feed(output.encode())
    assert lines.reason().removeprefix("[Errno 2] ").startswith(reason)


async def test_the_machine_s_own_pip_settings_reach_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", SECRET_INDEX)
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "file:///srv/wheels https://more.example/simple")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    source = await package_source(Settings(), PYTHON, "/out")
    assert source.env["PIP_INDEX_URL"] == SECRET_INDEX
    assert source.env["PIP_EXTRA_INDEX_URL"] == "https://more.example/simple"
    assert source.env["https_proxy"] == "http://proxy.example:3128"
    assert SECRET_INDEX in source.hidden
    assert "more.example" in source.hidden


async def test_settings_win_over_the_machine_s_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", SECRET_INDEX)
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", SECRET_INDEX)
    bundle = tmp_path / "ca.pem"
    bundle.write_text("certificates")
    bundle.chmod(0o644)
    settings = Settings(runtimes={"PIP_INDEX_URL": "https://own.example/simple"}, build_ca_bundle=str(bundle))
    source = await package_source(settings, PYTHON, "/out")
    assert source.env["PIP_INDEX_URL"] == "https://own.example/simple"
    assert "PIP_EXTRA_INDEX_URL" not in source.env
    assert source.ca_bundle == bundle
    trusting = source.trusting("/inside.pem")
    assert {name for name, value in trusting.items() if value == "/inside.pem"} == {
        *("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"),
    }


async def test_a_ca_bundle_that_the_sandbox_could_not_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="HEADRACE_BUILD_CA_BUNDLE"):
        await package_source(Settings(build_ca_bundle=str(tmp_path / "none.pem")), PYTHON, "/out")
    bundle = tmp_path / "ca.pem"
    bundle.write_text("certificates")
    bundle.chmod(0o600)
    with pytest.raises(SettingsError, match="chmod 644"):
        await package_source(Settings(build_ca_bundle=str(bundle)), PYTHON, "/out")

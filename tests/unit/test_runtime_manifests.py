"""The manifests: what is in them, what is refused, and that the platform knows no language by itself."""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

import pytest

import headrace
from headrace import runtimes
from headrace.errors import Invalid, SettingsError
from headrace.fleet.yard import assemble_shim
from headrace.model import DEFAULT_RUNTIME, VersionConfig
from headrace.releases import dependencies
from headrace.settings import Settings, load

PACKAGE = Path(headrace.__file__).parent
LANGUAGE = re.compile(r"\b(?:[Pp]ython3?|[Nn]ode\.?[Jj][Ss]|npm|pip|perl|bash|node_modules)\b|\.(?:py|m?js|sh)\b")


def test_every_folder_with_a_manifest_is_a_runtime() -> None:
    assert {"node", "python", "shell"} <= set(runtimes.names())
    for name in runtimes.names():
        found = runtimes.get(name)
        assert all((found.directory / file).exists() for file in found.shim.files)
        for command in (found.image.finish, found.code.check, found.dependencies.source if found.dependencies else ()):
            for argument in command:
                if argument.startswith("{runtime}/"):
                    assert Path(runtimes.filled([argument], {"runtime": found.directory})[0]).is_file()
    assert DEFAULT_RUNTIME in runtimes.names()


@pytest.mark.parametrize("name", ["cobol", "../python", "", "Python", "python/"])
def test_an_unknown_runtime_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(Invalid, match=r"node or .*python"):
        runtimes.get(name)


def test_what_a_runtime_can_not_do_is_refused() -> None:
    with pytest.raises(Invalid, match="kind 'asgi': the runtime node takes auto or handler"):
        runtimes.check(VersionConfig(runtime="node", kind="asgi"))
    with pytest.raises(Invalid, match="memory_mb 48: an instance of node needs 64"):
        runtimes.check(VersionConfig(runtime="node", memory_mb=48))
    assert runtimes.check(VersionConfig()).name == DEFAULT_RUNTIME


@pytest.mark.parametrize("text", ["", "nonsense", 'title = "X"\nunknown = 1'])
def test_a_broken_manifest_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "runtime.toml").write_text(text)
    monkeypatch.setattr(runtimes, "share", lambda _: tmp_path)
    with pytest.raises(SettingsError, match=r"broken/runtime\.toml"):
        runtimes.get("broken")


def test_images_are_named_by_recipe_or_by_setting() -> None:
    node = runtimes.get("node")
    assert re.fullmatch(r"headrace-node:[0-9a-f]{12}", node.image_name(Settings()))
    other = node.model_copy(update={"image": node.image.model_copy(update={"packages": ("more",)})})
    assert other.image_name(Settings()) != node.image_name(Settings())
    chosen = load({"HEADRACE_BASE_IMAGE_NODE": "mine:1"}, runtimes.declared())
    assert node.image_name(chosen) == "mine:1"
    assert runtimes.get("python").image_name(chosen).startswith("headrace-python:")


def test_settings_of_runtimes_travel_on() -> None:
    environ = {"HEADRACE_NPM_REGISTRY": "https://own.example", "HEADRACE_PIP_INDEX_URL": "https://own.example/simple"}
    settings = load(environ, runtimes.declared())
    assert settings.environment() == environ
    assert "own.example" not in repr(settings)
    with pytest.raises(SettingsError, match=r"IMAGE_COBOL is not a setting.*IMAGE_NODE"):
        load({"HEADRACE_BASE_IMAGE_COBOL": "x"}, runtimes.declared())


@pytest.mark.parametrize(
    ("package", "asks", "local"),
    [
        ('{"type": "module"}', False, False),
        ('{"dependencies": {}}', False, False),
        ('{"devDependencies": {"jest": "1"}}', False, False),
        ('{"dependencies": {"qrcode": "^1.5.0"}}', True, False),
        ('{"optionalDependencies": {"fsevents": "*"}}', True, False),
        ('{"dependencies": {"a": "git+https://host.example/a.git", "b": "npm:c@1"}}', True, False),
        ('{"dependencies": {"a": "file:lib/a"}}', True, True),
        ('{"dependencies": {"a": "./lib/a"}}', True, True),
        ('{"dependencies": {"a": "1"}, "workspaces": ["packages/*"]}', True, True),
        ('{"dependencies": {"a": "1"}, "scripts": {"test": "x", "postinstall": "node build.js"}}', True, True),
        ('{"dependencies": {"a": "1"}, "scripts": {"test": "x"}, "main": "index.js"}', True, False),
    ],
)
def test_what_a_package_json_asks_for(tmp_path: Path, package: str, asks: bool, local: bool) -> None:
    (tmp_path / "package.json").write_text(package)
    wanted = dependencies.read(tmp_path, runtimes.get("node").dependencies)
    assert (wanted is not None) is asks
    if wanted is not None:
        assert wanted.local is local


def test_a_layer_is_as_its_files_say(tmp_path: Path) -> None:
    rules = runtimes.get("node").dependencies
    (tmp_path / "package.json").write_text('{"dependencies": {"a": "1"}}')

    def layer(image: str = "image:1", code: str = "c") -> str:
        wanted = dependencies.read(tmp_path, rules)
        assert wanted is not None
        return wanted.layer("node", image, code)

    first = layer()
    assert layer(code="other code") == first
    assert layer(image="image:2") != first
    (tmp_path / "package-lock.json").write_text("{}")
    assert layer() != first


def test_a_shim_is_laid_out_once_with_all_that_its_manifest_names(tmp_path: Path) -> None:
    for name in runtimes.names():
        laid_out = assemble_shim(name, tmp_path)
        assert all((laid_out / file).exists() for file in runtimes.get(name).shim.files)
        made = laid_out.stat().st_ino
        assert assemble_shim(name, tmp_path).stat().st_ino == made
    compiled = next(tmp_path.glob("python-*/headrace_shim/__pycache__/wire.*.pyc"))
    assert compiled.read_bytes()[4:8] == b"\1\0\0\0", "by hash and unchecked: whatever the time of its source is"


def test_the_platform_names_no_language() -> None:
    """But for the default, which the outside contract fixes, the examples of the API and the doctor's own version."""
    dependencies = [found for name in runtimes.names() if (found := runtimes.get(name).dependencies) is not None]
    words = {word for rules in dependencies for word in (rules.file, *rules.locks, rules.setting, rules.setting_env)}
    names = re.compile("|".join([LANGUAGE.pattern, *map(re.escape, sorted(words))]))
    found = {
        f"{path.relative_to(PACKAGE)}: {said[0]}"
        for path in PACKAGE.rglob("*.py")
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
        if token.type == tokenize.STRING and not token.string.startswith('"""') and (said := names.search(token.string))
    }
    assert found == {
        "model.py: python",
        "main.py: python",  # how a role is started
        "cli/doctor.py: Python",
        "control/invocations.py: .py",
        "control/versions.py: .py",
    }

"""What is known of an image and of a Dockerfile before anything runs; and the versions that bring one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from headrace import runtimes
from headrace.cli import deploy, project
from headrace.drivers import dockerfile, sandbox
from headrace.drivers.base import BuildSpec, InstanceSpec
from headrace.drivers.guest import GuestImage, guest_image
from headrace.drivers.process import ProcessDriver
from headrace.errors import BuildFailed, BundleRejected
from headrace.fleet.yard import load_header
from headrace.model import VersionConfig, VersionState
from headrace.settings import Settings
from release_kit import kit

PASSWD = "root:x:0:0::/:/bin/sh\nboss:x:0:0::/:/bin/sh\napp:x:1000:50::/home/app:/bin/sh\nodd line\n"
GROUP = "root:x:0:\nstaff:x:7:app\n"
INSPECTED: dict[str, Any] = {
    "Id": "sha256:1",
    "Os": "linux",
    "Architecture": "amd64",
    "Config": {"Entrypoint": ["/e"], "Cmd": ["c"], "Env": ["A=b=c", "EMPTY="], "User": "app", "WorkingDir": "/w"},
}


@pytest.fixture(autouse=True)
def this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")


def inspected(**config: Any) -> dict[str, Any]:
    return INSPECTED | {"Config": INSPECTED["Config"] | config}


def test_an_image_is_what_its_inspection_says(tmp_path: Path) -> None:
    image = guest_image(inspected(Volumes={"/v": {}}), PASSWD, GROUP)
    assert image == GuestImage("sha256:1", ["/e", "c"], {"A": "b=c", "EMPTY": ""}, "1000:50", "/w", ["/v"])
    layer = image.write(tmp_path)
    assert GuestImage.read(tmp_path) == image
    assert guest_image(inspected(Cmd=["d"]), PASSWD).write(tmp_path) != layer


@pytest.mark.parametrize(
    ("user", "numbers"),
    [("app:staff", "1000:7"), ("1000", "1000:50"), ("4711", "4711:0"), ("4711:8", "4711:8"), ("app:0", "1000:0")],
)
def test_users_are_numbers(user: str, numbers: str) -> None:
    assert guest_image(inspected(User=user), PASSWD, GROUP).user == numbers


@pytest.mark.parametrize("user", ["nobody-here", "app:none", "4711:none", "-1", "99999999999", "app:99999999999"])
def test_users_that_are_nobody_are_refused(user: str) -> None:
    with pytest.raises(BuildFailed, match="USER"):
        guest_image(inspected(User=user), PASSWD, GROUP)


@pytest.mark.parametrize("user", ["", "root", "0", "0:0", "root:staff", "boss", "00"])
def test_root_becomes_the_sandboxs_own_user(user: str, tmp_path: Path) -> None:
    image = guest_image(inspected(User=user, Volumes={"/data": {}, "/tmp": {}}), PASSWD, GROUP)
    spec = InstanceSpec("a1", "image", 128, 1.0, "none", tmp_path, tmp_path, None, tmp_path)
    config = sandbox.guest_config(spec, image, runtimes.get("image").shim.command, "home", tmp_path / "carried")
    assert config["User"] == "65532:65532" and config["HostConfig"]["NetworkMode"] == "none"
    assert config["Entrypoint"][0] == "/carried/loader" and config["Image"] == "sha256:1"
    mounts = {mount["Target"]: mount for mount in config["HostConfig"]["Mounts"]}
    assert mounts["/carried"]["ReadOnly"] and mounts.keys() == {"/run/headrace", "/shim", "/layer", "/carried"}
    tmpfs = config["HostConfig"]["Tmpfs"]
    assert tmpfs.keys() == {"/tmp", "/data"} and "mode=1777" in tmpfs["/tmp"]
    assert "size=32m" in tmpfs["/data"] and "uid=65532,gid=65532" in tmpfs["/data"]
    assert config["HostConfig"]["ReadonlyRootfs"] and config["HostConfig"]["CapDrop"] == ["ALL"]
    assert "A=b=c" not in config["Env"]  # the image's own is given to its program alone


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (inspected(Entrypoint=None, Cmd=None), "neither ENTRYPOINT nor CMD"),
        (INSPECTED | {"Architecture": "arm64"}, "the image is for linux/arm64 and this machine is linux/amd64"),
        (INSPECTED | {"Os": "windows"}, "the image is for windows"),
    ],
)
def test_images_that_can_not_run_are_refused(found: dict[str, Any], told: str) -> None:
    with pytest.raises(BuildFailed, match=told):
        guest_image(found)


def test_instructions_are_found_as_the_builder_finds_them() -> None:
    text = '# escape=\\\nfrom a as b\n\nRUN one \\\n  # comment\n  two\nONBUILD\tadd ["x", "/y"]\n#ADD z\n'
    found = list(dockerfile.instructions(text, "\\"))
    assert found[0] == (2, ["FROM", "a", "as", "b"])
    assert found[1] == (4, ["RUN", "one", "two"])
    assert found[2][1][0] == "ADD" and {"x", "/y"} <= set(found[2][1]) and len(found) == 3


@pytest.mark.parametrize(
    "line",
    [
        "ADD http://127.0.0.1/ /x",
        "add \\\n  HTTPS://host/x /x",
        'ONBUILD ADD ["http://host/x", "/x"]',
        "ADD $WHERE /x",
        "ADD --chown=1 ${WHERE} /x",
        "ADD git@host:repository /x",
        "# escape=`\nFROM a\nADD `\nhttp://host/x /x",
        "# syntax=x\n# escape=`\nFROM a\nADD `\nhttp://host/x /x",
        "# escape=`\nRUN echo \\\nADD http://host/x /x",
        "ADD\vhttp://host/x /x",
        "  Add \\  \nhttp://host/x /x",
    ],
)
def test_the_engine_fetches_nothing_for_a_build(tmp_path: Path, line: str) -> None:
    (tmp_path / "Dockerfile").write_text(line)
    with pytest.raises(BuildFailed, match="ADD of an address or a variable is refused"):
        dockerfile.read(tmp_path)


@pytest.mark.parametrize(
    "text", ["FROM a\nADD files.tar /x\nRUN curl http://host/$X\nCOPY $X /y\n", "FROM a\n# ADD $X"]
)
def test_other_lines_may_name_addresses(tmp_path: Path, text: str) -> None:
    (tmp_path / "Dockerfile").write_text(text)
    assert dockerfile.read(tmp_path) == text


@pytest.mark.parametrize(
    "values",
    [
        {"image": "a", "runtime": "node"},
        {"image": "a", "handler": "a.b"},
        {"runtime": "image", "kind": "asgi"},
        {"port": 80},
        {"ready_path": "/x"},
        {"start_timeout_s": 3},
        {"image": "-v /:/host"},
        {"image": "a b"},
        {"image": "a/../../containers/b"},
        {"image": "../a"},
        {"image": "a@sha256:00"},
        {"image": "A"},
        {"image": "a\n"},
        {"runtime": "image", "ready_path": "no/slash"},
        {"runtime": "image", "ready_path": "/a\r\nhost: b"},
        {"runtime": "image", "start_timeout_s": 41},
    ],
)
def test_configs_that_contradict_themselves(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        VersionConfig(**values)


def test_an_image_in_the_config_is_the_runtime() -> None:
    config = VersionConfig(image="registry.example:5000/a/b:1")
    assert config.runtime == "image" and not config.pinned
    assert VersionConfig.model_validate(config.model_dump(mode="json")) == config
    assert VersionConfig(image=f"localhost/a_b@sha256:{'0' * 64}").pinned and VersionConfig(runtime="image").pinned


def test_a_folder_is_deployed_as_it_is_meant(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM a\n")
    assert project.read_config(tmp_path, None, [], []) == {"runtime": "image"}
    (tmp_path / "handler.py").write_text("")
    assert "runtime" not in project.read_config(tmp_path, None, [], [])
    named = project.read_config(tmp_path, None, ["image=a:1"], [])
    assert named == {"image": "a:1", "runtime": "image"}
    sent: list[Any] = []

    class Control:
        def upload(self, path: str, bundle: Any, config: Any, **_: Any) -> tuple[dict[str, Any], bool]:
            sent.append((bundle, config))
            return {}, True

    deployment = deploy.Deployment(tmp_path, "f", "default", named, None)
    deploy._upload(Control(), deployment, None)  # type: ignore[arg-type]
    assert sent == [(None, named)]


async def test_a_driver_without_containers_refuses_images_at_once(tmp_path: Path) -> None:
    driver = ProcessDriver(Settings(home=tmp_path / "home", driver="process"))
    async with kit(tmp_path / "home") as world:
        await world.node()
        world.driver.prepare = driver.prepare  # type: ignore[method-assign]
        config = VersionConfig(image="a:1")
        stored = await world.bundles.from_files({}, config)
        version, _ = await world.releases.submit("default", "f", stored, config)
        await world.build()
        assert await world.state(version) is VersionState.FAILED
        assert await world.reason(version) == "the runtime image needs the docker driver."
    await driver.close()


async def test_a_version_is_pinned_to_its_image(tmp_path: Path) -> None:
    async def pin(spec: BuildSpec, say: Callable[[str], None]) -> None:
        say(f"asked for {spec.image}")
        guest_image(inspected(), PASSWD).write(spec.out_dir)

    async with kit(tmp_path / "home") as world:
        node = await world.node()
        node.answers["probe"] = _image_probe
        world.driver.engine.installer = pin
        config = VersionConfig(image="a:1")
        stored = await world.bundles.from_files({}, config)
        first, _ = await world.releases.submit("default", "f", stored, config)
        second, created = await world.releases.submit("default", "f", stored, config)
        assert created and second.number == first.number + 1  # the tag may have moved
        await world.build()
        await world.build()
        built = await world.versions.by_id(first.id)
        assert built.state is VersionState.READY and built.layer is not None
        assert (await world.versions.by_id(second.id)).layer == built.layer
        assert GuestImage.read(world.settings.layer_dir(built.layer)).id == "sha256:1"
        log = await world.log(first)
        assert "asked for a:1" in log and "Ready: the image serves" in log
        header = load_header(built)
        assert header["image"] == {"port": 8080, "ready_path": None, "start_timeout_s": 30.0}
        with pytest.raises(BundleRejected, match="no Dockerfile"):
            await world.bundles.from_files({"server.py": "x"}, VersionConfig(runtime="image"))
        with pytest.raises(BundleRejected, match="To have its Dockerfile built instead, set `runtime` to 'image'"):
            await world.bundles.from_files({"Dockerfile": "FROM a"}, VersionConfig())


async def _image_probe(_: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "image", "ms": 5.0}

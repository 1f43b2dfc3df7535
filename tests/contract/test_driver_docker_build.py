"""Builds run whatever a package's author wrote: inside the same walls, and gone when nobody waits for them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from driver_kit import PATIENCE_S, Kit
from headrace.drivers import result
from headrace.drivers.base import BuildSpec, Driver
from headrace.errors import BuildFailed

# A package in the bundle itself, whose build backend is the code under test: no index is asked.
BACKEND = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


def hostile(kit: Kit, backend: str, **changes: Any) -> BuildSpec:
    spec = kit.build_spec("./package", **changes)
    package = spec.code_dir / "package"
    package.mkdir()
    (package / "pyproject.toml").write_text(BACKEND)
    (package / "backend.py").write_text(backend)
    return spec


def containers(kit: Kit, engine: Any) -> list[Any]:
    found: list[Any] = engine.containers(all=True, filters={"label": [f"headrace.home={kit.settings.home_tag}"]})
    return found


async def until_container(kit: Kit, engine: Any, *, there: bool) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while bool(await asyncio.to_thread(containers, kit, engine)) != there:
            await asyncio.sleep(0.05)


async def test_the_code_of_a_package_is_locked_up(kit: Kit, driver: Driver) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    spec = hostile(
        kit,
        """
import json, os, socket, sys
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
def refused(path):
    try:
        open(path, "w").close()
    except OSError as error:
        return error.errno
    return 0
def reached(place):
    try:
        socket.create_connection((place, PORT), 2).close()
    except OSError:
        return False
    return True
gateway = next(line.split()[2] for line in open("/proc/net/route") if line.split()[1] == "00000000")
host = socket.inet_ntoa(int(gateway, 16).to_bytes(4, "little"))
kernel = ("overlay", "proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2")
ours = ("/etc/resolv.conf", "/etc/hostname", "/etc/hosts", "/run/ca-bundle.pem")
mounts = [line.split() for line in open("/proc/self/mountinfo")]
mounted = sorted(words[4] for words in mounts if words[words.index("-") + 1] not in kernel and words[4] not in ours)
engine = [path for path in ("/run/docker.sock", "/var/run/docker.sock", "/run/containerd") if os.path.exists(path)]
print("PROBE", json.dumps({"mounted": mounted, "engine": engine, "reached": [reached("127.0.0.1"), reached(host)],
    "uid": os.getuid(), "caps": int(status["CapEff"], 16), "env": sorted(os.environ),
    "out": refused("/out/x"), "refused": [refused(place + "/x") for place in ("/function", "/usr", "/etc", "/")]}))
sys.exit(1)
""".replace("PORT", str(listener.getsockname()[1])),
    )
    lines: list[str] = []
    with listener, pytest.raises(BuildFailed):
        await driver.build(spec, lines.append)
    found = json.loads(next(line.partition("PROBE ")[2] for line in lines if "PROBE {" in line))
    assert (found["uid"], found["caps"], found["out"]) == (65532, 0, 0)
    assert all(found["refused"])
    assert (found["mounted"], found["engine"], found["reached"]) == (["/function", "/out"], [], [False, False])
    assert not [name for name in found["env"] if name.startswith("HEADRACE_")]


async def test_a_build_that_needs_too_much_memory_says_so(kit: Kit, driver: Driver) -> None:
    spec = hostile(kit, "hoard = []\nwhile True: hoard.append(bytearray(b'x' * (1 << 20)))", memory_mb=128)
    with pytest.raises(BuildFailed, match="more than 128 MiB"):
        await driver.build(spec, lambda _: None)


async def test_a_result_that_grows_too_large_ends_the_build(
    kit: Kit, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(result, "LARGEST_RESULT", 5 << 20)
    spec = hostile(kit, "import time\nopen('/out/big', 'wb').write(bytes(20 << 20))\ntime.sleep(1000)")
    with pytest.raises(BuildFailed, match="dependencies take more than"):
        await driver.build(spec, lambda _: None)


async def test_a_program_that_fills_the_disk_with_what_it_deletes_is_stopped(
    kit: Kit, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(result, "LARGEST_RESULT", 40 << 20)
    backend = """
import os, signal, time
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    os.posix_fallocate(os.open("/out/large", os.O_CREAT | os.O_WRONLY), 0, (1 << 30) + 1)
    raise SystemExit("one file may be as large as it likes")
except OSError:
    pass
for number in range(40):
    file = os.open("/out/gone", os.O_CREAT | os.O_WRONLY)
    os.unlink("/out/gone")
    os.posix_fallocate(file, 0, 30 << 20)
time.sleep(1000)
"""
    with pytest.raises(BuildFailed, match=r"the disk lost .* one of their programs fills it"):
        await driver.build(hostile(kit, backend), lambda _: None)


async def test_what_is_left_for_a_layer_is_files_that_everybody_can_read(kit: Kit, driver: Driver) -> None:
    backend = """
import os, socket, zipfile
def get_requires_for_build_wheel(config=None): return []
def build_wheel(directory, config=None, metadata=None):
    os.umask(0o077)
    os.makedirs("/out/closed/in")
    open("/out/closed/in/program", "w").close()
    os.chmod("/out/closed/in/program", 0o6700)
    os.chmod("/out/closed/in", 0)
    os.chmod("/out/closed", 0)
    os.mkfifo("/out/pipe")
    socket.socket(socket.AF_UNIX).bind("/out/socket")
    os.symlink("/etc/shadow", "/out/link")
    with zipfile.ZipFile(directory + "/odd-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("odd-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: odd\\nVersion: 1\\n")
        wheel.writestr("odd-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("odd-1.dist-info/RECORD", "")
    return "odd-1-py3-none-any.whl"
"""
    spec = hostile(kit, backend)
    await driver.build(spec, lambda _: None)
    modes = {path.name: path.lstat().st_mode for path in spec.out_dir.rglob("*")}
    assert (modes["closed"], modes["in"], modes["program"]) == (0o040755, 0o040755, 0o100755)
    assert "pipe" not in modes and "socket" not in modes and (spec.out_dir / "link").is_symlink()


async def test_nothing_is_left_of_a_cancelled_build(kit: Kit, driver: Driver, engine: Any) -> None:
    building = asyncio.ensure_future(driver.build(hostile(kit, "import time\ntime.sleep(1000)"), lambda _: None))
    await until_container(kit, engine, there=True)
    building.cancel()
    await asyncio.wait([building])
    assert building.cancelled()
    assert containers(kit, engine) == []


async def test_a_build_of_a_killed_process_is_removed_by_the_next_prepare(
    kit: Kit, driver: Driver, engine: Any
) -> None:
    spec = hostile(kit, "import time\ntime.sleep(1000)")
    program = f"""
import asyncio, pathlib
from headrace.drivers.base import BuildSpec
from headrace.drivers.docker_engine import DockerDriver
from headrace.settings import Settings
spec = BuildSpec({spec.id!r}, "python", pathlib.Path({str(spec.code_dir)!r}), pathlib.Path({str(spec.out_dir)!r}))
asyncio.run(DockerDriver(Settings(home=pathlib.Path({str(kit.home)!r}))).build(spec, print))
"""
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.DEVNULL, env={"PATH": os.defpath}
    )
    try:
        await until_container(kit, engine, there=True)
        await driver.prepare("python")
        assert len(containers(kit, engine)) == 1, "its process lives, so it stays"
    finally:
        worker.send_signal(signal.SIGKILL)
        await worker.wait()
    await driver.prepare("python")
    assert containers(kit, engine) == []


async def test_a_layer_can_be_read_and_imported_by_an_instance(kit: Kit, driver: Driver) -> None:
    build = kit.build_spec("idna==3.10")
    await driver.build(build, lambda _: None)
    probe = (
        "import sys, os\nsys.path.append(os.environ['HEADRACE_LAYER'])\nimport idna\n"
        "link.sendall(idna.__file__.encode() + b'\\n')"
    )
    spec = await kit.spec("probe", probe=probe, layer_dir=build.out_dir)
    await driver.start(spec)
    link = await kit.listener(spec).dialled()
    assert Path((await link.readline()).decode().strip()) == Path("/layer/idna/__init__.py")

"""The walls of a container, tried from inside."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from typing import Any

import pytest

from driver_kit import PATIENCE_S, Kit, until
from headrace.drivers.base import Driver, InstanceSpec

PREFIX = """
import errno, glob, json, os, resource, socket, subprocess, sys, time
def answer(value):
    link.sendall(json.dumps(value).encode() + b"\\n")
def refused(work):
    try:
        work()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
"""


@pytest.fixture
async def driver(kit: Kit) -> Driver:
    driver = kit.driver()
    await driver.prepare("python")
    return driver


async def probing(kit: Kit, driver: Driver, probe: str, **changes: Any) -> tuple[InstanceSpec, asyncio.StreamReader]:
    spec = await kit.spec("probe", probe=PREFIX + probe, **changes)
    await driver.start(spec)
    return spec, await kit.listener(spec).dialled()


async def said(link: asyncio.StreamReader) -> Any:
    async with asyncio.timeout(PATIENCE_S):
        return json.loads(await link.readline())


def container(kit: Kit, spec: InstanceSpec) -> str:
    return f"headrace-{kit.settings.home_tag}-{spec.id}"


async def test_it_has_no_privileges_and_no_way_to_gain_any(kit: Kit, driver: Driver) -> None:
    _, link = await probing(
        kit,
        driver,
        """
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
wanted = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Uid", "Gid", "Groups")
setuid = [path for top in ("/bin", "/sbin", "/usr", "/opt") for root, _, names in os.walk(top)
          for path in (os.path.join(root, name) for name in names)
          if not os.path.islink(path) and os.stat(path).st_mode & 0o6000]
answer({"status": {name: status[name].split() for name in wanted}, "setuid": setuid,
        "root": refused(lambda: os.setuid(0)), "mount": refused(lambda: os.chroot("/tmp")),
        "mknod": refused(lambda: os.mknod("/tmp/sda", 0o60666, os.makedev(8, 0)))})
""",
    )
    found = await said(link)
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(found["status"][name][0], 16) == 0, name
    assert found["status"]["NoNewPrivs"] == ["1"]
    assert found["status"]["Seccomp"] == ["2"]
    assert set(found["status"]["Uid"] + found["status"]["Gid"]) == {"65532"}
    assert found["status"]["Groups"] in ([], ["65532"])
    assert found["setuid"] == []
    assert (found["root"], found["mount"], found["mknod"]) == ("EPERM", "EPERM", "EPERM")


async def test_nothing_can_be_written_but_small_memory_backed_places(kit: Kit, driver: Driver) -> None:
    layer = kit.home / "layer"
    layer.mkdir()
    _, link = await probing(
        kit,
        driver,
        """
places = ["/", "/etc", "/usr/bin", "/root", "/var/tmp", "/dev", "/sys", "/function", "/layer", "/shim", "/run/headrace"]
answer({"refused": {place: refused(lambda: open(place + "/new", "w")) for place in places},
        "kernel": refused(lambda: open("/proc/sys/kernel/hostname", "w")),
        "writable": sorted({path for path in (line.split()[4] for line in open("/proc/self/mountinfo"))
                            if os.path.isdir(path) and os.access(path, os.W_OK)})})
""",
        layer_dir=layer,
    )
    found = await said(link)
    assert set(found["refused"].values()) <= {"EROFS", "EACCES"}, found
    assert found["kernel"] in {"EROFS", "EACCES"}
    assert found["writable"] == ["/dev/mqueue", "/dev/shm", "/tmp"]


async def test_tmp_is_full_before_memory_is(kit: Kit, driver: Driver) -> None:
    _, link = await probing(
        kit,
        driver,
        """
size = 0
def fill():
    global size
    with open("/tmp/big", "wb", buffering=0) as file:
        while True:
            size += file.write(bytes(1 << 20))
how = refused(fill)
answer({"how": how, "mib": size >> 20})
""",
    )
    found = await said(link)
    assert found["how"] == "ENOSPC"
    assert 32 <= found["mib"] <= 64


async def test_limits_are_as_asked_and_change_while_it_runs(kit: Kit, driver: Driver, engine: Any) -> None:
    spec, link = await probing(
        kit,
        driver,
        """
answer({"files": resource.getrlimit(resource.RLIMIT_NOFILE), "core": resource.getrlimit(resource.RLIMIT_CORE)})
""",
        memory_mb=96,
        cpus=0.5,
    )
    assert await said(link) == {"files": [4096, 4096], "core": [0, 0]}
    limits = engine.inspect_container(container(kit, spec))["HostConfig"]
    assert (limits["Memory"], limits["MemorySwap"]) == (96 << 20, 96 << 20)
    assert limits["CpuQuota"] == limits["CpuPeriod"] // 2
    await driver.adjust(spec.id, memory_mb=300, cpus=2.0)
    limits = engine.inspect_container(container(kit, spec))["HostConfig"]
    assert (limits["Memory"], limits["MemorySwap"]) == (300 << 20, 300 << 20)
    assert limits["CpuQuota"] == 2 * limits["CpuPeriod"]


async def test_raised_memory_can_really_be_used(kit: Kit, driver: Driver) -> None:
    use = "answer('ready'); time.sleep(0.5)\nhoard = os.urandom(120 << 20)\nanswer(len(hoard) >> 20)\n"
    spec, link = await probing(kit, driver, use, memory_mb=64)
    assert await said(link) == "ready"
    await driver.adjust(spec.id, memory_mb=256)
    assert await said(link) == 120


async def test_a_fork_bomb_ends_at_the_process_limit(kit: Kit, driver: Driver) -> None:
    spec, link = await probing(
        kit,
        driver,
        """
children = []
def bomb():
    while True:
        child = os.fork()
        if not child:
            time.sleep(1000)
        children.append(child)
how = refused(bomb)
answer({"how": how, "children": len(children)})
""",
        memory_mb=2048,
    )
    found = await said(link)
    assert found["how"] == "EAGAIN"
    assert 900 <= found["children"] <= 1100
    await driver.stop(spec.id)
    assert await driver.list() == []


async def test_orphaned_children_are_reaped(kit: Kit, driver: Driver) -> None:
    _, link = await probing(
        kit,
        driver,
        """
for _ in range(20):
    if not os.fork():
        if not os.fork():
            time.sleep(0.05)
        os._exit(0)
    os.wait()
deadline = time.monotonic() + 30
states = lambda: [open(path).read().rpartition(")")[2].split()[0] for path in glob.glob("/proc/[0-9]*/stat")]
while len(states()) > 2 and time.monotonic() < deadline:
    time.sleep(0.05)
answer(len(states()))
""",
    )
    assert await said(link) <= 2


async def test_output_can_not_fill_the_disk_of_the_engine(kit: Kit, driver: Driver, engine: Any) -> None:
    spec, link = await probing(
        kit,
        driver,
        """
for _ in range(10_000):
    os.write(1, b"x" * 999 + b"\\n")
os.write(1, b"the end\\n")
answer("written")
""",
    )
    assert await said(link) == "written"
    status = await until(driver, spec.id, lambda status: status.tail.endswith("the end\n"))
    assert len(status.tail) <= 8192
    assert len(engine.logs(container(kit, spec))) < 2 << 20


LISTEN = """
server = socket.create_server(("0.0.0.0", 9000))
me = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
me.connect(("192.0.2.1", 9))
answer(me.getsockname()[0])
server.accept()
"""


async def test_instances_can_not_reach_each_other(kit: Kit, driver: Driver) -> None:
    victim, link = await probing(kit, driver, LISTEN, network="egress")
    address = await said(link)
    _, link = await probing(kit, driver, f"""
def dial(host):
    try:
        socket.create_connection((host, 9000), 2)
    except OSError as error:
        return type(error).__name__
    return "connected"
answer([dial(host) for host in {[address, container(kit, victim)]!r}])
""", network="egress")  # fmt: skip
    assert set(await said(link)) <= {"TimeoutError", "gaierror", "ConnectionRefusedError"}
    with socket.create_connection((address, 9000), PATIENCE_S):
        pass  # this machine can: it did listen


async def test_egress_leads_out_and_none_leads_nowhere(kit: Kit, driver: Driver) -> None:
    look = """
gateways = [bytes.fromhex(line.split()[2])[::-1] for line in open("/proc/net/route").readlines()[1:]]
gateways = [socket.inet_ntoa(gateway) for gateway in gateways if any(gateway)]
def dial():
    with socket.create_connection((gateways[0], PORT), 10) as out:
        return out.recv(2).decode()
answer({"names": [name for _, name in socket.if_nameindex()], "gateways": gateways,
        "heard": dial() if gateways else refused(lambda: socket.create_connection(("192.0.2.1", 9), 5))})
"""
    with socket.create_server(("0.0.0.0", 0)) as server:
        server.settimeout(PATIENCE_S)
        probe = look.replace("PORT", str(server.getsockname()[1]))
        _, out = await probing(kit, driver, probe, network="egress")
        connection, _ = await asyncio.to_thread(server.accept)
        with connection:
            connection.sendall(b"hi")
            assert (await said(out))["heard"] == "hi"
    _, nowhere = await probing(kit, driver, probe, network="none")
    assert await said(nowhere) == {"names": ["lo"], "gateways": [], "heard": "ENETUNREACH"}


async def test_it_sees_neither_the_host_nor_its_neighbours(kit: Kit, driver: Driver) -> None:
    await probing(kit, driver, "answer('here')")
    _, link = await probing(
        kit,
        driver,
        """
answer({"root": sorted(os.listdir("/")), "home": os.path.exists(HOME), "run": os.listdir("/run/headrace"),
        "docker": os.path.exists("/var/run/docker.sock"), "disks": glob.glob("/dev/sd*") + glob.glob("/dev/vd*"),
        "processes": len(glob.glob("/proc/[0-9]*")), "ipc": len(open("/proc/sysvipc/shm").readlines())})
""".replace("HOME", repr(str(kit.home))),
    )
    found = await said(link)
    assert set(found["root"]) - {"function", "shim"} <= {
        *("bin", "boot", "dev", "etc", "home", "lib", "lib32", "lib64", "libx32", "media", "mnt", "opt", "proc"),
        *("root", "run", "sbin", "srv", "sys", "tmp", "usr", "var", ".dockerenv"),
    }
    assert found["run"] == ["s"]
    assert found["processes"] == 2  # init and itself
    assert (found["home"], found["docker"], found["disks"], found["ipc"]) == (False, False, [], 1)


async def test_the_engine_is_told_no_secrets(
    kit: Kit, driver: Driver, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_TOKEN", "hr_secret")
    spec, link = await probing(kit, driver, "answer(sorted(os.environ))")
    assert await said(link) == [
        *("HEADRACE_CODE", "HEADRACE_INSTANCE", "HEADRACE_SOCKET", "HOME", "HOSTNAME", "LANG", "PATH"),
    ]
    description = json.dumps(engine.inspect_container(container(kit, spec)))
    assert "hr_secret" not in description
    assert os.environ["PATH"] not in description


async def test_exit_codes_are_those_of_the_program(kit: Kit, driver: Driver) -> None:
    spec, _ = await probing(kit, driver, "link.close(); os.kill(os.getpid(), 11)")
    status = await until(driver, spec.id, lambda status: not status.running)
    assert (status.exit_code, status.out_of_memory) == (139, False)

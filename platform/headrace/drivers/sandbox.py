"""How a container is locked up: from a spec to the engine's configuration of it. Pure.

Whatever runs inside is hostile: no capabilities, no way to gain privileges, an unprivileged user, a read-only root,
a bounded `/tmp`, bounds on memory (no swap), CPU, processes, open files and on what the engine keeps of its output.
Secrets and the function's own environment never come this way; they travel in LOAD.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headrace.drivers.base import BuildSpec, InstanceSpec
from headrace.drivers.guest import GuestImage
from headrace.drivers.result import LARGEST_RESULT
from headrace.runtimes import filled

EGRESS_NETWORK = "headrace-egress"
EGRESS_OPTIONS = {"com.docker.network.bridge.enable_icc": "false"}  # no traffic between instances
SANDBOX_USER = 65532

LABEL_HOME = "headrace.home"  # Settings.home_tag: the home that owns the container
LABEL_ROLE = "headrace.role"  # ROLE_INSTANCE or ROLE_BUILD
LABEL_INSTANCE = "headrace.instance"
LABEL_OWNER = "headrace.owner"  # of a build: the process that waits for it
ROLE_INSTANCE = "instance"
ROLE_BUILD = "build"
_OWN_LABELS = {LABEL_HOME, LABEL_ROLE, LABEL_INSTANCE, LABEL_OWNER}

_MIB = 1 << 20
_CPU_PERIOD_US = 100_000
_TMP_MB = 64
_TMP_FILES = 65_536
_PROCESSES = 1100  # threads count: 1000 calls at once in threads, and the shim's own
_BUILD_PROCESSES = 512
_OPEN_FILES = 4096
_OOM_SCORE = 500  # a machine out of memory kills functions before it kills the platform
_BUILD_CPU_SHARES = 128  # of 1024: a build takes the CPU that calls leave


def container_name(home_tag: str, id: str) -> str:
    return f"headrace-{home_tag}-{id}"


def build_name(home_tag: str, id: str) -> str:
    return f"headrace-{home_tag}-build-{id}"


def build_labels(home_tag: str, owner: str) -> dict[str, str]:
    """Of a container that a process needs for a while; `owner` is that process."""
    return {LABEL_HOME: home_tag, LABEL_ROLE: ROLE_BUILD, LABEL_OWNER: owner}


def own_labels_removed(labels: dict[str, str] | None) -> dict[str, str]:
    """The labels that the spec gave."""
    return {name: value for name, value in (labels or {}).items() if name not in _OWN_LABELS}


def memory_limits(memory_mb: int) -> dict[str, int]:
    """Memory and swap together are as much as memory alone: no swap."""
    return {"mem_limit": memory_mb * _MIB, "memswap_limit": memory_mb * _MIB}


def cpu_limits(cpus: float) -> dict[str, int]:
    return {"cpu_period": _CPU_PERIOD_US, "cpu_quota": int(cpus * _CPU_PERIOD_US)}


def instance_config(
    spec: InstanceSpec, image: str, command: Sequence[str], home_tag: str, *, user: str = "", **places: str
) -> dict[str, Any]:
    """The body of the engine's create request for an instance that runs `command`, as `user` if one is given.

    `places` are further paths that stand in `command`.
    """
    mounts = [_mount(spec.socket_dir, "/run/headrace"), _mount(spec.shim_dir, "/shim")]
    env = {
        "HEADRACE_SOCKET": "/run/headrace/s",
        "HEADRACE_INSTANCE": spec.id,
        "HEADRACE_CODE": "/run/headrace/code",
    }
    if spec.code_dir is not None:
        mounts.append(_mount(spec.code_dir, "/function"))
        env["HEADRACE_CODE"] = "/function"
    if spec.layer_dir is not None:
        mounts.append(_mount(spec.layer_dir, LAYER))
        env["HEADRACE_LAYER"] = LAYER
    limits = cpu_limits(spec.cpus)
    host = _host_config(spec.memory_mb, min(_TMP_MB, spec.memory_mb // 2), _PROCESSES, mounts) | {
        "CpuPeriod": limits["cpu_period"],
        "CpuQuota": limits["cpu_quota"],
        "NetworkMode": EGRESS_NETWORK if spec.network == "egress" else "none",
    }
    labels = {**spec.labels, LABEL_HOME: home_tag, LABEL_ROLE: ROLE_INSTANCE, LABEL_INSTANCE: spec.id}
    filled_in = filled(command, {"shim": "/shim", **places})
    return _config(image, filled_in, env=env, labels=labels, user=user or _SANDBOX, host=host)


def guest_config(
    spec: InstanceSpec, image: GuestImage, command: Sequence[str], home_tag: str, carried: Path
) -> dict[str, Any]:
    """The same for an image that a version brought, into which the programs in `carried` are mounted.

    Its volumes become bounded memory: the engine would give each an unbounded directory of the host. Its environment is
    for its own program; the loader of what is carried must not follow it.
    """
    config = instance_config(spec, image.id, command, home_tag, user=image.user, carried=CARRIED)
    uid, _, gid = config["User"].partition(":")
    options = (
        f"rw,exec,nosuid,nodev,size={min(_TMP_MB, spec.memory_mb // 4)}m,nr_inodes={_TMP_FILES},uid={uid},gid={gid}"
    )
    volumes = [path for path in image.volumes if path.rstrip("/") not in _RESERVED]
    config["HostConfig"]["Tmpfs"] |= dict.fromkeys(volumes, options)
    config["HostConfig"]["Mounts"].append(_mount(carried, CARRIED))
    config["Env"] += ["LD_PRELOAD=", "LD_LIBRARY_PATH="]
    return config


def pack_config(
    image: str, pack: Sequence[str], home_tag: str, *, owner: str, source: Path, out_dir: Path
) -> dict[str, Any]:
    """The body of the engine's create request for packing programs of `image`: like a build, without any network."""
    mounts = [_mount(source, "/runtime"), _mount(out_dir, OUT, writable=True)]
    host = _host_config(_PACK_MB, _PACK_MB // 2, _BUILD_PROCESSES, mounts) | {"NetworkMode": "none"}
    labels = build_labels(home_tag, owner)
    return _config(
        image, filled(pack, {"out": OUT, "runtime": "/runtime"}), env={}, labels=labels, user=build_user(), host=host
    )


def build_config(
    spec: BuildSpec,
    image: str,
    install: Sequence[str],
    home_tag: str,
    *,
    owner: str,
    env: dict[str, str],
    ca_bundle: Path | None,
) -> dict[str, Any]:
    """The body of the engine's create request for a build: the same walls, but `OUT` can be written."""
    mounts = [_mount(spec.code_dir, "/function"), _mount(spec.out_dir, OUT, writable=True)]
    if ca_bundle is not None:
        mounts.append(_mount(ca_bundle, CA_BUNDLE))
    command = ["timeout", "--kill-after=5", str(int(spec.timeout_s) + 5), *filled(install, {"out": OUT})]
    host = _host_config(spec.memory_mb, spec.memory_mb // 2, _BUILD_PROCESSES, mounts) | {
        "CpuShares": _BUILD_CPU_SHARES,
        "NetworkMode": EGRESS_NETWORK,
    }
    host["Ulimits"].append({"Name": "fsize", "Soft": LARGEST_RESULT, "Hard": LARGEST_RESULT})
    labels = build_labels(home_tag, owner)
    return _config(image, command, env=env, labels=labels, user=build_user(), host=host) | {"WorkingDir": "/function"}


CA_BUNDLE = "/run/ca-bundle.pem"  # in a build container
OUT = "/out"
LAYER = "/layer"  # in an instance
CARRIED = "/carried"
_RESERVED = {"", "/tmp", "/run/headrace", "/shim", LAYER, CARRIED}  # noqa: S108 - what volumes of an image can't be
_SANDBOX = f"{SANDBOX_USER}:{SANDBOX_USER}"
_PACK_MB = 256


def build_user() -> str:
    """Who installs: root hands the directory to the sandbox user, anybody else can only write as himself."""
    return _SANDBOX if os.geteuid() == 0 else f"{os.getuid()}:{os.getgid()}"


def open_for_writing(directory: Path) -> None:
    """Let `build_user` write there."""
    if os.geteuid() == 0:
        os.chown(directory, SANDBOX_USER, SANDBOX_USER)


def _config(
    image: str, command: list[str], *, env: dict[str, str], labels: dict[str, str], user: str, host: dict[str, Any]
) -> dict[str, Any]:
    return {
        "Image": image,
        "Entrypoint": command,
        "User": user,
        "WorkingDir": "/",
        "Env": [f"{name}={value}" for name, value in {"HOME": "/tmp", "LANG": "C.UTF-8", **env}.items()],  # noqa: S108
        "Labels": labels,
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": host,
    }


def _host_config(memory_mb: int, tmp_mb: int, processes: int, mounts: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "Mounts": mounts,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "ReadonlyRootfs": True,
        # Code in /function may be executed, so forbidding it in /tmp would win nothing.
        "Tmpfs": {"/tmp": f"rw,exec,nosuid,nodev,size={tmp_mb}m,nr_inodes={_TMP_FILES},mode=1777"},  # noqa: S108
        "ShmSize": min(_TMP_MB, memory_mb // 4) * _MIB,
        "Memory": memory_mb * _MIB,
        "MemorySwap": memory_mb * _MIB,
        "PidsLimit": processes,
        "OomScoreAdj": _OOM_SCORE,
        "Ulimits": [
            {"Name": "nofile", "Soft": _OPEN_FILES, "Hard": _OPEN_FILES},
            {"Name": "core", "Soft": 0, "Hard": 0},
        ],
        "IpcMode": "private",
        "LogConfig": {"Type": "local", "Config": {"max-size": "1m", "max-file": "1", "compress": "false"}},
    }


def _mount(source: Path, target: str, *, writable: bool = False) -> dict[str, Any]:
    return {"Type": "bind", "Source": str(source), "Target": target, "ReadOnly": not writable}

"""Headrace as a user runs it: `headrace up` on a home of its own, everything else through the REST API."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from measure import Unavailable

from headrace.settings import Settings

ROOT = Path(__file__).resolve().parent.parent.parent
KEPT = ROOT / ".headrace" / "load"  # results, logs and installed references; git ignores it
PORTS = range(17_700, 17_800)

_PASSED_ON = ("HEADRACE_BASE_IMAGE_", "HEADRACE_PIP_", "HEADRACE_NPM_", "HEADRACE_BUILD_", "HEADRACE_DRIVER")
_READY_S = 900.0  # the first start of all makes the base image
_BUILD_S = 120.0
_STOP_S = 60.0


def free_port(above: int = PORTS.start - 1) -> int:
    """The first port of `PORTS` above `above` that nobody listens on."""
    for port in range(above + 1, PORTS.stop):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise Unavailable(f"no port from {PORTS.start} to {PORTS.stop - 1} is free: stop what listens there.")


class Headrace:
    """A running platform. `functions` is the base URL of calls, `api` a client of the control API."""

    def __init__(self, process: subprocess.Popen[bytes], home: Path, functions: str, control: str, log: Path) -> None:
        self.process = process
        self.home = home
        self.functions = functions
        self.control = control
        self.log = log
        self.token = ""
        self.api = httpx.Client(base_url=f"{control}/v1", timeout=60)

    def wait_ready(self) -> None:
        deadline = time.monotonic() + _READY_S
        while True:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Unavailable(f"Headrace did not start; the end of {self.log}:\n{self.tail()}")
            try:
                if httpx.get(f"{self.control}/readyz", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        self.token = (self.home / "admin-token").read_text().strip()
        self.api.headers["Authorization"] = f"Bearer {self.token}"

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        answer = self.api.request(method, path, json=body)
        if answer.status_code >= 400:
            raise Unavailable(f"{method} {path} was answered with {answer.status_code}: {answer.text}")
        return answer.json() if answer.content else None

    def deploy(self, name: str, files: dict[str, str], config: dict[str, Any], publish: bool = True) -> int:
        """Make a version, wait until it is ready, publish it; its number."""
        number: int = self.ask("POST", f"/functions/{name}/versions", {"files": files, "config": config})["number"]
        deadline = time.monotonic() + _BUILD_S
        while (version := self.ask("GET", f"/functions/{name}/versions/{number}"))["state"] != "ready":
            if version["state"] == "failed" or time.monotonic() > deadline:
                raise Unavailable(f"{name}@{number} is {version['state']}: {version['reason']}")
            time.sleep(0.1)
        if publish:
            self.ask("POST", f"/functions/{name}/publish", {"version": number})
        return number

    def url(self, name: str) -> str:
        return f"{self.functions}/fn/{name}"

    def memory_mb(self, role: str) -> float:
        """Resident memory of the process `role` (`node`, `control`, `worker`), MiB."""
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
                command = (status.parent / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if fields["PPid"] == str(self.process.pid) and role.encode() in command:
                return int(fields["VmRSS"].split()[0]) / 1024
        raise Unavailable(f"the {role} process is not among the children of `headrace up`.")

    def sandbox(self) -> tuple[str, str]:
        """Image and network of the instances that run now."""
        label = f"label=headrace.home={Settings(home=self.home).home_tag}"
        command = ["docker", "ps", "--filter", label, "--format", "{{.Image}} {{.Networks}}"]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        if not found:
            raise Unavailable("no instance of Headrace runs in Docker.")
        image, _, network = found[0].partition(" ")
        return image, network


@contextmanager
def headrace(**settings: str) -> Iterator[Headrace]:
    """Start Headrace with `HEADRACE_<NAME>` from `settings`; stop it and remove everything at the end."""
    port = free_port()
    control_port = free_port(above=port)
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("HEADRACE_") or name.startswith(_PASSED_ON)
    }
    environment |= {f"HEADRACE_{name.upper()}": value for name, value in settings.items()}
    home = Path(tempfile.mkdtemp(prefix="headrace-load-"))
    try:
        with _started(home, port, control_port, environment) as running:
            running.wait_ready()
            yield running
    finally:
        _remove(home)


@contextmanager
def _started(home: Path, port: int, control_port: int, environment: dict[str, str]) -> Iterator[Headrace]:
    KEPT.mkdir(parents=True, exist_ok=True)
    log = KEPT / "headrace.log"
    command = [str(Path(sys.executable).with_name("headrace")), "up", "--home", str(home)]
    command += ["--port", str(port), "--control-port", str(control_port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    running = Headrace(process, home, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{control_port}", log)
    try:
        yield running
    finally:
        running.api.close()
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end and wait for it; after a minute it is killed."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _remove(home: Path) -> None:
    """The home, and containers that it still owns when the platform could not stop them."""
    if shutil.which("docker"):
        label = f"label=headrace.home={Settings(home=home).home_tag}"
        listed = subprocess.run(["docker", "ps", "-aq", "--filter", label], capture_output=True, text=True, check=False)
        if ids := listed.stdout.split():
            subprocess.run(["docker", "rm", "-f", *ids], capture_output=True, check=False)
    shutil.rmtree(home, ignore_errors=True)


def example(name: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Files and config of `functions/<name>`."""
    directory = ROOT / "functions" / name
    if not directory.is_dir():
        raise Unavailable(f"{directory} does not exist.")
    files = {path.relative_to(directory).as_posix(): path.read_text() for path in sorted(directory.rglob("*.py"))}
    settings = directory / "headrace.toml"
    return files, tomllib.loads(settings.read_text()) if settings.exists() else {}

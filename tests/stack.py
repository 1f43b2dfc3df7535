"""Headrace as a user runs it: `headrace up` on a home of its own, the command line and the REST API pointed at it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import httpx

from headrace.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / ".headrace" / "load"  # results, logs and installed references of the load harness; git ignores it
HEADRACE = Path(sys.executable).with_name("headrace")

_PASSED_ON = tuple(f"HEADRACE_{name}" for name in ("BASE_IMAGE_", "PIP_", "NPM_", "APT_", "BUILD_", "DRIVER"))
_READY_S = 300.0  # the first start of all makes the base image
_BUILD_S = 180.0
_STOP_S = 60.0
_COMMAND_S = 240.0


class Failure(Exception):
    """The platform under test did not do what was asked; the message shows what it said."""


class Following:
    """A command that keeps running; `wait_for` reads its output as it comes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._news:
                self._lines.append(line)
                self._news.notify_all()

    def wait_for(self, text: str, seconds: float = 20.0) -> None:
        with self._news:
            if not self._news.wait_for(lambda: any(text in line for line in self._lines), seconds):
                raise Failure(f"{text!r} did not come within {seconds:g} s; so far:\n{''.join(self._lines)}")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(_STOP_S)
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


class Headrace:
    """A platform on its own home and ports. `functions` is the base URL of calls, `api` a client of the control API."""

    def __init__(self, home: Path, log: Path, settings: dict[str, str]) -> None:
        port, control_port = _free_ports()
        self.home = home
        self.log = log
        certificate = settings.get("tls_cert")
        scheme = "https" if certificate else "http"
        self.trust: ssl.SSLContext | bool = ssl.create_default_context(cafile=certificate) if certificate else False
        self.functions = f"{scheme}://127.0.0.1:{port}"
        self.control = f"{scheme}://127.0.0.1:{control_port}"
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("HEADRACE_") or name.startswith(_PASSED_ON)
        }
        self.environment |= {f"HEADRACE_{name.upper()}": value for name, value in settings.items()}
        self.environment |= {
            "HEADRACE_HOME": str(home),
            "HEADRACE_PORT": str(port),
            "HEADRACE_CONTROL_PORT": str(control_port),
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.api = httpx.Client()

    # -- life

    def start(self) -> None:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [str(HEADRACE), "up"],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.wait_ready()
        self.api.close()
        headers = {"Authorization": f"Bearer {self.token}"}
        self.api = httpx.Client(base_url=f"{self.control}/v1", headers=headers, timeout=90, verify=self.trust)

    def wait_ready(self) -> None:
        """Return when control and node answer."""
        deadline = time.monotonic() + _READY_S
        assert self.process is not None
        while True:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Failure(f"Headrace did not start; the end of its output:\n{self.tail()}")
            try:
                if httpx.get(f"{self.control}/readyz", timeout=5, verify=self.trust).status_code == 200:
                    httpx.get(f"{self.functions}/", timeout=5, verify=self.trust)
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)

    def stop(self) -> None:
        """Ask it to end and wait for it; after a minute it is killed."""
        if self.process is not None:
            end(self.process)

    def crash(self) -> None:
        """kill -9 of the supervisor; its children end with it."""
        assert self.process is not None
        children = [pid for role in ("control", "node", "worker") if (pid := self._pid(role))]
        self.process.kill()
        self.process.wait()
        self.until(lambda: str(any(Path(f"/proc/{pid}/cmdline").exists() for pid in children)), "False")

    def kill(self, role: str) -> None:
        """kill -9 of one process; returns when it is gone."""
        pid = self._pid(role)
        if pid is None:
            raise Failure(f"there is no {role} process")
        os.kill(pid, signal.SIGKILL)
        self.until(lambda: str(self._pid(role) == pid), "False")

    def _pid(self, role: str) -> int | None:
        assert self.process is not None
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
                command = (status.parent / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if fields["PPid"] == str(self.process.pid) and role.encode() in command:
                return int(status.parent.name)
        return None

    def memory_mb(self, role: str, what: Literal["VmRSS", "VmHWM"] = "VmRSS") -> float:
        """Resident memory of the process `role` (`node`, `control`, `worker`), MiB; `VmHWM`: at its peak."""
        for line in Path(f"/proc/{self._pid(role)}/status").read_text().splitlines():
            if line.startswith(f"{what}:"):
                return int(line.split()[1]) / 1024
        raise Failure(f"the {role} process does not run.")

    def cpu_s(self, role: str) -> float:
        """Processor time that the process `role` has taken, seconds."""
        fields = Path(f"/proc/{self._pid(role)}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def token(self) -> str:
        return (self.home / "admin-token").read_text().strip()

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-30:])

    # -- what a user does

    def cli(self, *arguments: str, check: bool = True, code: int | None = None) -> str:
        """Run `headrace ARGUMENTS`; what it wrote on both streams. `code` is the exit code that is expected."""
        done = subprocess.run(
            [str(HEADRACE), *arguments],
            env=self.environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_COMMAND_S,
            check=False,
        )
        expected = 0 if check else code
        if expected is not None and done.returncode != expected:
            raise Failure(f"headrace {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout if "--json" in arguments else done.stdout + done.stderr

    @contextmanager
    def running_cli(self, *arguments: str) -> Iterator[Following]:
        process = subprocess.Popen(
            [str(HEADRACE), *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        following = Following(process)
        try:
            yield following
        finally:
            following.close()

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """A call of the control API that must succeed."""
        answer = self.api.request(method, path, json=body)
        if answer.status_code >= 400:
            raise Failure(f"{method} {path} was answered with {answer.status_code}: {answer.text}")
        return answer.json() if answer.content else None

    def deploy(self, name: str, files: dict[str, str], config: dict[str, Any], publish: bool = True) -> int:
        """Make a version, wait until it is ready, publish it; its number."""
        number: int = self.ask("POST", f"/functions/{name}/versions", {"files": files, "config": config})["number"]
        deadline = time.monotonic() + _BUILD_S
        while (version := self.ask("GET", f"/functions/{name}/versions/{number}"))["state"] != "ready":
            if version["state"] == "failed" or time.monotonic() > deadline:
                raise Failure(f"{name}@{number} is {version['state']}: {version['reason']}")
            time.sleep(0.1)
        if publish:
            self.ask("POST", f"/functions/{name}/publish", {"version": number})
        return number

    def url(self, name: str) -> str:
        return f"{self.functions}/fn/{name}"

    def until(self, look: Callable[[], Any], expected: str, seconds: float = 20.0) -> Any:
        """Look again and again until what is seen contains `expected` as text; what was seen then."""
        deadline = time.monotonic() + seconds
        seen: Any = None
        while time.monotonic() < deadline:
            try:
                seen = look()
            except (httpx.HTTPError, Failure) as error:
                seen = repr(error)
            else:
                if expected in (seen if isinstance(seen, str) else json.dumps(seen)):
                    return seen
            time.sleep(0.1)
        raise Failure(f"{expected!r} was not seen within {seconds:g} s; last: {seen}\n{self.tail()}")

    # -- what the engine knows

    def containers(self) -> set[str]:
        """Names of the running containers of this home."""
        return set(_docker("ps", "--filter", self._label, "--format", "{{.Names}}").split())

    def images(self) -> dict[str, str]:
        """The running containers of this home and their images, by name."""
        lines = _docker("ps", "--filter", self._label, "--format", "{{.Names}} {{.Image}}").splitlines()
        return dict(line.split(" ", 1) for line in lines)

    def sandbox(self) -> tuple[str, str]:
        """Image and network of the instances that run now."""
        found = _docker("ps", "--filter", self._label, "--format", "{{.Image}} {{.Networks}}").splitlines()
        if not found:
            raise Failure("no instance of Headrace runs in Docker.")
        image, _, network = found[0].partition(" ")
        return image, network

    def start_stray(self) -> str:
        """A container that looks like one of this home and belongs to nobody; its name."""
        tag = Settings(home=self.home).home_tag
        id = "feedfeedfeedfeed"
        name = f"headrace-{tag}-{id}"
        labels = ["--label", f"headrace.home={tag}", "--label", f"headrace.instance={id}"]
        labels += ["--label", "headrace.role=instance"]
        _docker("run", "-d", "--name", name, *labels, "--network", "none", self.sandbox()[0], "sleep", "300")
        return name

    def remove(self) -> None:
        """Everything that is left of it."""
        if shutil.which("docker") and (ids := _docker("ps", "-aq", "--filter", self._label).split()):
            _docker("rm", "-f", *ids)
        if shutil.which("docker") and (images := self._images()):
            _docker("rmi", "-f", *images)
        shutil.rmtree(self.home, ignore_errors=True)

    def _images(self) -> list[str]:
        """Names of the images that versions of this home brought."""
        tag = Settings(home=self.home).home_tag
        names = _docker("images", "--format", "{{.Repository}}:{{.Tag}}").split()
        return [name for name in names if name.startswith((f"headrace-image-{tag}:", f"headrace-unfinished-{tag}:"))]

    @property
    def _label(self) -> str:
        return f"label=headrace.home={Settings(home=self.home).home_tag}"


@contextmanager
def headrace(**settings: str) -> Iterator[Headrace]:
    """A started Headrace with `HEADRACE_<NAME>` from `settings`; stopped and removed at the end.

    Tests publish functions by the dozen and call few: unless they say so, no generic instance waits for each.
    """
    home = Path(tempfile.mkdtemp(prefix="headrace-"))
    platform = Headrace(home / "home", home / "output", {"prewarm_most": "2", **settings})
    try:
        platform.start()
        yield platform
    finally:
        platform.api.close()
        platform.stop()
        platform.remove()
        shutil.rmtree(home, ignore_errors=True)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end and wait for it; after a minute it is killed."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def example(name: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Files and config of `functions/<name>`."""
    directory = ROOT / "functions" / name
    if not directory.is_dir():
        raise Failure(f"{directory} does not exist.")
    files = {path.relative_to(directory).as_posix(): path.read_text() for path in sorted(directory.rglob("*.py"))}
    settings = directory / "headrace.toml"
    return files, tomllib.loads(settings.read_text()) if settings.exists() else {}


def free_port() -> int:
    """A port on loopback that nobody listens on."""
    return _free_ports()[0]


def _docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure(f"docker {arguments[0]} failed: {done.stderr}")
    return done.stdout


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]

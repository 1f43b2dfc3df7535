"""What a build needs to reach the package index as this machine does, and what it must not show.

The index, proxies and the CA bundle come from the settings, else from this machine's own configuration of the
language's installer, which the runtime knows to read. They travel to the installer as environment; addresses in what it
prints are replaced, because they may hold credentials and are nobody's business who only deploys a function.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
import urllib.parse
import urllib.request
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from headrace import runtimes
from headrace.drivers.base import BuildSpec, InstanceSpec
from headrace.errors import BuildFailed, SettingsError
from headrace.runtimes import Dependencies, Runtime
from headrace.settings import Settings

_USUAL_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/etc/ssl/cert.pem",  # macOS, BSD
)
_BUNDLE = "CA_BUNDLE"  # of what a runtime's `source` prints
_SOURCE_TIMEOUT_S = 20
_SHOWN = "<package index>"
_KEPT_LINES = 200
_LONGEST_LINE = 4000
_LONGEST_REASON = 300
_WORDS = 3  # lines


@dataclass(frozen=True, slots=True)
class PackageSource:
    """`env` for the installer, without the CA bundle, which is a file on this machine; `hidden` are addresses."""

    env: dict[str, str]
    hidden: tuple[str, ...]
    ca_bundle: Path | None
    ca_env: tuple[str, ...]

    def trusting(self, bundle: str) -> dict[str, str]:
        """`env` with the CA bundle at the path under which the installer sees it."""
        return self.env | dict.fromkeys(self.ca_env, bundle)


async def package_source(settings: Settings, runtime: Runtime, out: str) -> PackageSource:
    """How the installer of `runtime` reaches its index and works in `out`, as it sees that directory.

    Raises `SettingsError` for a CA bundle that isn't there or can't be read by all.
    """
    wanted = dependencies_of(runtime)
    found = await _this_machines(runtime, wanted)
    bundle = _ca_bundle(settings, found.pop(_BUNDLE, ""))
    if own := settings.runtimes.get(wanted.setting):
        found = {wanted.setting_env: own}
    proxies = {f"{scheme}_proxy": address for scheme, address in urllib.request.getproxies().items()}
    env = dict(zip(wanted.env, runtimes.filled(list(wanted.env.values()), {"out": out}), strict=True))
    urls = " ".join(value for value in found.values() if "://" in value)
    return PackageSource(env | found | proxies, tuple(_addresses(urls)), bundle, wanted.ca_env)


def dependencies_of(runtime: Runtime) -> Dependencies:
    """How `runtime` installs packages; raises `BuildFailed` when it can't."""
    if runtime.dependencies is None:
        raise BuildFailed(
            f"the runtime {runtime.name} installs nothing: put all that the function needs in the bundle."
        )
    return runtime.dependencies


class Lines:
    """What an installer prints, cut into lines that may be shown, each handed to `on_line`.

    Remembers the end, for the reason of a failure. Lines that start with one of `noise` are dropped; with one of
    `errors`, they are the reason, unless they go on with one of `vague`. White space at their start does not count.
    """

    def __init__(
        self,
        hidden: tuple[str, ...],
        on_line: Callable[[str], None],
        noise: tuple[str, ...] = (),
        errors: tuple[str, ...] = (),
        vague: tuple[str, ...] = (),
    ) -> None:
        self._hidden = hidden
        self._noise = noise
        self._errors = errors
        self._vague = vague
        self._on_line = on_line
        self._partial = b""
        self._last: deque[str] = deque(maxlen=_KEPT_LINES)

    def feed(self, data: bytes) -> None:
        """Take a piece, cut anywhere. A line that does not end is cut at `_LONGEST_LINE` bytes."""
        *lines, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) > _LONGEST_LINE:
            lines.append(self._partial)
            self._partial = b""
        for line in lines:
            self._show(line)

    def end(self) -> None:
        """The last line may have no end."""
        if self._partial:
            self._show(self._partial)
            self._partial = b""

    def forget(self) -> None:
        """What comes now is another step: the reason of a failure is in it, not before."""
        self._last.clear()

    def reason(self) -> str:
        """What the installer called an error, from the first on; else its last words."""
        said = [(line.strip(), self._mark(line)) for line in self._last]
        errors = [text.removeprefix(mark).strip() for text, mark in said if mark]
        others = [text for text, mark in said if not mark]
        words = self._telling(errors)[:_WORDS] or self._telling(others)[-_WORDS:] or errors[:_WORDS]
        return " / ".join(word[:_LONGEST_REASON].rstrip(".") for word in words) or "the installer printed nothing"

    def _telling(self, texts: list[str]) -> list[str]:
        return [text for text in texts if text and not text.startswith(self._vague)]

    def _mark(self, line: str) -> str:
        """The one of `errors` that `line` starts with; empty for any other line."""
        text = line.lstrip()
        return next((mark for mark in self._errors if text.startswith(mark)), "")

    def _show(self, raw: bytes) -> None:
        line = raw[:_LONGEST_LINE].decode("utf-8", "replace").rstrip("\r").replace("\0", "")
        if line.lstrip().startswith(self._noise):
            return
        for address in self._hidden:
            line = line.replace(address, _SHOWN)
        self._last.append(line)
        self._on_line(line)


def took_too_long(spec: BuildSpec, lines: Lines) -> BuildFailed:
    """The error of an installer that ran out of time."""
    return BuildFailed(
        f"installing the dependencies took longer than {spec.timeout_s:g} s. Last words: {lines.reason()}"
    )


def show_layer(spec: InstanceSpec, layer: str) -> None:
    """Let what has to lie beside the code appear there, in the directory that the instance sees as its own.

    `layer` is the layer's path as the instance sees it.
    """
    wanted = runtimes.get(spec.runtime).dependencies
    if spec.layer_dir is not None and wanted is not None and wanted.beside:
        link = spec.socket_dir / wanted.beside
        link.unlink(missing_ok=True)
        link.symlink_to(f"{layer}/{wanted.beside}")


async def _this_machines(runtime: Runtime, wanted: Dependencies) -> dict[str, str]:
    """What the runtime's `source` finds on this machine, by variable; empty when it can't tell."""
    if not wanted.source:
        return {}
    process = await asyncio.create_subprocess_exec(
        *runtimes.filled(wanted.source, {"self": sys.executable, "runtime": runtime.directory}),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(_SOURCE_TIMEOUT_S):
            output, _ = await process.communicate()
    except TimeoutError:
        return {}
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    pairs = (line.partition("=") for line in output.decode(errors="replace").splitlines())
    return {name: value for name, _, value in pairs if value}


def _addresses(urls: str) -> list[str]:
    """What must not be shown of each URL, the longest first."""
    found = set()
    for url in urls.split():
        parts = urllib.parse.urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        found |= {url, f"{parts.scheme}://{parts.netloc}", f"{parts.scheme}://{host}", parts.netloc, host}
    return sorted((text for text in found if text), key=len, reverse=True)


def _ca_bundle(settings: Settings, from_installer: str) -> Path | None:
    if settings.build_ca_bundle:
        path = Path(settings.build_ca_bundle).expanduser().absolute()
        if not path.is_file() or not path.stat().st_mode & 0o004:
            raise SettingsError(
                f"HEADRACE_BUILD_CA_BUNDLE: {path} is not a file that everybody can read; the sandbox user must. "
                "Correct the path, or `chmod 644` it."
            )
        return path
    defaults = (from_installer, ssl.get_default_verify_paths().cafile or "", *_USUAL_BUNDLES)
    for candidate in defaults:
        if candidate and (path := Path(candidate)).is_file() and path.stat().st_mode & 0o004:
            return path.resolve()
    return None

"""What a build needs to reach the package index as this machine does, and what it must not show.

The index, proxies and the CA bundle come from the settings, else from the machine's own pip configuration. They
travel to the installer as environment; addresses in what it prints are replaced, because they may hold credentials
and are nobody's business who only deploys a function.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import os
import re
import ssl
import sys
import urllib.parse
import urllib.request
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from headrace.errors import BuildFailed, SettingsError
from headrace.settings import Settings

_USUAL_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/etc/ssl/cert.pem",  # macOS, BSD
)
_TAKEN = ("index-url", "extra-index-url", "trusted-host")
_CONFIG_LINE = re.compile(r"^(?P<section>[^.]+)\.(?P<name>[a-z-]+)=(?P<value>.*)$")
_CONFIG_TIMEOUT_S = 20
_NOISE = ("Looking in indexes:", "Looking in links:")
_SHOWN = "<package index>"
_KEPT_LINES = 200
_LONGEST_LINE = 4000
_LONGEST_REASON = 300
_LARGEST_RESULT = 1 << 30  # bytes
_MOST_FILES = 200_000
_MEASURE_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class PackageSource:
    """`env` for the installer, without the CA bundle, which is a file on this machine; `hidden` are addresses."""

    env: dict[str, str]
    hidden: tuple[str, ...]
    ca_bundle: Path | None

    def trusting(self, bundle: str) -> dict[str, str]:
        """`env` with the CA bundle at the path under which the installer sees it."""
        names = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")
        return self.env | dict.fromkeys(names, bundle)


async def python_source(settings: Settings) -> PackageSource:
    """How pip reaches its index. Raises `SettingsError` for a CA bundle that isn't there or can't be read by all."""
    config = await _pip_config()
    env = {
        "PIP_NO_INPUT": "1",
        "PIP_NO_CACHE_DIR": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_PROGRESS_BAR": "off",
        "PIP_ROOT_USER_ACTION": "ignore",
    }
    if settings.pip_index_url:
        env["PIP_INDEX_URL"] = settings.pip_index_url
    else:
        for name in _TAKEN:
            if value := _remote_only(name, config.get(name, "")):
                env["PIP_" + name.replace("-", "_").upper()] = value
    for scheme, address in urllib.request.getproxies().items():
        env[f"{scheme}_proxy"] = address
    urls = " ".join(env.get(name, "") for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"))
    return PackageSource(env, tuple(_addresses(urls)), _ca_bundle(settings, config.get("cert", "")))


class Lines:
    """What an installer prints, cut into lines that may be shown, each handed to `on_line`.

    Remembers the end, for the reason of a failure.
    """

    def __init__(self, hidden: tuple[str, ...], on_line: Callable[[str], None]) -> None:
        self._hidden = hidden
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

    def reason(self) -> str:
        """The installer's last meaningful words: its errors when it named any."""
        errors = [line.removeprefix("ERROR:").strip() for line in self._last if line.startswith("ERROR:")]
        words = errors or [line.strip() for line in self._last if line.strip()]
        return " / ".join(word[:_LONGEST_REASON] for word in words[-3:]) or "the installer printed nothing"

    def _show(self, raw: bytes) -> None:
        line = raw[:_LONGEST_LINE].decode("utf-8", "replace").rstrip("\r").replace("\0", "")
        if line.startswith(_NOISE):
            return
        for address in self._hidden:
            line = line.replace(address, _SHOWN)
        self._last.append(line)
        self._on_line(line)


async def until_too_large(directory: Path) -> None:
    """Returns when the result has grown over the bounds; to be cancelled when the installer ends before."""
    with contextlib.suppress(BuildFailed):
        while True:
            await asyncio.sleep(_MEASURE_EVERY_S)
            await asyncio.to_thread(check_size, directory)


def check_size(directory: Path) -> None:
    """Raise `BuildFailed` when the result is over the bounds. Links are not followed: the content is hostile."""
    size = files = 0
    waiting = [str(directory)]
    while waiting:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                files += 1
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    size += _blocks(entry)
                if size > _LARGEST_RESULT or files > _MOST_FILES:
                    raise BuildFailed(
                        f"the dependencies take more than {_LARGEST_RESULT >> 20} MiB or {_MOST_FILES:,} files. "
                        "Leave out what the function does not need."
                    )


def _blocks(entry: os.DirEntry[str]) -> int:
    """Bytes on disk; 0 for a file that has just gone."""
    with contextlib.suppress(FileNotFoundError):
        return entry.stat(follow_symlinks=False).st_blocks * 512
    return 0


async def _pip_config() -> dict[str, str]:
    """The machine's pip configuration, as pip itself merges files and environment; empty where there is no pip."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(_CONFIG_TIMEOUT_S):
            output, _ = await process.communicate()
    except TimeoutError:
        return {}
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return _parse_config(output.decode(errors="replace"))


def _parse_config(text: str) -> dict[str, str]:
    """`section.name='value'` lines; the environment wins over `install`, and that over `global`."""
    found: dict[str, tuple[int, str]] = {}
    rank = {"global": 0, "install": 1, ":env:": 2}
    for line in text.splitlines():
        match = _CONFIG_LINE.match(line)
        if match and match["section"] in rank:
            value = str(ast.literal_eval(match["value"]))
            place = rank[match["section"]]
            if place >= found.get(match["name"], (0, ""))[0]:
                found[match["name"]] = (place, value)
    return {name: value for name, (_, value) in found.items()}


def _remote_only(name: str, value: str) -> str:
    """Without addresses that only this machine can open."""
    if name == "trusted-host":
        return " ".join(value.split())
    return " ".join(url for url in value.split() if url.startswith(("http://", "https://")))


def _addresses(urls: str) -> list[str]:
    """What must not be shown of each URL, the longest first."""
    found = set()
    for url in urls.split():
        parts = urllib.parse.urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        found |= {url, f"{parts.scheme}://{parts.netloc}", f"{parts.scheme}://{host}", parts.netloc, host}
    return sorted((text for text in found if text), key=len, reverse=True)


def _ca_bundle(settings: Settings, from_pip: str) -> Path | None:
    if settings.build_ca_bundle:
        path = Path(settings.build_ca_bundle).expanduser().absolute()
        if not path.is_file() or not path.stat().st_mode & 0o004:
            raise SettingsError(
                f"HEADRACE_BUILD_CA_BUNDLE: {path} is not a file that everybody can read; the sandbox user must. "
                "Correct the path, or `chmod 644` it."
            )
        return path
    defaults = (from_pip, ssl.get_default_verify_paths().cafile or "", *_USUAL_BUNDLES)
    for candidate in defaults:
        if candidate and (path := Path(candidate)).is_file() and path.stat().st_mode & 0o004:
            return path.resolve()
    return None

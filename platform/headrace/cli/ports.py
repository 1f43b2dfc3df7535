"""Is a port free to listen on, and if not, who has it?"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from pathlib import Path

from headrace.errors import HeadraceError

_LISTENING = "0A"  # state column of /proc/net/tcp


class PortTaken(HeadraceError):
    """The platform cannot listen where it was told to."""

    code, title = "port_taken", "The port cannot be used"


def check_free(host: str, port: int, option: str) -> None:
    """Raise `PortTaken` unless this process could listen on `host` and `port`, which `option` chooses."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
            trial.listen(1)
    except OSError as error:
        raise PortTaken(_explain(error, host, port, option)) from None


def _explain(error: OSError, host: str, port: int, option: str) -> str:
    if isinstance(error, socket.gaierror):
        return f"the host {host!r} is unknown ({error.strerror}): give an address of this machine with --host."
    if error.errno == errno.EADDRINUSE:
        owner = _owner(port)
        return f"port {port} on {host} is taken by {owner}: stop that process, or choose another with {option}."
    if error.errno == errno.EACCES:
        return f"port {port} needs more rights than yours: choose one above 1023 with {option}."
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is not an address of this machine: give one that is with --host, for example 127.0.0.1."
    return f"port {port} on {host} cannot be listened on ({error.strerror}): choose another with {option}."


def _owner(port: int) -> str:
    """The process that listens on `port`, as far as this user may see."""
    sockets = {f"socket:[{inode}]" for inode in _listeners(port)}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(_target(file) in sockets for file in (process / "fd").iterdir()):
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
                return f"process {process.name} ({command[:80]})"
        except OSError:
            continue
    return "another process"


def _target(file: Path) -> str:
    try:
        return str(file.readlink())
    except OSError:  # closed meanwhile
        return ""


def _listeners(port: int) -> Iterator[str]:
    """Inodes of the sockets that listen on `port`."""
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        if not table.exists():
            continue
        for row in table.read_text().splitlines()[1:]:
            columns = row.split()
            if columns[3] == _LISTENING and int(columns[1].rsplit(":", 1)[1], 16) == port:
                yield columns[9]

"""The life of an instance: dial, say HELLO, wait for LOAD, import, serve, drain, exit.

Until the code is loaded there is no running loop: the main thread blocks on the socket and then imports the
code, as if it were a script. That is what `signal.signal`, `asyncio.run` and friends at module level expect.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import sys
import time
from types import ModuleType
from typing import TYPE_CHECKING, Any, Callable

from . import logs, wire
from .errors import describe
from .instance import DIAL_EVERY_S, LOST_AFTER_S, STOP_SIGNALS, Instance
from .link import Link, dial
from .load import load

if TYPE_CHECKING:
    from .load import App

FAILED_STAYS_S = 10.0  # after LOAD_FAILED the node ends the connection, and the instance; no longer than this


def main(load: Callable[..., App] = load) -> None:
    """Run what `load` makes of LOAD. Does not return."""
    socket_path = os.environ.pop("HEADRACE_SOCKET")
    instance_id = os.environ.pop("HEADRACE_INSTANCE")
    code = os.environ.pop("HEADRACE_CODE")
    layer = os.environ.pop("HEADRACE_LAYER", None)
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: os._exit(0))  # nothing runs yet
    faulthandler.enable()
    bytearray(wire.MAX_PAYLOAD)  # glibc learns from a freed block of this size to keep so much for the next ones
    sys.modules["__main__"] = ModuleType("__main__")  # the user's, as if nobody else were here
    sys.argv[:] = [""]
    instance = Instance(socket_path, instance_id)
    logs.install(instance.log)
    asyncio.set_event_loop(instance.loop)
    link, spec = _wait_for_load(instance)
    started = time.perf_counter()
    try:
        app = load(spec, code, layer, instance_id, instance.log)
        asyncio.set_event_loop(instance.loop)  # an asyncio.run in the code has left none
        instance.loop.run_until_complete(app.start())
    except BaseException as error:  # noqa: BLE001 - sys.exit at import is a failure to load, too
        _give_up(instance, link, describe(error, code))
    instance.log.finish(None)
    header = {"kind": app.kind, "ms": round((time.perf_counter() - started) * 1000, 3)}
    link.send(wire.encode(wire.LOADED, 0, wire.dumps(header)))
    try:
        instance.serve(app, link)
    except BaseException as error:  # noqa: BLE001 - the loop itself broke, its descriptors closed by user code perhaps
        os.write(2, describe(error)["stack"].encode("utf-8", "replace") + b"\n")
        os._exit(1)
    _exit()


def _wait_for_load(instance: Instance) -> tuple[Link, dict[str, Any]]:
    """The connection on which LOAD came, and its header."""
    since = time.monotonic()
    while True:
        dialled_at = time.monotonic()
        link = dial(instance.socket_path)
        if link is not None:
            link.send(instance.hello())
            instance.link = link
            spec = _read_load(link)
            if spec is not None:
                return link, spec
            link.close()
            since = time.monotonic()
        if time.monotonic() - since > LOST_AFTER_S:
            os._exit(1)
        time.sleep(max(0.0, dialled_at + DIAL_EVERY_S - time.monotonic()))


def _read_load(link: Link) -> dict[str, Any] | None:
    """The header of LOAD; None when the connection ends without one."""
    try:
        while (frame := link.read()) is not None:
            if frame.type == wire.LOAD:
                return wire.loads(frame.header)
            if frame.type == wire.PING:
                link.send(wire.encode(wire.PONG))
            elif frame.type == wire.DRAIN:
                os._exit(0)
    except wire.ProtocolError:
        pass  # whoever answered is no node
    return None


def _give_up(instance: Instance, link: Link, failure: dict[str, str]) -> None:
    instance.log.finish(None)
    link.send(wire.encode(wire.LOAD_FAILED, 0, wire.dumps(failure)))
    link.wait_for_end(FAILED_STAYS_S)
    os._exit(1)


def _exit() -> None:
    """End the process after the code's own `atexit` functions, without waiting for its threads."""
    import atexit
    import threading

    runner = threading.Thread(target=atexit._run_exitfuncs, daemon=True)
    runner.start()
    runner.join(5.0)
    os._exit(0)

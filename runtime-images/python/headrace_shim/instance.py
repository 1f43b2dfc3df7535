"""A loaded instance: its loop, its connection to the node, its way out."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from . import wire
from .errors import describe
from .link import Link, dial
from .logs import Log

if TYPE_CHECKING:
    from .load import App

DIAL_EVERY_S = 0.2
LOST_AFTER_S = 60.0  # without a node, an instance exits
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
FLUSH_S = 5.0  # longest wait, at the end, for the node to take the last bytes


class Instance:
    """One process, one function version. `link` is the current connection, None while there is none."""

    def __init__(self, socket_path: str, id: str) -> None:
        self.socket_path = socket_path
        self.loop = asyncio.new_event_loop()
        self.log = Log(lambda: self.link)
        self.link: Link | None = None
        self._id = id
        self._app: App
        self._links: list[Link] = []  # with calls that still run, lost ones too
        self._dialled_at = 0.0
        self._lost_at = 0.0
        self._draining = False
        self._finished = False
        os.register_at_fork(before=_hold_signals, after_in_parent=_release_signals, after_in_child=self._forked)

    def hello(self, kind: str | None = None) -> bytes:
        """The HELLO frame; `kind` once the code is loaded."""
        version = ".".join(map(str, sys.version_info[:3]))
        header: dict[str, Any] = {"protocol": wire.PROTOCOL, "runtime": "python", "runtime_version": version}
        header.update(pid=os.getpid(), instance=self._id, loaded=kind is not None)
        if kind is not None:
            header["kind"] = kind
        return wire.encode(wire.HELLO, 0, wire.dumps(header))

    def serve(self, app: App, link: Link) -> None:
        """Run the calls of `app` that arrive on `link` and its successors, until drained."""
        self._app = app
        self.loop.set_exception_handler(self._complain)
        for number in STOP_SIGNALS:
            signal.signal(number, lambda *_: self.loop.call_soon_threadsafe(self.drain))
        self.loop.call_soon(self._adopt, link)
        while not self._finished:
            self._run()

    def _run(self) -> None:
        try:
            self.loop.run_forever()
        except (SystemExit, KeyboardInterrupt) as error:  # raised in a task that user code started
            self.log.stack(describe(error)["stack"])

    def drain(self) -> None:
        """Finish the running calls, then shut down."""
        if self._draining:
            return
        self._draining = True
        for link in self._links:
            link.watch_idle(self._check_idle)
        self._check_idle()

    def _adopt(self, link: Link) -> None:
        self.link = link
        self._links = [old for old in self._links if old.calls]
        self._links.append(link)
        if self._draining:
            link.watch_idle(self._check_idle)
        link.attach(self.loop, self._on_frame, self._on_lost)

    def _on_lost(self, link: Link) -> None:
        self.link = None
        for call in list(link.calls.values()):
            self._app.lost(call)
        self._lost_at = time.monotonic()
        self._dial_later()

    def _dial_later(self) -> None:
        self.loop.call_later(max(0.0, self._dialled_at + DIAL_EVERY_S - time.monotonic()), self._dial)

    def _dial(self) -> None:
        self._dialled_at = time.monotonic()
        link = dial(self.socket_path)
        if link is not None:
            link.send(self.hello(self._app.kind))  # before anyone else can send
            self._adopt(link)
        elif self._dialled_at - self._lost_at > LOST_AFTER_S:
            os._exit(1)
        else:
            self._dial_later()

    def _on_frame(self, link: Link, frame: wire.Frame) -> None:
        kind = frame.type
        if kind == wire.CALL:
            self._app.call(link, frame)
            return
        if kind == wire.PING:
            link.send(wire.encode(wire.PONG), True)
            return
        if kind == wire.DRAIN:
            self.drain()
            return
        call = link.calls.get(frame.stream)
        if call is None or call.answered:
            return
        if kind == wire.BODY:
            self._app.body(call, frame.body)
        elif kind == wire.END:
            self._app.end(call, "e" in wire.loads(frame.header))
        elif kind == wire.WINDOW:
            if call.flow is not None:
                call.flow.grant(int(wire.loads(frame.header)["n"]))
        elif kind == wire.CANCEL:
            self._app.cancel(call, wire.loads(frame.header).get("why", "client"))
        elif kind in (wire.WS_MESSAGE, wire.WS_CLOSE):
            self._app.message(call, frame)

    def _check_idle(self) -> None:
        if not self._finished and not any(link.calls for link in self._links):
            self._finished = True
            self._shutdown = self.loop.create_task(self._finish())

    async def _finish(self) -> None:
        await self._app.stop()
        self.log.finish(None)
        if self.link is not None:
            self.link.flush(FLUSH_S)
        self.loop.stop()

    def _complain(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What asyncio would log: an error that nobody awaited."""
        error = context.get("exception")
        text = str(context.get("message", ""))
        self.log.stack(f"{text}\n{describe(error)['stack']}" if error is not None else text)

    def _forked(self) -> None:
        """In a child that user code forked: nothing here is the child's.

        The socket and the poll set are shared with the parent. Should the child come back into the loop, it
        ends there, before anything else that was ready.
        """
        if self.link is not None:
            self.link.forget()
        for link in self._links:
            link.forget()
        self.log.forget()
        self.loop._ready.clear()
        self.loop.call_soon(os._exit, 0)
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        _release_signals()


def _hold_signals() -> None:
    """While forking: a signal that reaches the child early, while it still has our handlers, would be lost."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def _release_signals() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

"""The lifespan of an ASGI application: its startup before the first call, its shutdown after the last."""

from __future__ import annotations

import asyncio
from typing import Any, Callable

SPEC = {"version": "3.0", "spec_version": "2.4"}
SHUTDOWN_S = 10.0  # longest shutdown
RAISE_S = 1.0  # an application that reports a failed startup usually raises its cause right after


class LifespanFailed(Exception):
    """The application reported that its startup failed, and raised nothing; or its shutdown never ended."""

    __module__ = "builtins"  # stacks show its bare name


class Lifespan:
    """Runs the lifespan protocol. An application that does not know it (it returns or raises before it asks for
    the first message) is fine without."""

    def __init__(self, app: Callable[..., Any]) -> None:
        self.state: dict[str, Any] = {}
        self._app = app
        self._asked = False
        self._failure: str | None = None
        self._error: BaseException | None = None
        self._started = asyncio.Event()
        self._stopping = asyncio.Event()
        self._stopped = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises what the application raised, or `LifespanFailed`."""
        self._task = asyncio.get_running_loop().create_task(self._run())
        await self._started.wait()
        if self._failure is not None:
            await asyncio.wait({self._task}, timeout=RAISE_S)
            raise self._error or LifespanFailed(self._failure or "the application's startup failed")
        if self._error is not None and (self._asked or not isinstance(self._error, Exception)):
            raise self._error

    async def stop(self) -> None:
        """Raises what the application raised on its way down."""
        if self._task is None or self._task.done():
            return
        self._error = None
        self._stopping.set()
        try:
            await asyncio.wait_for(self._stopped.wait(), SHUTDOWN_S)
            await asyncio.wait({self._task}, timeout=RAISE_S)
        except asyncio.TimeoutError:
            raise LifespanFailed(f"the application's shutdown took longer than {SHUTDOWN_S:.0f} s") from None
        finally:
            self._task.cancel()
        if self._error is not None:
            raise self._error

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": SPEC, "state": self.state}
        try:
            await self._app(scope, self._receive, self._send)
        except BaseException as error:  # noqa: BLE001 - SystemExit in a startup must not end the loop
            self._error = error
        finally:
            self._started.set()
            self._stopped.set()

    async def _receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "lifespan.startup"}
        await self._stopping.wait()
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "lifespan.startup.failed":
            self._failure = str(message.get("message", ""))
            self._started.set()
        elif kind == "lifespan.startup.complete":
            self._started.set()
        elif kind in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
            self._stopped.set()

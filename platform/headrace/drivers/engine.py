"""The Docker engine's API off the event loop, with its failures put into words.

The `docker` package blocks, so each request runs in one of a few threads; they share the client and its pool of
connections. A request that nobody waits for any more still runs to its end in its thread: what it brings must be
undone after it, in a task that is kept. Nothing here knows instances.
"""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import requests
from docker import APIClient
from docker.errors import APIError, DockerException, ImageNotFound

from headrace.errors import EngineUnavailable

T = TypeVar("T")
_THREADS = 8
_TIMEOUT_S = 30  # of one request; creating and starting under load takes a second or two


class Engine:
    """One engine, reached through its unix socket. Connects when first asked, again after a failure."""

    def __init__(self, socket: str) -> None:
        self._socket = socket
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="docker")
        self._connecting = threading.Lock()
        self._client: APIClient | None = None
        self._kept: set[asyncio.Task[Any]] = set()
        self._closed = False

    async def call(self, doing: str, work: Callable[[APIClient], T]) -> T:
        """What `work` returns, run in a thread. `doing` names it in the detail of the `EngineUnavailable` it raises."""
        if self._closed:
            raise EngineUnavailable(f"{doing} failed: this process is letting go of the Docker engine.")
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._work, doing, work)

    def keep(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Run `work` whoever is cancelled meanwhile; `close` waits for it."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._kept.add(task)
        task.add_done_callback(self._kept.discard)
        return task

    async def close(self) -> None:
        while self._kept:
            await asyncio.wait(self._kept)
        self._closed = True
        self._threads.shutdown(wait=False)
        if self._client is not None:
            self._client.close()

    def _work(self, doing: str, work: Callable[[APIClient], T]) -> T:
        try:
            return work(self._connected())
        except (DockerException, requests.RequestException, OSError) as error:
            raise EngineUnavailable(f"{doing} failed: {explain(error, self._socket)}") from error

    def _connected(self) -> APIClient:
        with self._connecting:
            if self._client is None:
                self._client = APIClient(
                    f"unix://{self._socket}", version="auto", timeout=_TIMEOUT_S, max_pool_size=_THREADS
                )
            return self._client


def explain(error: BaseException, socket: str) -> str:
    """What went wrong between us and the engine, and what to do about it, in one or two sentences."""
    causes = list(_causes(error))
    numbers = {cause.errno for cause in causes if isinstance(cause, OSError) and cause.errno}
    if errno.ENOENT in numbers:
        return (
            f"there is no Docker engine at {socket}. Install it (Debian, Ubuntu: apt-get install docker.io), or start "
            "it: `systemctl start docker`, without systemd `setsid dockerd &`."
        )
    if numbers & {errno.EACCES, errno.EPERM}:
        return (
            f"no permission to use the Docker engine at {socket}. Add this user to its group "
            "(`sudo usermod -aG docker $USER`) and log in again, or run as root."
        )
    if numbers & {errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE}:
        return (
            f"the Docker engine at {socket} is stopped. Start it: `systemctl start docker`, without systemd "
            "`setsid dockerd &`."
        )
    if any(isinstance(cause, requests.Timeout) for cause in causes):
        return f"the Docker engine did not answer within {_TIMEOUT_S} s. Look at its log and at the machine's load."
    return _explain_answer(error, socket)


def _explain_answer(error: BaseException, socket: str) -> str:
    text = str((isinstance(error, APIError) and error.explanation) or error)
    if "no space left" in text.lower():
        return (
            "the disk of the Docker engine is full. Free some space (`docker system df` shows what it holds, "
            "`docker system prune` removes what nothing uses) and try again."
        )
    if isinstance(error, ImageNotFound):
        return f"an image is missing ({text}). Start Headrace again: it gets the image first."
    if "executable file not found" in text or ("no such file or directory" in text and "exec" in text):
        return (
            f"the image does not hold the program to run ({text}). Correct HEADRACE_BASE_IMAGE_<RUNTIME>, if it is set."
        )
    if isinstance(error, APIError):
        return f"the Docker engine refused: {text}."
    return f"the Docker engine at {socket} can't be used ({text}). Check it with `docker info`."


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and all that led to it: `requests` and `urllib3` hide the real one in arguments."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        item = waiting.pop()
        if isinstance(item, BaseException) and id(item) not in seen:
            seen.add(id(item))
            yield item
            waiting += [item.__cause__, item.__context__, *item.args]

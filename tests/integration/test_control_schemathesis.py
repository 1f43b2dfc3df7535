"""The OpenAPI document against the API it describes: everything that schemathesis can think of, all checks on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case, HookContext, Response
from schemathesis.core.failures import Failure
from schemathesis.openapi.checks import RejectedPositiveData
from schemathesis.specs.openapi.schemas import OpenApiSchema

from control_kit import World, served, world
from headrace.control.app import create_app
from headrace.control.services import Following


class Stage:
    """A world on a real server, in a thread of its own."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._loop = asyncio.new_event_loop()
        self._stack = AsyncExitStack()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self.operation = ""
        self.world: World
        self.base: str

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        future: Future[Any] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result(60)

    def open(self) -> None:
        self._thread.start()
        self.run(self._open())

    async def _open(self) -> None:
        following = Following(poll_s=0.01, longest_s=0.05)
        self.world = await self._stack.enter_async_context(world(self._home, following))
        self.base = await self._stack.enter_async_context(served(self.world.app))

    def close(self) -> None:
        self.run(self._stack.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _furnish(self) -> None:
        await self.world.announce()
        await self.world.live()

    def furnish(self) -> None:
        """Bring back what an earlier call may have deleted: a function with a version that is live."""
        self.run(self._furnish())


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    made = Stage(tmp_path_factory.mktemp("home"))
    made.open()
    yield made
    made.close()


def _document() -> OpenApiSchema:
    schema = schemathesis.openapi.from_dict(create_app(None).openapi())  # type: ignore[arg-type]
    schema.config.generation.update(max_examples=10, deterministic=True)
    return schema


api = _document()

# Rules that JSON Schema can't express, by what the API says when one is broken. All other checks hold for these too.
BEYOND_SCHEMAS = (
    "cursor is not one that this list gave",
    "traffic weights sum to ",
    "in the part 'config'",
    "kind '",  # what a runtime can't do
    "memory_mb ",
)
OF_IMAGES = ("this is for images only", "an image serves HTTP by itself")  # keys of a config that exclude each other


@api.hook
def filter_failure(context: HookContext, failure: Failure, case: Case, response: Response) -> bool:
    if not isinstance(failure, RejectedPositiveData):
        return True
    problem = response.json()
    detail = problem["detail"]
    known = detail.startswith(BEYOND_SCHEMAS) or any(words in detail for words in OF_IMAGES)
    return not (problem["code"] == "bundle_rejected" or known)


@pytest.fixture(scope="module")
def call(stage: Stage) -> dict[str, Any]:
    return {"base_url": stage.base, "headers": {"Authorization": f"Bearer {stage.world.admin}"}}


@api.parametrize()
def test_the_document_is_true(stage: Stage, call: dict[str, Any], case: Case) -> None:
    if case.operation.label != stage.operation or case.method == "DELETE":
        stage.furnish()
        stage.operation = case.operation.label
    case.call_and_validate(**call)


def test_the_document_is_true_of_calls_that_follow_each_other(stage: Stage, call: dict[str, Any]) -> None:
    """Answers feed the next calls: what was made is shown, what was deleted is gone."""
    machine: Any = api.as_state_machine()

    class Story(machine):  # type: ignore[misc]
        def setup(self) -> None:
            stage.furnish()

        def get_call_kwargs(self, case: Case) -> dict[str, Any]:
            return call

    Story.run(
        settings=settings(
            max_examples=10,
            stateful_step_count=10,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
    )

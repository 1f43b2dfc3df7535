"""One Headrace for all end-to-end tests, as a user runs it, and the command line pointed at it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from stack import Headrace, headrace


@pytest.fixture(scope="session")
def platform() -> Iterator[Headrace]:
    with headrace() as running:
        yield running

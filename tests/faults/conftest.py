"""A Headrace of its own for the tests that break things."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from stack import Headrace, headrace


@pytest.fixture(scope="module")
def platform() -> Iterator[Headrace]:
    with headrace() as running:
        yield running

"""One Headrace for all end-to-end tests, as a user runs it, and the command line pointed at it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import raw_http
from stack import Headrace, headrace


@pytest.fixture(scope="session")
def platform() -> Iterator[Headrace]:
    with headrace() as running:
        yield running


@pytest.fixture(scope="session")
def edge() -> Iterator[Headrace]:
    """A platform that waits shortly, trusts one proxy, and runs `functions/edge.py`."""
    settings = {
        "header_timeout_s": raw_http.HEADER_S,
        "body_timeout_s": raw_http.BODY_S,
        "idle_timeout_s": raw_http.IDLE_S,
    }
    told = {name: str(value) for name, value in settings.items()}
    with headrace(trusted_proxies=raw_http.PROXY, max_body_mb="256", **told) as running:
        config = {"handler": "edge.app", "max_instances": 1, "concurrency": 50, "timeout_s": 30}
        code = (Path(__file__).parent / "functions" / "edge.py").read_text()
        running.deploy("edge", {"edge.py": code}, config)
        yield running

"""The table of cases, through every way in which the shim of each runtime runs a handler."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from headrace import wire
from node_kit import waiting_node
from shell_kit import waiting_shell
from shim_kit import Answer, Shim, waiting_shim

CASES_DIR = Path(__file__).parent / "shim_cases"
CASES = json.loads((CASES_DIR / "cases.json").read_text())
WAYS = [
    ("python", "handler.py", "handler.handler"),
    ("python", "handler.py", "handler.async_handler"),
    ("node", "handler.js", "handler.handler"),
    ("node", "handler.js", "handler.asyncHandler"),
    ("shell", "handler.sh", "handler.handler"),
]

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=WAYS, ids=lambda way: "-".join(way[::2]))
async def shim(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shim]:
    runtime, file, handler = request.param
    waiting = {"python": waiting_shim, "node": waiting_node, "shell": waiting_shell}[runtime]
    source = (CASES_DIR / runtime / file).read_text()
    async with waiting(tmp_path_factory.mktemp("cases"), {file: source}) as shim:
        frame = await shim.load(handler=handler)
        assert frame.type == wire.LOADED
        yield shim


async def ask(shim: Shim, call: dict[str, Any]) -> Answer:
    fields = dict(call)
    if "payload" in fields:
        return await shim.link.payload(fields["payload"].encode()).answer()
    body = fields.pop("body", "").encode() or bytes.fromhex(fields.pop("body_hex", ""))
    then = None
    if size := fields.pop("body_size", 0):
        then = b"x" * size
    return await shim.link.call(fields.pop("p"), body, then=then, **fields).answer()


def contains(actual: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return isinstance(actual, dict) and all(key in actual and contains(actual[key], wanted[key]) for key in wanted)
    return actual == wanted


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
async def test_case(shim: Shim, case: dict[str, Any]) -> None:
    expect = case.get("differs", {}).get(shim.hello["runtime"], case["expect"])

    answer = await ask(shim, case["call"])

    if "error" in expect:
        assert answer.error is not None
        assert re.search(expect["error"]["message"], answer.error["message"])
        assert expect["error"].get("stack", "") in answer.error["stack"]
        assert set(answer.error) == {"type", "message", "stack"}
    else:
        assert answer.error is None
    assert answer.status == expect.get("status", 0)
    for name, value in expect.get("headers", {}).items():
        assert answer.header(name) == value
    if expect.get("headers") == {}:
        assert answer.headers == []
    if "header_list" in expect:
        assert answer.headers == expect["header_list"]
    if "body" in expect:
        assert answer.body.decode() == expect["body"]
    if "body_hex" in expect:
        assert answer.body.hex() == expect["body_hex"]
    if "body_size" in expect:
        assert len(answer.body) == expect["body_size"]
    if "json" in expect:
        assert answer.json() == expect["json"]
    if "json_subset" in expect:
        assert contains(answer.json(), expect["json_subset"])
    if "frames" in expect:
        assert len(answer.frames) == expect["frames"]
    longest = {wire.REPLY: wire.INLINE, wire.BODY: wire.CHUNK}
    assert all(len(frame.body) <= longest.get(frame.type, 0) for frame in answer.frames)

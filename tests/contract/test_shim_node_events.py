"""Events and contexts: what a Python handler sees for a call, a Node handler sees too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from headrace import wire
from node_kit import loaded_node
from shim_kit import Shim, loaded_shim

PYTHON = """
def handler(event, context):
    return {"statusCode": 200, "body": event}
"""
NODE = """
exports.handler = (event, context) => ({ statusCode: 200, body: event });
"""
BYTES = b"\x00\xff\xfe"
CASES: dict[str, tuple[str, bytes, dict[str, Any]]] = {
    "plain": ("/", b"", {}),
    "query": ("/a%20b/c?x=1&x=2&y=%C3%A4+b&z&=v&&bad=%zz&plus=1%2B1&constructor=c", b"", {"m": "DELETE"}),
    "no query value": ("/?", b"", {}),
    "cookies": ("/", b"", {"h": [["cookie", "a=1; b=2"], ["cookie", "c=3"], ["host", "h"]]}),
    "headers twice": ("/", b"", {"h": [["x-a", "1"], ["x-a", "2"], ["accept", "*/*"], ["tostring", "t"]]}),
    "latin-1": ("/", b"", {"h": [["x-a", "caf\u00e9"], ["host", "[::1]:80"]]}),
    "text body": ("/", "äöü".encode(), {"m": "POST", "h": [["content-type", "text/plain"]]}),
    "json body": ("/", b'{"a":1}', {"m": "POST", "h": [["content-type", "application/json; charset=utf-8"]]}),
    "suffix json": ("/", b"{}", {"m": "POST", "h": [["content-type", "Application/Problem+JSON"]]}),
    "binary body": ("/", BYTES, {"m": "PUT", "h": [["content-type", "image/png"]]}),
    "text as binary": ("/", b"abc", {"m": "PUT", "h": [["content-type", "image/png"]]}),
    "broken text": ("/", BYTES, {"m": "PUT", "h": [["content-type", "text/plain"]]}),
    "untyped text": ("/", b"abc", {"m": "PUT"}),
    "untyped bytes": ("/", BYTES, {"m": "PUT"}),
    "http/2, tls": ("/", b"", {"v": "2", "s": "https", "ip": "2001:db8::1"}),
}


async def event_of(shim: Shim, path: str, body: bytes, fields: dict[str, Any]) -> Any:
    answer = await shim.call(path, body, **fields)
    assert answer.error is None
    event = answer.json()
    assert isinstance(event["requestContext"].pop("time"), str)
    assert isinstance(event["requestContext"].pop("timeEpoch"), int)
    return event


async def test_events_are_equal(tmp_path: Path) -> None:
    async with loaded_shim(tmp_path / "python", PYTHON) as python, loaded_node(tmp_path / "node", NODE) as node:
        for name, (path, body, fields) in CASES.items():
            expected = await event_of(python, path, body, fields)
            assert await event_of(node, path, body, fields) == expected, name


async def test_the_time_of_a_call_has_the_same_form(tmp_path: Path) -> None:
    async with loaded_shim(tmp_path / "python", PYTHON) as python, loaded_node(tmp_path / "node", NODE) as node:
        for _ in range(5):  # the second may change between the two
            times = [(await shim.call("/")).json()["requestContext"]["time"] for shim in (python, node)]
            if times[0] == times[1]:
                return
    raise AssertionError(times)


async def test_a_long_body_arrives_whole_under_the_window(tmp_path: Path) -> None:
    source = """
    exports.handler = (event) => [event.isBase64Encoded, Buffer.from(event.body, 'base64').length];
    """
    body = bytes(range(256)) * 4000
    async with loaded_node(tmp_path, source) as shim:
        stream = shim.link.call("/", body[: wire.INLINE], m="POST", then=body[wire.INLINE :])
        granted, answer = 0, None
        while answer is None:
            frame = await stream.frame()
            if frame.type == wire.WINDOW:
                granted += wire.loads(frame.header)["n"]
            else:
                answer = frame
    assert json.loads(answer.body) == [True, len(body)]
    assert len(body) - wire.INLINE - granted < 64 << 10  # what is not worth a frame yet


async def test_a_body_that_stops_halfway_runs_nothing(tmp_path: Path) -> None:
    async with loaded_node(tmp_path, "let n = 0; exports.handler = () => ++n;") as shim:
        stream = shim.link.open()
        stream.send(wire.CALL, {"id": "i", "d": 1000, "m": "POST", "p": "/", "q": "", "h": [], "more": True}, b"half")
        stream.send(wire.END, {"e": {"type": "Gone", "message": "", "stack": ""}})
        assert (await shim.call("/")).json() == 1
        assert stream.waiting == 0


async def test_payloads_that_are_no_request(tmp_path: Path) -> None:
    async with loaded_node(tmp_path, "exports.handler = (event) => ({ got: event, statusCode: 7 });") as shim:
        for payload in (b'{"a": [1, null]}', b'"text"', b"17"):
            answer = await shim.link.payload(payload).answer()
            assert answer.status == 200
            assert answer.json() == {"got": json.loads(payload), "statusCode": 7}
        assert (await shim.link.payload(b"").answer()).json()["got"] == {}
        for broken in (b"{", b'"\xff"'):
            error = (await shim.link.payload(broken).answer()).error
            assert error is not None
            assert error["type"] == "BadPayload"


async def test_the_context_says_who_runs_and_for_how_long(tmp_path: Path) -> None:
    source = """
    exports.handler = (event, context) => {
      context.callbackWaitsForEmptyEventLoop = false;
      return [
        context.awsRequestId, context.invocationId, context.invocation_id, context.namespace, context.functionName,
        context.functionVersion, context.memoryLimitInMB, context.invokedFunctionArn, context.logGroupName,
        context.logStreamName, context.signal instanceof AbortSignal && !context.signal.aborted,
        context.getRemainingTimeInMillis(),
      ];
    };
    """
    async with loaded_node(tmp_path, source, namespace="shop", function="cart", version=3, memory_mb=256) as shim:
        *who, left = (await shim.call("/", id="inv-9", d=5000)).json()
        assert who == [
            *("inv-9", "inv-9", "inv-9", "shop", "cart", "3", 256, "arn:headrace:function:shop:cart:3"),
            *("/headrace/shop/cart", "i1", True),
        ]
        assert 0 < left <= 5000
        assert (await shim.call("/", d=0)).json()[-1] == 0

"""WebSockets of plain handlers: events in, commands out; one behaviour in every runtime and way to run a handler."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from headrace import wire
from node_kit import waiting_node
from shell_kit import waiting_shell
from shim_kit import Shim, Stream, http_header, waiting_shim

PYTHON = """
import json
def answer(event, context):
    kind, ws = event["requestContext"].get("eventType", "HTTP"), context.ws
    does = event["rawPath"][1:] if kind in ("CONNECT", "HTTP") else event["body"]
    if does == "plain": return None
    if does == "refuse": return {"statusCode": 403, "headers": {"x-why": "no"}, "body": "not you"}
    if does == "choose": return {"statusCode": 200, "headers": {"Sec-WebSocket-Protocol": "b"}}
    if does == "raise": raise LookupError("on purpose")
    if does == "enter": ws.join("tea"); ws.join("x", to="other"); ws.leave("tea"); return {}
    if does == "text": return "grüß dich"
    if does == "bytes": return b"\\x00\\xff"
    if does == "object": return {"a": [1, None]}
    if does == "explicit": return {"statusCode": 202, "body": "AP8=", "isBase64Encoded": True}
    if does == "empty": return {"statusCode": 204}
    if does == "stream": return iter(["a"])
    if does == "others": ws.send("hi", to="other"); ws.send({"n": 1}, group="tea"); ws.close(4001, "bye", to="other")
    if does == "flood":
        for letter in "abcde": ws.send(letter * 150_000)
    if does == "AP8=": return event["isBase64Encoded"]
    if does == "close": ws.close()
    if does == "id": return ws.connection_id
    if does == "wrong": return wrong(ws)
    if does == "event": print("event", json.dumps(event)); return None
    if kind == "DISCONNECT": print("event", json.dumps(event))
    return "done" if kind == "HTTP" else None
def wrong(ws):
    seen = []
    for does in (lambda: ws.send("x" * 1048577), lambda: ws.send("x", to="a", group="b"), lambda: ws.join("g" * 129),
                 lambda: ws.close(1005), lambda: ws.close(1000, "x" * 124)):
        try: does()
        except Exception as error: seen.append(type(error).__name__)
    return len(seen)
"""
VARIANTS = {
    "plain": PYTHON + "handler = answer\n",
    "async": PYTHON + "async def handler(event, context): return answer(event, context)\n",
    "node": """
exports.handler = async (event, context) => {
  const kind = event.requestContext.eventType ?? 'HTTP', ws = context.ws;
  const does = ['CONNECT', 'HTTP'].includes(kind) ? event.rawPath.slice(1) : event.body;
  if (does === 'plain') return undefined;
  if (does === 'refuse') return { statusCode: 403, headers: { 'x-why': 'no' }, body: 'not you' };
  if (does === 'choose') return { statusCode: 200, headers: { 'Sec-WebSocket-Protocol': 'b' } };
  if (does === 'raise') throw new Error('on purpose');
  if (does === 'enter') { ws.join('tea'); ws.join('x', { to: 'other' }); ws.leave('tea'); return {}; }
  if (does === 'text') return 'grüß dich';
  if (does === 'bytes') return Buffer.from([0, 255]);
  if (does === 'object') return { a: [1, null] };
  if (does === 'explicit') return { statusCode: 202, body: 'AP8=', isBase64Encoded: true };
  if (does === 'empty') return { statusCode: 204 };
  if (does === 'stream') return ['a'].values();
  if (does === 'others') {
    ws.send('hi', { to: 'other' }); ws.send({ n: 1 }, { group: 'tea' }); ws.close(4001, 'bye', { to: 'other' });
  }
  if (does === 'flood') for (const letter of 'abcde') ws.send(letter.repeat(150_000));
  if (does === 'AP8=') return event.isBase64Encoded;
  if (does === 'close') ws.close();
  if (does === 'id') return ws.connectionId;
  if (does === 'wrong') return wrong(ws);
  if (does === 'event') { console.log('event', JSON.stringify(event)); return null; }
  if (kind === 'DISCONNECT') console.log('event', JSON.stringify(event));
  return kind === 'HTTP' ? 'done' : null;
};
function wrong(ws) {
  let seen = 0;
  for (const does of [() => ws.send('x'.repeat(1048577)), () => ws.send('x', { to: 'a', group: 'b' }),
    () => ws.join('g'.repeat(129)), () => ws.close(1005), () => ws.close(1000, 'x'.repeat(124))]) {
    try { does(); } catch { seen += 1; }
  }
  return seen;
}
""",
    "shell": """
own=$HEADRACE_CONNECTION
case $HEADRACE_EVENT in
  connect | '') does=${PATH_INFO#/} ;;
  message) does=$(head -c 8 | tr -d '\\0') ;;
  disconnect) { printf '<6>event ' && cat <&3; } >&2 ;;
esac
tell() { printf 'Socket: %s\\n' "$@" >&4; }
case $does in
  refuse) printf '%s\\n' 'Status: 403' 'x-why: no' >&4 && printf 'not you' ;;
  choose) echo 'Sec-WebSocket-Protocol: b' >&4 ;;
  raise) echo 'on purpose' >&2 && exit 1 ;;
  enter) tell 'join tea' 'join x other' 'leave tea' ;;
  text) echo 'grüß dich' ;;
  bytes) printf '\\0\\377' ;;
  object) echo '{"a":[1,null]}' ;;
  explicit) echo 'Status: 202' >&4 && printf '\\0\\377' ;;
  empty) echo 'Status: 204' >&4 ;;
  others) tell 'send-to other hi' 'send-group tea {"n":1}' 'close-other other 4001 bye' ;;
  flood) for c in a b c d e; do printf 'Socket: send ' && head -c 150000 /dev/zero | tr '\\0' $c && echo; done >&4 ;;
  $(printf '\\377')) echo true ;;
  close) tell close ;;
  id) echo "$own" ;;
  wrong) echo 5 ;; # each of them fails its call: see test_shim_shell.py
  event) { printf '<6>event ' && cat <&3; } >&2 ;;
esac
if [ -z "$HEADRACE_EVENT" ]; then printf 'done'; fi
""",
}

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=VARIANTS)
async def shim(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shim]:
    others = {"node": ("handler.js", waiting_node), "shell": ("handler.sh", waiting_shell)}
    file, waiting = others.get(request.param, ("handler.py", waiting_shim))
    async with waiting(tmp_path_factory.mktemp("sockets"), {file: VARIANTS[request.param]}) as shim:
        assert (await shim.load()).type == wire.LOADED
        yield shim


def opened(shim: Shim, path: str) -> Stream:
    stream = shim.link.open()
    stream.send(wire.CALL, http_header(path, ws=True, c="mine", at=1_700_000_000_123))
    return stream


def event(shim: Shim, kind: str, body: bytes = b"", *, then: bytes = b"", **fields: Any) -> Stream:
    stream = shim.link.open()
    header = {"id": "inv-1", "d": 30_000, "ev": kind, "c": "mine", "at": 17, "ip": "192.0.2.7", "host": "fn.example:1"}
    stream.send(wire.CALL, {**header, **fields, **({"more": True} if then else {})}, body)
    for at in range(0, len(then), wire.CHUNK):
        stream.send(wire.BODY, None, then[at : at + wire.CHUNK])
    if then:
        stream.send(wire.END)
    return stream


async def outcome(stream: Stream) -> tuple[list[tuple[int, dict[str, Any], bytes]], wire.Frame]:
    """The commands of a call, in order, and its last frame."""
    commands = []
    while (frame := await stream.frame()).type in (wire.WS_MESSAGE, wire.WS_CLOSE, wire.WS_GROUP, wire.WINDOW):
        if frame.type != wire.WINDOW:
            commands.append((frame.type, wire.loads(frame.header), frame.body))
    return commands, frame


async def test_an_upgrade_is_accepted_whatever_is_returned_and_refused_by_a_status(shim: Shim) -> None:
    for path, chosen in (("/plain", None), ("/text", None), ("/choose", "b")):
        commands, frame = await outcome(opened(shim, path))
        header = wire.loads(frame.header)
        assert (frame.type, commands, header.get("ev"), header.get("sp")) == (wire.WS_ACCEPT, [], True, chosen)
    _, refusal = await outcome(opened(shim, "/refuse"))
    assert (refusal.type, wire.loads(refusal.header)["s"], refusal.body) == (wire.REPLY, 403, b"not you")
    assert ["x-why", "no"] in wire.loads(refusal.header)["h"]
    _, failure = await outcome(opened(shim, "/raise"))
    assert (failure.type, wire.loads(failure.header)["e"]["message"]) == (wire.REPLY, "on purpose")


async def test_groups_are_joined_and_left_before_the_answer(shim: Shim) -> None:
    commands, frame = await outcome(opened(shim, "/enter"))
    assert frame.type == wire.WS_ACCEPT
    assert [(kind, header["g"], header["to"], header.get("in", False)) for kind, header, _ in commands] == [
        (wire.WS_GROUP, "tea", "mine", True),
        (wire.WS_GROUP, "x", "other", True),
        (wire.WS_GROUP, "tea", "mine", False),
    ]


@pytest.mark.parametrize(
    ("does", "text", "sent", "status"),
    [
        ("text", 1, "grüß dich".encode(), 200),
        ("bytes", 0, b"\x00\xff", 200),
        ("object", 1, b'{"a":[1,null]}', 200),
        ("explicit", 0, b"\x00\xff", 202),
        ("id", 1, b"mine", 200),
        ("wrong", 1, b"5", 200),
        ("empty", None, b"", 204),
        ("plain", None, b"", 200),
    ],
)
async def test_what_a_message_event_returns_goes_back(
    shim: Shim, does: str, text: int | None, sent: bytes, status: int
) -> None:
    commands, frame = await outcome(event(shim, "message", does.encode(), t=1))
    assert (frame.type, wire.loads(frame.header)["s"]) == (wire.REPLY, status)
    assert commands == ([] if text is None else [(wire.WS_MESSAGE, {"t": text, "to": "mine"}, sent)])


async def test_a_stream_is_no_answer_to_an_event(shim: Shim) -> None:
    if shim.hello["runtime"] == "shell":
        return  # what a program prints is one message, however long it takes
    _, frame = await outcome(event(shim, "message", b"stream", t=1))
    assert "context.ws.send" in wire.loads(frame.header)["e"]["message"]


async def test_any_call_may_send_to_other_connections_and_groups(shim: Shim) -> None:
    for stream in (shim.link.call("/others"), event(shim, "message", b"others", t=1)):
        commands, frame = await outcome(stream)
        assert commands == [
            (wire.WS_MESSAGE, {"t": 1, "to": "other"}, b"hi"),
            (wire.WS_MESSAGE, {"t": 1, "g": "tea"}, b'{"n":1}'),
            (wire.WS_CLOSE, {"c": 4001, "r": "bye", "to": "other"}, b""),
        ]
        assert frame.type == wire.REPLY
    _, failure = await outcome(shim.link.call("/close"))
    assert "name one" in wire.loads(failure.header)["e"]["message"], "an HTTP call has no connection of its own"
    commands, _ = await outcome(event(shim, "message", b"close", t=1))
    assert commands == [(wire.WS_CLOSE, {"c": 1000, "r": "", "to": "mine"}, b"")]


async def _shown(shim: Shim, stream: Stream) -> dict[str, Any]:
    _, frame = await outcome(stream)
    assert frame.type in (wire.REPLY, wire.WS_ACCEPT), frame
    [line] = [log["text"] for log in stream.logs if log["text"].startswith("event ")]
    shown: dict[str, Any] = wire.json.loads(line.removeprefix("event "))
    return shown


async def test_events_have_the_shape_of_api_gateways(shim: Shim) -> None:
    connect = await _shown(shim, opened(shim, "/event?a=1"))
    context = connect["requestContext"]
    expected = {
        "eventType": "CONNECT",
        "routeKey": "$connect",
        "connectionId": "mine",
        "connectedAt": 1_700_000_000_123,
    }
    assert context.items() >= {**expected, "domainName": "fn.example", "requestId": "inv-0", "apiId": "case"}.items()
    assert context["identity"] == {"sourceIp": "192.0.2.7", "userAgent": "kit/1"}
    assert (connect["headers"]["host"], connect["queryStringParameters"]) == ("fn.example:7780", {"a": "1"})
    assert (connect["rawPath"], connect["rawQueryString"], connect["body"]) == ("/event", "a=1", "")

    message = await _shown(shim, event(shim, "message", b"event", t=1))
    context = message["requestContext"]
    expected = {"eventType": "MESSAGE", "routeKey": "$default", "connectionId": "mine", "connectedAt": 17}
    assert context.items() >= {**expected, "domainName": "fn.example", "messageId": "inv-1"}.items()
    assert (message["body"], message["isBase64Encoded"]) == ("event", False)

    left = await _shown(shim, event(shim, "disconnect", code=1001, r="going"))
    context = left["requestContext"]
    expected = {"eventType": "DISCONNECT", "routeKey": "$disconnect", "disconnectStatusCode": 1001}
    assert context.items() >= {**expected, "disconnectReason": "going"}.items()
    assert left["requestContext"].keys() >= connect["requestContext"].keys() - {"identity"}


async def test_bytes_arrive_as_base64_and_long_messages_whole(shim: Shim) -> None:
    commands, _ = await outcome(event(shim, "message", b"\x00\xff", t=0))
    assert [body for _, _, body in commands] == [b"true"]
    commands, frame = await outcome(event(shim, "message", b"o" * wire.INLINE, then=b"o" * 300_000, t=1))
    assert (commands, wire.loads(frame.header)["s"]) == ([], 200)


async def test_messages_wait_for_the_window_one_after_the_other_and_the_answer_comes_last(shim: Shim) -> None:
    stream = event(shim, "message", b"flood", t=1)
    sent = 0
    texts = [b""]
    while (frame := await stream.frame()).type == wire.WS_MESSAGE:
        sent += len(frame.body)
        texts[-1] += frame.body
        if not wire.loads(frame.header).get("more"):
            texts.append(b"")
        if sent >= wire.WINDOW_SIZE:
            await asyncio.sleep(0.05)
            assert not stream.waiting, "nothing more than the window allows"
            stream.send(wire.WINDOW, {"n": sent})
            sent = 0
    assert frame.type == wire.REPLY
    assert texts == [*(letter.encode() * 150_000 for letter in "abcde"), b""]


SENDS_MUCH = {
    "handler.js": "exports.handler = (event, { ws }) => { "
    "for (const c of 'abcde') ws.send(c.repeat(150_000), { group: 'g' }); return 'done'; };",
    "handler.py": "async def handler(event, context):\n"
    "    for c in 'abcde': context.ws.send(c * 150_000, group='g')\n    return 'done'\n",
}


@pytest.mark.parametrize("file", SENDS_MUCH)
async def test_what_nobody_awaited_is_sent_before_the_answer(tmp_path: Path, file: str) -> None:
    waiting = waiting_node if file.endswith("js") else waiting_shim
    async with waiting(tmp_path, {file: SENDS_MUCH[file]}) as shim:
        assert (await shim.load()).type == wire.LOADED
        stream = shim.link.call("/")
        size = 0
        while (frame := await stream.frame()).type == wire.WS_MESSAGE:
            size += len(frame.body)
            stream.send(wire.WINDOW, {"n": len(frame.body)})
        assert (size, frame.type, frame.body) == (750_000, wire.REPLY, b"done")

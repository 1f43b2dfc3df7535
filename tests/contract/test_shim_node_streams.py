"""Streamed answers of the Node shim, windows, and calls that nobody waits for any more."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace import wire
from node_kit import loaded_node
from shim_kit import Stream

TEXT = "text/plain; charset=utf-8"
BINARY = "application/octet-stream"

# What is returned: [content type, the pieces as they arrive]
STREAMS: dict[str, tuple[str, str, list[bytes]]] = {
    "generator": ("(function* () { yield 'a'; yield Buffer.from('b'); })()", TEXT, [b"a", b"b"]),
    "async generator": ("(async function* () { yield new Uint8Array([1]); yield 'b'; })()", BINARY, [b"\x01", b"b"]),
    "iterator": ("['a', 'b'].values()", TEXT, [b"a", b"b"]),
    "web stream": (
        "new ReadableStream({ start(c) { c.enqueue('a'); c.enqueue('b'); c.close(); } })",
        TEXT,
        [b"a", b"b"],
    ),
    "fetched": ("new Response('ab').body", BINARY, [b"ab"]),
    "node stream": ("require('node:stream').Readable.from(['a', 'b'])", TEXT, [b"a", b"b"]),
    "body": ("({ statusCode: 206, headers: { a: 'b' }, body: ['a', 'b'].values() })", TEXT, [b"a", b"b"]),
    "empty pieces": ("['', 'a', ''].values()", TEXT, [b"a"]),
}


def routes(cases: dict[str, str]) -> str:
    listed = ",\n".join(f"'/{name}': () => ({value})" for name, value in cases.items())
    return f"const cases = {{ {listed} }};\nexports.handler = async (event) => cases[event.rawPath]();"


async def test_every_kind_of_stream(tmp_path: Path) -> None:
    source = routes({name: value for name, (value, _, _) in STREAMS.items()})
    async with loaded_node(tmp_path, source) as shim:
        for name, (_, media, pieces) in STREAMS.items():
            answer = await shim.call(f"/{name}")
            assert answer.error is None, (name, answer.error)
            assert answer.header("content-type") == media, name
            head, *bodies, end = answer.frames
            assert (head.type, end.type) == (wire.HEAD, wire.END), name
            assert [frame.body for frame in bodies] == pieces, name
            assert answer.status == (206 if name == "body" else 200), name


async def test_a_stream_without_pieces_is_an_empty_answer(tmp_path: Path) -> None:
    async with loaded_node(tmp_path, "exports.handler = () => [].values();") as shim:
        answer = await shim.call("/")
        assert (answer.frames[0].type, answer.status, answer.body) == (wire.REPLY, 200, b"")


async def test_pieces_leave_as_they_are_made(tmp_path: Path) -> None:
    source = """
    let go;
    exports.handler = (event) => {
      if (event.rawPath === '/go') return void go();
      return (async function* () { yield 'first'; await new Promise((ready) => (go = ready)); yield 'second'; })();
    };
    """
    async with loaded_node(tmp_path, source) as shim:
        stream = shim.link.call("/")
        assert (await stream.frame()).type == wire.HEAD
        assert (await stream.frame()).body == b"first"
        await shim.call("/go")
        assert (await stream.frame()).body == b"second"
        assert (await stream.frame()).type == wire.END


async def test_failures_before_and_after_the_head(tmp_path: Path) -> None:
    cases = {
        "early": "(function* () { throw new Error('early'); })()",
        "late": "(function* () { yield 'a'; throw new Error('late'); })()",
        "number": "[5].values()",
        "locked": "(() => { const s = new ReadableStream(); s.getReader(); return s; })()",
    }
    async with loaded_node(tmp_path, routes(cases)) as shim:
        early = await shim.call("/early")
        assert early.error is not None
        assert ([frame.type for frame in early.frames], early.error["message"]) == ([wire.REPLY], "early")
        late = await shim.call("/late")
        assert late.error is not None
        assert ([frame.type for frame in late.frames], late.body) == ([wire.HEAD, wire.BODY, wire.END], b"a")
        assert late.error["message"] == "late"
        number = await shim.call("/number")
        assert number.error is not None
        assert "yielded a value of type number" in number.error["message"]
        assert (await shim.call("/locked")).error is not None


async def pieces_until_silent(shim_call: Stream) -> int:
    """Body bytes until the sender has used up its window."""
    got = 0
    assert (await shim_call.frame()).type == wire.HEAD
    while got < wire.WINDOW_SIZE:
        frame = await shim_call.frame()
        assert frame.type == wire.BODY
        assert len(frame.body) <= wire.CHUNK
        got += len(frame.body)
    return got


@pytest.mark.parametrize("value", ["Buffer.alloc(2000000)", "[Buffer.alloc(2000000)].values()"])
async def test_a_sender_without_window_waits(tmp_path: Path, value: str) -> None:
    source = f"exports.handler = (event) => event.rawPath === '/ping' ? 'pong' : {value};"
    async with loaded_node(tmp_path, source) as shim:
        stream = shim.link.call("/")
        assert await pieces_until_silent(stream) == wire.WINDOW_SIZE
        assert (await shim.call("/ping")).body == b"pong"  # the neighbours go on
        assert stream.waiting == 0
        stream.send(wire.WINDOW, {"n": 10})
        assert len((await stream.frame()).body) == 10
        stream.send(wire.WINDOW, {"n": 1_000_000})
        rest = 0
        while (frame := await stream.frame()).type == wire.BODY:
            rest += len(frame.body)
        assert frame.type == wire.END
        assert rest == 2_000_000 - wire.WINDOW_SIZE - 10


async def test_cancel_aborts_the_signal_and_drops_the_answer(tmp_path: Path) -> None:
    source = """
    const seen = [];
    exports.handler = async (event, context) => {
      if (event.rawPath === '/seen') return seen;
      await new Promise((ready) => context.signal.addEventListener('abort', ready));
      seen.push(`${context.signal.reason.name}: ${context.signal.reason.message}`);
      console.log('noticed');
      if (event.rawPath === '/throw') throw context.signal.reason;
      return 'nobody reads this';
    };
    """
    async with loaded_node(tmp_path, source) as shim:
        for path, why in (("/", "timeout"), ("/", "client"), ("/throw", "client")):
            stream = shim.link.call(path)
            stream.send(wire.CANCEL, {"why": why})
            assert (await shim.call("/seen")).status == 200
            assert stream.waiting == 0
            assert [log["text"] for log in stream.logs] == ["noticed"]
        assert (await shim.call("/seen")).json() == [
            "TimeoutError: the time limit of the call has passed",
            *["AbortError: the caller has left"] * 2,
        ]


async def test_cancel_lets_every_kind_of_stream_go(tmp_path: Path) -> None:
    source = """
    const { Readable } = require('node:stream');
    const gone = [];
    const endless = {
      '/generator': () => (function* () {
        try { for (;;) yield 'x'.repeat(1000); } finally { gone.push('generator'); }
      })(),
      '/async': () => (async function* () {
        try { for (;;) yield 'x'.repeat(1000); } finally { gone.push('async'); }
      })(),
      '/web': () => new ReadableStream({ pull() { return new Promise(() => {}); }, cancel() { gone.push('web'); },
                                         start(c) { c.enqueue('x'); } }),
      '/node': () => new Readable({ read() { }, destroy(error, done) { gone.push('node'); done(error); } }),
    };
    exports.handler = (event) => event.rawPath === '/gone' ? gone : endless[event.rawPath]();
    """
    async with loaded_node(tmp_path, source) as shim:
        for path in ("/generator", "/async", "/web"):
            stream = shim.link.call(path)
            assert (await stream.frame()).type == wire.HEAD
            stream.send(wire.CANCEL, {"why": "client"})
        silent = shim.link.call("/node")
        silent.send(wire.CANCEL, {"why": "client"})
        assert sorted((await shim.call("/gone")).json()) == ["async", "generator", "node", "web"]
        assert silent.waiting == 0
        assert silent.logs == []


async def test_calls_run_at_the_same_time(tmp_path: Path) -> None:
    source = """
    const waiting = [];
    exports.handler = (event) => new Promise((ready) => {
      waiting.push(ready);
      if (waiting.length === 20) waiting.forEach((go, at) => go(at));
    });
    """
    async with loaded_node(tmp_path, source) as shim:
        streams = [shim.link.call("/") for _ in range(20)]
        assert [(await stream.answer()).json() for stream in streams] == list(range(20))

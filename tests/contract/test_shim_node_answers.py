"""What the values that a Node handler returns become."""

from __future__ import annotations

import json
from pathlib import Path

from headrace import wire
from node_kit import loaded_node

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
BINARY = "application/octet-stream"

# A call's path names the case: [status, content type, body] or a piece of the error's message.
VALUES: dict[str, tuple[str, tuple[int, str | None, bytes] | str]] = {
    "object": ("({ a: [1, 'ü'], u: undefined })", (200, JSON, '{"a":[1,"ü"]}'.encode())),
    "undefined": ("undefined", (200, JSON, b"null")),
    "null": ("null", (200, JSON, b"null")),
    "number": ("1.5", (200, JSON, b"1.5")),
    "array": ("[{ statusCode: 500 }]", (200, JSON, b'[{"statusCode":500}]')),
    "date": ("({ at: new Date(0) })", (200, JSON, b'{"at":"1970-01-01T00:00:00.000Z"}')),
    "string": ("'Grüße'", (200, TEXT, "Grüße".encode())),
    "buffer": ("Buffer.from([0, 255])", (200, BINARY, b"\x00\xff")),
    "typed": ("new Uint16Array([1])", (200, BINARY, b"\x01\x00")),
    "part": ("Buffer.from('abcdef').subarray(2, 4)", (200, BINARY, b"cd")),
    "arraybuffer": ("new Uint8Array([1, 2]).buffer", (200, BINARY, b"\x01\x02")),
    "thenable": ("({ then(yes) { yes('later'); } })", (200, TEXT, b"later")),
    "status": ("({ statusCode: 201 })", (201, None, b"")),
    "status text": ("({ statusCode: '404', body: 'no' })", (404, TEXT, b"no")),
    "body object": ("({ statusCode: 200, body: { a: 1 } })", (200, JSON, b'{"a":1}')),
    "body bytes": ("({ statusCode: 200, body: new Uint8Array([7]) })", (200, BINARY, b"\x07")),
    "base64": ("({ statusCode: 200, body: 'AAH/', isBase64Encoded: true })", (200, BINARY, b"\x00\x01\xff")),
    "base64 lines": (
        "({ statusCode: 200, body: 'AA\\nH/\\n', isBase64Encoded: true })",
        (200, BINARY, b"\x00\x01\xff"),
    ),
    "base64 padded": ("({ statusCode: 200, body: 'AA==', isBase64Encoded: true })", (200, BINARY, b"\x00")),
    "own type": (
        "({ statusCode: 200, headers: { 'Content-Type': 'text/html' }, body: '<p>' })",
        (200, "text/html", b"<p>"),
    ),
    "no content": ("({ statusCode: 204, body: 'dropped' })", (204, None, b"")),
    "not modified": ("({ statusCode: 304, headers: { etag: 'x' } })", (304, None, b"")),
    "bad status": ("({ statusCode: 99 })", "`statusCode` is 99"),
    "odd status": ("({ statusCode: true })", "`statusCode` is true"),
    "no base64": ("({ statusCode: 200, body: 'AAAAA', isBase64Encoded: true })", "is not base64"),
    "unpadded": ("({ statusCode: 200, body: 'AA', isBase64Encoded: true })", "is not base64"),
    "bigint": ("({ n: 1n })", "type bigint at ['n'], which JSON cannot hold"),
    "circle": ("{ const a = {}; a.a = a; return a; }", "contains itself or is nested too deeply for JSON at ['a']"),
    "hostile": ("({ toJSON() { throw new Error('no'); } })", "JSON cannot hold (no)"),
    "function": ("() => 1", "a value of type function"),
    "symbol": ("Symbol('x')", "a value of type symbol"),
    "header break": ("({ statusCode: 200, headers: { a: 'b\\r\\nc: d' } })", "header 'a' contains '\\r'"),
    "header beyond": ("({ statusCode: 200, headers: { a: '€' } })", "header 'a' contains '€'"),
    "header name": ("({ statusCode: 200, headers: { 'a b': 'c' } })", "'a b' is no header name"),
    "header object": ("({ statusCode: 200, headers: { a: {} } })", "header 'a' has a value of type Object"),
    "headers list": ("({ statusCode: 200, headers: ['a'] })", "have to be objects"),
    "many": ("({ statusCode: 200, multiValueHeaders: { a: 'b' } })", "'a' does not"),
    "cookies": ("({ statusCode: 200, cookies: 'a=b' })", "has to be a list of strings"),
    "much header": ("({ statusCode: 200, headers: { a: 'x'.repeat(140000) } })", "the limit is 131072"),
}


def source(mode: str) -> str:
    cases = ",\n".join(
        f"  {json.dumps(name)}: () => {value if value.startswith('{ ') else f'({value})'}"
        for name, (value, _) in VALUES.items()
    )
    return f"const cases = {{\n{cases}\n}};\nexports.handler = {mode}(event) => cases[event.rawPath.slice(1)]();\n"


async def check(tmp_path: Path, mode: str) -> None:
    async with loaded_node(tmp_path, source(mode)) as shim:
        for name, (_, expected) in VALUES.items():
            answer = await shim.call(f"/{name}")
            if isinstance(expected, str):
                assert answer.error is not None, name
                assert answer.error["type"] == "BadResponse", name
                assert expected in answer.error["message"], name
            else:
                assert answer.error is None, (name, answer.error)
                assert (answer.status, answer.header("content-type"), answer.body) == expected, name


async def test_values_of_a_plain_handler(tmp_path: Path) -> None:
    await check(tmp_path, "")


async def test_values_of_an_async_handler(tmp_path: Path) -> None:
    await check(tmp_path, "async ")


async def test_headers_in_several_values(tmp_path: Path) -> None:
    source = """
    exports.handler = () => ({
      statusCode: 200,
      headers: { 'X-One': 'a', Both: 'lost', n: 5, yes: true, 'Content-Length': '99', Connection: 'close', pad: ' x ' },
      multiValueHeaders: { Both: ['1', '2'], 'Transfer-Encoding': ['chunked'] },
      cookies: ['a=1; Path=/', 'b=2'],
      body: 'x',
    });
    """
    async with loaded_node(tmp_path, source) as shim:
        answer = await shim.call("/")
    assert answer.headers == [
        *(["x-one", "a"], ["n", "5"], ["yes", "true"], ["pad", "x"], ["both", "1"], ["both", "2"]),
        *(["set-cookie", "a=1; Path=/"], ["set-cookie", "b=2"], ["content-type", TEXT]),
    ]


async def test_a_value_for_a_payload_is_json_whatever_it_is(tmp_path: Path) -> None:
    async with loaded_node(tmp_path, "exports.handler = (event) => event;") as shim:
        answer = await shim.link.payload(b'"text"').answer()
        assert (answer.header("content-type"), answer.body) == (JSON, b'"text"')
        answer = await shim.link.payload(b'{"statusCode":404}').answer()
        assert (answer.status, answer.json()) == (200, {"statusCode": 404})


async def test_errors_name_type_message_and_place(tmp_path: Path) -> None:
    source = """
    class PaymentRefused extends Error { name = 'PaymentRefused'; }
    const cases = {
      '/plain': () => { throw new PaymentRefused('no money', { cause: new RangeError('why') }); },
      '/text': () => { throw 'text'; },
      '/null': () => { throw null; },
      '/object': () => { throw { code: 5 }; },
      '/rejected': () => Promise.reject(new TypeError('later')),
      '/hostile': () => { throw { get message() { throw 1; }, toString() { throw 2; } }; },
      '/broken': () => { throw Object.defineProperty(new Error('x'), 'stack', { get() { throw 3; } }); },
      '/code': () => { throw Object.assign(new Error('gone'), { code: 'ECONNRESET' }); },
    };
    exports.handler = (event) => cases[event.rawPath]();
    """
    async with loaded_node(tmp_path, source) as shim:
        failed = {}
        for path in ("/plain", "/text", "/null", "/object", "/rejected", "/hostile", "/broken", "/code"):
            answer = await shim.call(path)
            assert answer.error is not None, path
            assert [frame.type for frame in answer.frames] == [wire.REPLY]
            assert answer.lines("log"), path
            failed[path] = answer.error
    plain = failed["/plain"]
    assert (plain["type"], plain["message"]) == ("PaymentRefused", "no money")
    assert "(handler.js:4:" in plain["stack"] or "at /plain (handler.js:4:" in plain["stack"]
    assert "[cause]: RangeError: why" in plain["stack"]
    assert "shim" not in plain["stack"]
    assert "node:internal" not in plain["stack"]
    assert (failed["/text"]["type"], failed["/text"]["message"]) == ("Error", "text")
    assert failed["/null"]["message"] == "the code threw null"
    assert failed["/object"]["message"] == "the code threw { code: 5 }"
    assert (failed["/rejected"]["type"], failed["/rejected"]["message"]) == ("TypeError", "later")
    assert "{ code: 'ECONNRESET' }" in failed["/code"]["stack"]


async def test_nothing_that_a_handler_does_wrong_ends_the_shim(tmp_path: Path) -> None:
    source = """
    class Broken extends Error { get message() { throw new Error('no text'); } }
    const deep = (n) => deep(n + 1) + 1;
    const cases = {
      '/deep': () => deep(0),
      '/long': () => { throw new Error('x'.repeat(100000)); },
      '/broken': () => { throw new Broken(); },
      '/proxy': () => { throw new Proxy({}, { get() { throw new Error('odd'); } }); },
      '/odd': () => new Proxy({}, { get() { throw new Error('odd'); }, has() { throw new Error('odd'); } }),
      '/then': () => ({ then() { throw new Error('then'); } }),
      '/twice': () => ({ then(yes, no) { yes('first'); no(new Error('second')); yes('third'); } }),
      '/stream': () => new (require('node:stream').Readable)({ read() { this.destroy(new Error('broken pipe')); } }),
      '/undefined': () => { throw undefined; },
      '/symbol': () => { throw Symbol('s'); },
      '/date': () => ({ statusCode: 200, body: { at: new Date(NaN) } }),
      '/frozen': () => Object.freeze({ statusCode: 200, headers: Object.freeze({ a: 'b' }), body: 'x' }),
    };
    exports.handler = async (event) => event.rawPath === '/fine' ? 'fine' : cases[event.rawPath]();
    """
    wrong = ("/deep", "/long", "/broken", "/proxy", "/odd", "/then", "/stream", "/undefined", "/symbol")
    async with loaded_node(tmp_path, source) as shim:
        for path in wrong:
            error = (await shim.call(path)).error
            assert error is not None, path
            assert error["type"] and len(error["stack"]) < 20_000, path
            assert (await shim.call("/fine")).body == b"fine"
        for path, expected in (("/twice", b"first"), ("/date", b'{"at":null}'), ("/frozen", b"x")):
            answer = await shim.call(path)
            assert (answer.error, answer.body) == (None, expected), path

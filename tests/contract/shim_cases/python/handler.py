"""The code of `cases.json` for Python: `handler` plain, `async_handler` in the loop."""

import base64
import math


def fail_first():
    raise ValueError("before any piece")
    yield ""


def fail_later():
    yield "one"
    raise ValueError("after a piece")


def wrong_piece():
    yield "one"
    yield 2


def raises(event):
    raise LookupError("no such luck")


def circular(event):
    value = []
    value.append(value)
    return value


def sized(event):
    return b"x" * int(event["queryStringParameters"]["n"])


def pieces(*items):
    yield from items


def ok(**fields):
    return {"statusCode": 200, **fields}


CASES = {
    "object": lambda event: {"a": [1, 2.5, None, True], "ü": "é"},
    "list": lambda event: [1, "two"],
    "number": lambda event: 7,
    "nothing": lambda event: None,
    "text": lambda event: "grüß dich",
    "bytes": lambda event: b"\x00\x01\xff",
    "plain-object": lambda event: {"body": "x", "headers": {}},
    "explicit": lambda event: {
        "statusCode": 201,
        "headers": {"Content-Type": "text/html", "X-One": "1"},
        "body": "<p>hi</p>",
    },
    "explicit-untyped": lambda event: ok(body="hi"),
    "only-status": lambda event: {"statusCode": 404},
    "status-text": lambda event: {"statusCode": "202"},
    "base64": lambda event: ok(headers={"content-type": "image/png"}, body="iVBORw==", isBase64Encoded=True),
    "object-body": lambda event: ok(body={"ok": True}),
    "loose-headers": lambda event: ok(headers={"x-number": 7, "x-yes": True}),
    "multi": lambda event: ok(headers={"x-a": "lost"}, multiValueHeaders={"x-a": ["1", "2"]}, body="m"),
    "cookies": lambda event: ok(cookies=["a=1; Path=/", "b=2"], body="c"),
    "hop-headers": lambda event: ok(
        headers={"Connection": "close", "Transfer-Encoding": "chunked", "Content-Length": "99", "x-own": "1"}, body="h"
    ),
    "no-content": lambda event: {"statusCode": 204, "body": "dropped"},
    "untidy-headers": lambda event: ok(headers={"X-Mixed-Case": "  v "}),
    "status-600": lambda event: {"statusCode": 600},
    "status-zero": lambda event: {"statusCode": 0},
    "status-words": lambda event: {"statusCode": "fine"},
    "status-true": lambda event: {"statusCode": True},
    "crlf": lambda event: ok(headers={"x-bad": "a\r\nset-cookie: stolen=1"}),
    "crlf-name": lambda event: ok(headers={"x-bad\r\nx": "a"}),
    "wide-header": lambda event: ok(headers={"x-wide": "日本"}),
    "crlf-cookie": lambda event: ok(cookies=["a=1\n"]),
    "odd-header": lambda event: ok(headers={"x-odd": ["a"]}),
    "header-array": lambda event: ok(headers=[["a", "b"]]),
    "not-base64": lambda event: ok(body="a", isBase64Encoded=True),
    "unholdable": lambda event: {"deep": object()},
    "nan": lambda event: {"value": math.nan},
    "circular": circular,
    "huge-headers": lambda event: ok(headers={f"x-{number}": "v" * 1000 for number in range(200)}),
    "raise": raises,
    "sized": sized,
    "pieces": lambda event: pieces("one", "", "two", "three"),
    "byte-pieces": lambda event: pieces(b"\x00", b"\x01\xff"),
    "explicit-pieces": lambda event: {
        "statusCode": 206,
        "headers": {"content-type": "text/event-stream"},
        "body": pieces("data: 1\n\n", b"data: 2\n\n"),
    },
    "no-pieces": lambda event: pieces(),
    "fails-first": lambda event: fail_first(),
    "fails-later": lambda event: fail_later(),
    "wrong-piece": lambda event: wrong_piece(),
    "event": lambda event: event,
    "length": lambda event: str(len(base64.b64decode(event["body"]))),
    "echo": lambda event: event,
}


def describe(context):
    remaining = context.get_remaining_time_in_millis()
    return {
        "invocation_id": context.invocation_id,
        "aws_request_id": context.aws_request_id,
        "function_name": context.function_name,
        "function_version": context.function_version,
        "memory_limit_in_mb": context.memory_limit_in_mb,
        "remaining_at_least_25_s": remaining > 25_000,
        "remaining_at_most_30_s": remaining <= 30_000,
    }


def handler(event, context):
    name = event["rawPath"].split("/")[1] if "rawPath" in event else event.get("case", "echo")
    if name == "context":
        return describe(context)
    if name == "remaining":
        return str(context.get_remaining_time_in_millis())
    return CASES[name](event)


async def async_handler(event, context):
    return handler(event, context)

"""The code of `test_runtimes.py` for Python: each case is a path."""

import os
import subprocess
import sys
import time
from pathlib import Path


def pieces():
    yield "first\n"
    time.sleep(1.5)
    yield b"second\n"


def breaks_off():
    yield "first\n"
    raise RuntimeError("broke off")


def fails():
    raise LookupError("no such luck")


def hog():
    hoard = []
    while True:
        hoard.append(bytearray(os.urandom(1 << 20)))


def talk():
    print("said")
    print("warned", file=sys.stderr)
    return "talked"


def wait():
    time.sleep(20)


def orphans():
    subprocess.run(["sh", "-c", "for n in 1 2 3; do sleep 0.2 & done"], check=True)
    time.sleep(0.8)
    states = [path.read_text().rpartition(")")[2].split()[0] for path in Path("/proc").glob("[0-9]*/stat")]
    return states.count("Z")


CASES = {
    "/json": lambda event, context: {"a": [1, 2.5, None, True], "ü": "é"},
    "/text": lambda event, context: "grüß dich",
    "/bytes": lambda event, context: bytes(range(256)),
    "/headers": lambda event, context: {
        "statusCode": 201,
        "headers": {"X-One": "1"},
        "multiValueHeaders": {"x-two": ["a", "b"]},
        "cookies": ["a=1; Path=/", "b=2"],
        "body": "made",
    },
    "/empty": lambda event, context: {"statusCode": 204},
    "/echo": lambda event, context: {key: event[key] for key in ("body", "isBase64Encoded", "rawQueryString")},
    "/large": lambda event, context: "x" * 3_000_000,
    "/pieces": lambda event, context: pieces(),
    "/breaks-off": lambda event, context: breaks_off(),
    "/fails": lambda event, context: fails(),
    "/unholdable": lambda event, context: {"deep": object()},
    "/bad-status": lambda event, context: {"statusCode": 700},
    "/waits": lambda event, context: wait(),
    "/exits": lambda event, context: os._exit(3),
    "/hogs": lambda event, context: hog(),
    "/talks": lambda event, context: talk(),
    "/environment": lambda event, context: [os.environ.get("GREETING"), "HEADRACE_SOCKET" in os.environ],
    "/context": lambda event, context: [
        context.invocation_id,
        context.function_name,
        context.function_version,
        context.memory_limit_in_mb,
        0 < context.get_remaining_time_in_millis() <= 3000,
    ],
    "/orphans": lambda event, context: orphans(),
    "/place": lambda event, context: [os.getuid(), os.access("/", os.W_OK), os.access("/tmp", os.W_OK)],
}


def socket(event, context):
    kind = event["requestContext"]["eventType"]
    if kind == "CONNECT":
        return {"statusCode": 403 if event["rawPath"] == "/closed" else 200}
    if event["body"] == "leave":
        context.ws.close(4000, "bye")
        return None
    return event["body"].upper() if kind == "MESSAGE" else None


def handler(event, context):
    if "eventType" in event.get("requestContext", {}):
        return socket(event, context)
    if "rawPath" not in event:
        return event
    return CASES[event["rawPath"]](event, context)

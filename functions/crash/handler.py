"""Fails in the way that the path names; `/ok`, or any other, does not."""

import os
import signal
import sys


def handler(event, context):
    way = event["rawPath"].strip("/")
    print("about to", way or "do nothing")
    if way == "raise":
        raise ValueError("the function raised this on purpose")
    if way == "sys-exit":
        sys.exit(3)
    if way == "exit":
        os._exit(3)
    if way == "signal":
        os.kill(os.getpid(), signal.SIGKILL)
    if way == "unholdable":
        return {"value": object()}
    if way == "fork":
        return fork()
    return {"ok": True, "pid": os.getpid()}


def fork():
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return {"forked": True}

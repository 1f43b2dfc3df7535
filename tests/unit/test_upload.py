"""Request bodies: how long their caller may take, and what is a whole one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

import virtual_time
from headrace import wire
from headrace.errors import CallerError, ClientGone, HeadraceError, RequestTimeout, TooLarge
from headrace.gateway.upload import Upload

PAUSE_S = 10.0
BIG = b"x" * (wire.INLINE + 1)
Step = tuple[float, bytes | None]  # seconds until it comes, and the piece; None: the caller leaves


class Caller:
    """Sends pieces as its script says; then it is silent, or has ended its body."""

    def __init__(self, script: Iterable[Step], ends: bool = True) -> None:
        self.script = list(script)
        self.ends = ends
        self.waiting = 0

    async def receive(self) -> dict[str, Any]:
        self.waiting += 1
        try:
            if not self.script:
                await asyncio.Event().wait()
            seconds, piece = self.script.pop(0)
            await asyncio.sleep(seconds)
        finally:
            self.waiting -= 1
        if piece is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": piece, "more_body": bool(self.script) or not self.ends}


async def _read(caller: Caller, *headers: tuple[bytes, bytes], version: str = "1.1", limit: int = 1 << 20) -> bytes:
    """The whole body, in whatever way it comes."""
    scope = {"http_version": version, "method": "POST", "headers": headers or ((b"transfer-encoding", b"chunked"),)}
    upload = Upload(scope, caller.receive, limit, PAUSE_S)
    await upload.start(60.0)
    if not upload.more:
        return upload.body
    parts = []
    try:
        while (piece := await upload.next()) is not None:
            parts.append(piece)
    finally:
        upload.close()
        await asyncio.sleep(0)
        assert not caller.waiting, "somebody still waits for it"
    return b"".join(parts)


def _fails(kind: type[HeadraceError], at: float, caller: Caller, *headers: tuple[bytes, bytes], **more: Any) -> None:
    async def scenario() -> None:
        with pytest.raises(kind):
            await _read(caller, *headers, **more)
        assert asyncio.get_running_loop().time() == pytest.approx(at, abs=0.1)

    virtual_time.run(scenario())


@pytest.mark.parametrize("first", [b"a", BIG], ids=["small", "large"])
def test_a_body_may_be_slow_but_not_stop(first: bytes) -> None:
    slow = [(0.0, first), *((PAUSE_S - 1, b"b") for _ in range(5))]
    assert virtual_time.run(_read(Caller(slow))) == first + b"b" * 5
    _fails(RequestTimeout, 5 + PAUSE_S, Caller([(5.0, first)], ends=False))


def test_a_small_body_has_only_the_time_of_its_call() -> None:
    _fails(RequestTimeout, 60.0, Caller([(PAUSE_S - 1, b"x") for _ in range(20)]))


@pytest.mark.parametrize("first", [b"a", BIG], ids=["small", "large"])
def test_a_body_that_breaks_off_is_none(first: bytes) -> None:
    _fails(ClientGone, 3.0, Caller([(0.0, first), (3.0, None)], ends=False))
    cut = Caller([(0.0, first)])  # as the server tells it when an HTTP/2 stream is reset: the body just ends
    _fails(ClientGone, 0.0, cut, (b"content-length", b"%d" % (len(first) + 1)), version="2")


def test_who_resets_a_stream_without_a_length_is_heard_right_after_its_end() -> None:
    async def scenario(script: list[Step]) -> bytes:
        caller = Caller(script[:1])

        async def receive() -> dict[str, Any]:
            message = await Caller.receive(caller)
            caller.script = script[1:]
            return message

        scope = {"http_version": "2", "method": "POST", "headers": ()}
        upload = Upload(scope, receive, 1 << 20, PAUSE_S)
        await upload.start(60.0)
        return upload.body

    with pytest.raises(ClientGone):
        virtual_time.run(scenario([(0.0, b"abc"), (0.002, None)]))
    assert virtual_time.run(scenario([(0.0, b"abc"), (5.0, None)])) == b"abc"


def test_byte_after_byte_becomes_one_piece() -> None:
    async def scenario() -> list[int]:
        caller = Caller([(0.0, b"x")] * (wire.INLINE + 3))
        scope = {"http_version": "1.1", "method": "POST", "headers": ((b"transfer-encoding", b"chunked"),)}
        upload = Upload(scope, caller.receive, 1 << 20, PAUSE_S)
        await upload.start(60.0)
        sizes = []
        while (piece := await upload.next()) is not None:
            sizes.append(len(piece))
        return sizes

    assert virtual_time.run(scenario()) == [wire.INLINE + 1, 1, 1]


def test_limits_and_codings() -> None:
    _fails(TooLarge, 0.0, Caller([]), (b"content-length", b"101"), limit=100)
    _fails(TooLarge, 2.0, Caller([(1.0, b"x" * 100), (1.0, b"x")]), limit=100)
    _fails(CallerError, 0.0, Caller([]), (b"transfer-encoding", b"gzip, chunked"))

"""Request bodies: how long their caller may take, and what is a whole one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest

import virtual_time
from headrace import wire
from headrace.errors import ClientGone, HeadraceError, RequestTimeout, TooLarge
from headrace.gateway.upload import Upload
from web_kit import Recorded

PAUSE_S = 10.0
BIG = b"x" * (wire.INLINE + 1)
Step = tuple[float, bytes | None]  # seconds until it comes, and the piece; None: the caller leaves


class Caller:
    """Sends pieces as its script says; then it is silent, or has ended its body."""

    def __init__(self, script: Iterable[Step], ends: bool = True) -> None:
        self.script = list(script)
        self.ends = ends

    async def send(self, exchange: Recorded) -> None:
        for seconds, piece in self.script:
            await asyncio.sleep(seconds)
            if piece is None:
                exchange.leave()
                return
            exchange.arrive(piece)
        if self.ends:
            exchange.finish_body()


async def _read(caller: Caller, announced: int | None = None, limit: int = 1 << 20) -> list[bytes]:
    """The body, in whatever way it comes."""
    exchange = Recorded("POST")
    exchange.announced = announced
    sending = asyncio.ensure_future(caller.send(exchange))
    try:
        upload = Upload(exchange, limit, PAUSE_S)
        if not upload.here():
            await upload.start(60.0)
        if not upload.more:
            return [upload.body]
        parts = []
        while (piece := await upload.next()) is not None:
            parts.append(piece)
        return parts
    finally:
        sending.cancel()


def _fails(kind: type[HeadraceError], at: float, caller: Caller, **more: int) -> None:
    async def scenario() -> None:
        with pytest.raises(kind):
            await _read(caller, **more)
        assert asyncio.get_running_loop().time() == pytest.approx(at, abs=0.1)

    virtual_time.run(scenario())


@pytest.mark.parametrize("first", [b"a", BIG], ids=["small", "large"])
def test_a_body_may_be_slow_but_not_stop(first: bytes) -> None:
    slow = [(0.0, first), *((PAUSE_S - 1, b"b") for _ in range(5))]
    assert b"".join(virtual_time.run(_read(Caller(slow)))) == first + b"b" * 5
    _fails(RequestTimeout, 5 + PAUSE_S, Caller([(5.0, first)], ends=False))


def test_a_small_body_has_only_the_time_of_its_call() -> None:
    _fails(RequestTimeout, 60.0, Caller([(PAUSE_S - 1, b"x") for _ in range(20)]))


@pytest.mark.parametrize("first", [b"a", BIG], ids=["small", "large"])
def test_a_body_that_breaks_off_is_none(first: bytes) -> None:
    _fails(ClientGone, 3.0, Caller([(0.0, first), (3.0, None)], ends=False))


def test_byte_after_byte_becomes_one_piece() -> None:
    pieces = virtual_time.run(_read(Caller([(0.0, b"x")] * (wire.INLINE + 3))))
    assert sum(map(len, pieces)) == wire.INLINE + 3
    assert len(pieces) <= 4


def test_a_small_body_that_is_here_is_not_waited_for() -> None:
    async def scenario() -> None:
        exchange = Recorded("POST")
        exchange.arrive(b"a")
        upload = Upload(exchange, 100, PAUSE_S)
        assert not upload.here(), "more may come"
        exchange.arrive(b"b")
        exchange.finish_body()
        assert upload.here()
        assert (upload.body, upload.more, exchange.taken) == (b"ab", False, 2)

    virtual_time.run(scenario())


def test_limits() -> None:
    _fails(TooLarge, 0.0, Caller([]), announced=101, limit=100)
    _fails(TooLarge, 2.0, Caller([(1.0, b"x" * 100), (1.0, b"x")]), limit=100)

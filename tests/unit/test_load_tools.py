"""The instruments of the load scenarios: what wrk says is read right, and the steady client misses nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from load.measure import Load, Report, Unavailable, compare, parse_wrk, quantile, ratio
from load.steady import Client
from virtual_time import run

WRK = """Running 3s test @ http://127.0.0.1:17700/fn/hello
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.05ms    1.02ms  20.12ms   96.31%
    Req/Sec    27.00k     3.20k   31.00k    70.00%
  Latency Distribution
     50%  801.00us
     75%    1.20ms
     90%    1.61ms
     99%    1.02s
  80000 requests in 3.00s, 12.00MB read
  Socket errors: connect 1, read 2, write 0, timeout 4
  Non-2xx or 3xx responses: 10
Requests/sec:  26666.67
Transfer/sec:      4.00MB
"""


def test_wrk_output_is_read_in_milliseconds_with_every_failure() -> None:
    assert parse_wrk(WRK) == Load(26_666.67, pytest.approx(0.801), pytest.approx(1020.0), 17)


def test_wrk_without_failures() -> None:
    quiet = "\n".join(line for line in WRK.splitlines() if "errors" not in line and "Non-2xx" not in line)
    assert parse_wrk(quiet).failed == 0


def test_output_that_is_not_wrks_is_refused() -> None:
    with pytest.raises(Unavailable, match="something unexpected"):
        parse_wrk("segmentation fault")


def test_a_ratio_compares_runs_of_the_same_round() -> None:
    slow, fast = Load(10, 1, 1, 0), Load(1000, 1, 1, 0)
    assert ratio([Load(5, 1, 1, 0), Load(500, 1, 1, 0)], [slow, fast]) == 0.5


def test_failed_requests_of_headrace_fail_the_report() -> None:
    report = compare("warm", {"headrace": [Load(5, 1, 2, 3)], "bare": [Load(10, 1, 2, 1)]}, "bare")
    assert report.rows[0] == ("headrace", 5, 1, 2, 2, 0.5, 3)
    assert report.failures == ["3 requests to Headrace failed."]
    assert "FAILED: 3 requests" in report.show()
    assert report.as_json()["rows"][1]["subject"] == "bare"


def test_report_of_numbers_of_every_size_lines_up() -> None:
    report = Report("sizes", ("subject", "a"), [("x", 12_345.6), ("longer", 0.12345), ("n", None)])
    assert report.show().splitlines()[2:] == [
        "subject       a",
        "x        12,346",
        "longer    0.123",
        "n             -",
    ]


def test_targets_stand_beside_results_and_a_missed_one_is_no_failure() -> None:
    report = Report("targets", ("subject", "a"))
    report.at_most("p99 ms", 40.0, 40)
    report.at_least("of bare", 0.25, 0.33)
    assert report.show().splitlines()[5:] == [
        "p99 ms      40    <= 40     met",
        "of bare   0.25  >= 0.33  missed",
    ]
    assert [goal["met"] for goal in report.as_json()["goals"]] == [True, False]
    assert report.failures == []


def test_a_figure_that_was_not_measured_misses_its_target() -> None:
    report = Report("targets", ("subject",))
    report.at_most("p99 ms", float("nan"), 40)
    assert not report.goals[0].met


def test_quantile_is_the_nearest_rank() -> None:
    assert [quantile([3.0, 1.0, 2.0, 4.0], q) for q in (0.0, 0.5, 0.51, 1.0)] == [1.0, 2.0, 3.0, 4.0]


# -- the steady client

Respond = Callable[[int, asyncio.StreamWriter], Awaitable[bool]]
OK = b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\nHeadrace-Version: 3\r\n\r\n{"version": 2}'


async def serving(respond: Respond) -> asyncio.Server:
    """A server that hands the number of each request to `respond`, which is false when the connection is to end."""
    numbers = iter(range(1_000_000))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                if not await respond(next(numbers), writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    return await asyncio.start_server(serve, "127.0.0.1", 0)


def drive(respond: Respond, requests: int, connections: int = 4) -> Client:
    """Send `requests` requests at 1,000 a second; the client when all are answered."""

    async def scenario() -> Client:
        async with await serving(respond) as server:
            client = Client("127.0.0.1", server.sockets[0].getsockname()[1], "/", connections)
            await client.open()
            began = asyncio.get_running_loop().time()
            ends = began + requests / 1000
            await client.steady(1000, lambda: asyncio.get_running_loop().time() >= ends)
            await client.close()
            return client

    return run(scenario())


async def answer(number: int, writer: asyncio.StreamWriter) -> bool:
    writer.write(OK)
    return True


def test_every_request_is_sent_and_its_answer_read() -> None:
    client = drive(answer, 100)
    assert 98 <= len(client.samples) <= 102
    assert {(s.status, s.version, s.said) for s in client.samples} == {(200, 3, 2)}


def test_an_answer_in_pieces_and_a_chunked_one_are_read_whole() -> None:
    async def respond(number: int, writer: asyncio.StreamWriter) -> bool:
        if number % 2:
            writer.write(b"HTTP/1.1 503 No\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
            await asyncio.sleep(0.001)
            writer.write(b"0\r\n\r\n")
        else:
            for byte in OK:
                writer.write(bytes([byte]))
                await asyncio.sleep(0)
        return True

    statuses = [sample.status for sample in drive(respond, 50).samples]
    assert set(statuses) == {200, 503}
    assert abs(statuses.count(200) - statuses.count(503)) <= 1


def test_a_connection_that_breaks_under_a_request_is_a_failure_and_is_replaced() -> None:
    async def respond(number: int, writer: asyncio.StreamWriter) -> bool:
        return number != 7 and await answer(number, writer)

    statuses = [sample.status for sample in drive(respond, 100, connections=1).samples]
    assert statuses.count(0) == 1
    assert statuses.count(200) >= 97


def test_a_connection_that_ends_between_requests_costs_none() -> None:
    async def respond(number: int, writer: asyncio.StreamWriter) -> bool:
        await answer(number, writer)
        return number % 10 != 9

    statuses = [sample.status for sample in drive(respond, 100, connections=8).samples]
    assert set(statuses) == {200}


def test_a_stall_shows_in_every_request_that_it_held_up() -> None:
    async def respond(number: int, writer: asyncio.StreamWriter) -> bool:
        if number == 10:
            await asyncio.sleep(1)
        return await answer(number, writer)

    client = drive(respond, 500, connections=1)
    held = [sample for sample in client.samples if sample.latency_ms > 100]
    assert len(held) > 300

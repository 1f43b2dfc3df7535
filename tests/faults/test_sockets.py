"""WebSockets against publishing, dying instances, leaving clients and full queues: nothing is lost, nothing is kept."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import virtual_time
from fleet_kit import House, house
from headrace import errors, wire
from headrace.gateway import sockets
from headrace.gateway.link import Link, Stream
from headrace.gateway.sockets import Sockets
from socket_kit import Client, SocketProgram, connected


@asynccontextmanager
async def sockets_house(home: Path, **config: Any) -> AsyncIterator[tuple[House, SocketProgram]]:
    """A house whose sockets are all gone at the end, with nothing kept of them."""
    program = SocketProgram()
    async with house(home, program=program, **config) as rig:
        yield rig, program
        for _ in range(200):
            if not len(rig.sockets):
                break
            await asyncio.sleep(0.05)
        assert len(rig.sockets) == 0, rig.sockets
        assert rig.sockets._rooms == {}
        await asyncio.sleep(0.5)


def test_an_open_socket_of_a_handler_holds_nothing_and_outlives_its_instance(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with sockets_house(tmp_path, idle_s=5) as (rig, program):
            client = await connected(rig)
            assert (rig.invoker.in_flight, rig.pools[1].in_flight) == (0, 0)
            await asyncio.sleep(30)
            assert rig.engine.instances == {}, "it is idle, whatever sockets are open"
            client.tell("echo")
            assert await client.until(1) == ["echo"]
            client.leave(1001)
            await client.lost.wait()
            assert program.seen == [("connect", "/"), ("message", "echo"), ("disconnect", "1001")]
            assert [(row[12], row[13], row[10], row[11]) for row in rig.records] == [
                ("GET", "/", 101, "ok"),
                ("WS", "$default", 200, "ok"),
                ("WS", "$disconnect", 200, "ok"),
            ]

    virtual_time.run(scenario())


def test_events_come_in_order_one_at_a_time_and_no_more_is_read_while_they_wait(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with sockets_house(tmp_path, concurrency=10) as (rig, program):
            client = await connected(rig)
            client.tell(*["slow"] * 5, "bye")
            await asyncio.sleep(0.5)
            assert client.untold == 4, "one runs, one is received ahead"
            await client.lost.wait()
            assert program.most_running == 1
            assert [kind for kind, _ in program.seen] == ["connect", *["message"] * 6, "disconnect"]
            assert (client.got, client.closed) == (["last words"], (4000, "bye"))

    virtual_time.run(scenario())


def test_an_old_socket_stays_with_its_version_until_the_deadline(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with sockets_house(tmp_path) as (rig, program):
            old, pinned = await connected(rig), await connected(rig, spelling="f@1")
            rig.publish(2, revision=2)
            new = await connected(rig)
            for client in (old, new):
                client.tell("echo")
                await client.until(1)
            assert [row[3] for row in rig.records if row[12] == "WS"] == [1, 2]
            await asyncio.sleep(200)
            rig.route(1, (1, 2), revision=3)  # and back
            await asyncio.sleep(200)
            assert (old.closed, new.closed) == (None, None), "it serves again; the other has not had its time"
            await asyncio.sleep(101)
            assert new.closed == (1012, "another version is live")
            rig.publish(2, revision=4)
            await asyncio.sleep(299)
            assert old.closed is None
            await asyncio.sleep(2)
            assert old.closed == (1012, "another version is live")
            assert program.seen.count(("disconnect", "1012")) == 2, "each is told"
            assert pinned.closed is None, "its URL names the version"
            pinned.leave()

    virtual_time.run(scenario())


def test_an_application_is_left_at_the_deadline_and_its_instance_can_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with sockets_house(tmp_path, idle_s=5) as (rig, program):
            client, silent = await connected(rig, "/app"), await connected(rig, "/app", reads=False)
            rig.publish(2, revision=2)
            client.tell("a", "b")
            assert await client.until(2) == ["a", "b"]
            await asyncio.sleep(290)
            silent.tell("a")
            assert (client.closed, rig.pools[1].in_flight) == (None, 2)
            await asyncio.sleep(30)
            assert client.closed == (1012, "another version is live")
            assert program.left_applications.count(1012) >= 1
            assert rig.pools[1].in_flight == 0
            await asyncio.sleep(100)
            assert not rig.pools[1].members
            assert silent.lost.is_set(), "who does not read is cut off"

    virtual_time.run(scenario())


@pytest.mark.parametrize("path", ["/", "/app"])
def test_sockets_of_a_deleted_function_and_of_a_stopping_node_are_closed(tmp_path: Path, path: str) -> None:
    async def scenario(how: str) -> None:
        async with sockets_house(tmp_path / how) as (rig, _):
            client = await connected(rig, path)
            if how == "delete":
                rig.route(None, [], revision=2)
            else:
                rig.sockets.end_all("the node stops")
            await client.lost.wait()
            assert client.closed is not None
            assert client.closed[0] == 1012

    for how in ("delete", "stop"):
        virtual_time.run(scenario(how))


def test_a_socket_that_is_being_opened_as_its_version_loses_its_traffic_leaves_in_time_too(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with sockets_house(tmp_path) as (rig, _):
            client = Client(rig)  # a cold start: the upgrade waits
            await asyncio.sleep(0)
            rig.publish(2, revision=2)
            await asyncio.sleep(302)
            assert client.accepted is not None
            assert client.closed == (1012, "another version is live")

    virtual_time.run(scenario())


def test_the_death_of_an_instance_closes_an_application_s_sockets_and_fails_an_event(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with sockets_house(tmp_path) as (rig, _):
            held, event = await connected(rig, "/app"), await connected(rig)
            event.tell("die", "echo")
            problem, echo = await event.until(2)
            assert (json.loads(problem)["message"], echo) == ("Internal server error", "echo")
            await held.lost.wait()
            assert held.closed is not None
            assert held.closed[0] == 1011, "never a clean end"
            event.leave()

    virtual_time.run(scenario())


def test_a_failing_or_late_event_is_told_and_the_socket_stays(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with sockets_house(tmp_path, timeout_s=2) as (rig, _):
            client = await connected(rig)
            client.tell("fail", "hang", "echo")
            *problems, echo = await client.until(3)
            assert echo == "echo"
            outcomes = {row[0]: row[11] for row in rig.records}
            told = [outcomes[json.loads(problem)["requestId"]] for problem in problems]
            assert told == ["function_error", "timeout"]
            assert "secret" not in str(problems)
            client.leave()

    virtual_time.run(scenario())


def test_a_client_that_leaves_while_its_event_waits_or_runs_is_told_of_in_order(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with sockets_house(tmp_path, concurrency=1, max_instances=1, timeout_s=60) as (rig, program):
            client, other = await connected(rig), await connected(rig)
            other.tell("slow", "slow", "slow")
            await asyncio.sleep(0.1)
            client.tell("echo", "echo")
            client.leave(None)
            await client.lost.wait()
            other.leave()
            while ("disconnect", "1005") not in program.seen:
                await asyncio.sleep(0.1)
            mine = [event for event in program.seen if event[1] not in ("slow", "/", "1001")]
            assert mine == [("message", "echo"), ("message", "echo"), ("disconnect", "1005")]
            assert client.closed == (1005, ""), "its own close frame comes back, without a code"

    virtual_time.run(scenario())


def test_events_wait_for_a_place_in_the_queue_and_a_minute_is_enough(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with sockets_house(tmp_path, concurrency=1, max_instances=1, queue=1, timeout_s=600) as (rig, program):
            clients = [await connected(rig) for _ in range(5)]
            for client in clients:
                client.tell("slow", "echo")
            for client in clients:
                assert await client.until(1) == ["echo"]
            assert rig.pools[1].throttled == 0, "nobody was refused"
            busy = asyncio.ensure_future(rig.call("/wait"))
            for client in clients:
                client.tell("echo")
            await asyncio.sleep(90)
            assert {client.closed for client in clients} == {(1013, "the function is too busy")}
            busy.cancel()
            await asyncio.gather(busy, return_exceptions=True)
            await asyncio.gather(*(client.lost.wait() for client in clients))
            while program.seen.count(("disconnect", "1013")) < 5:
                await asyncio.sleep(0.1)

    virtual_time.run(scenario())


def test_a_client_that_never_reads_has_bounded_buffers_and_is_closed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with sockets_house(tmp_path) as (rig, _):
            client, fast = await connected(rig, reads=False), await connected(rig)
            client.tell(*["big"] * 13)
            await asyncio.sleep(1)
            [unsent] = [
                s._unsent_bytes for room in rig.sockets._rooms.values() for s in room.sockets.values() if s._unsent
            ]
            assert unsent == 1_000_000, "besides what the connection's own buffer takes"
            client.tell("big")
            fast.tell("echo")
            assert await fast.until(1) == ["echo"]
            await asyncio.wait_for(client.lost.wait(), 20)
            fast.leave()
            stalled = await connected(rig, "/app", reads=False)
            stalled.tell("a" * 300_000)
            await asyncio.sleep(61)
            stalled.read()
            await asyncio.sleep(0.1)
            assert stalled.closed == (1008, "the client reads too slowly")

    virtual_time.run(scenario())


def test_groups_and_connections_are_reached_from_any_call_of_the_function(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with sockets_house(tmp_path) as (rig, _):
            one, two, three = [await connected(rig) for _ in range(3)]
            for client in (one, two):
                client.tell("join")
            await asyncio.sleep(0.1)
            three.tell("tell")
            assert await one.until(1) == await two.until(1) == ["told"]
            [first, *_] = next(iter(rig.sockets._rooms.values())).sockets
            three.tell(f"close {first}")
            await one.lost.wait()
            assert (one.closed, three.got) == ((4001, "by another"), [])
            two.tell("tell")
            assert await two.until(2) == ["told", "told"]
            two.tell(f"joins {sockets.GROUPS_LIMIT + 1}")
            await two.lost.wait()
            assert two.closed is not None
            assert two.closed[0] == 1008
            three.leave()

    virtual_time.run(scenario())


def test_what_no_shim_would_send_ends_the_instance(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with sockets_house(tmp_path) as (rig, _):
            client = await connected(rig)
            client.tell("nonsense", "echo")
            problem, echo = await client.until(2)
            assert (json.loads(problem)["message"], echo) == ("Internal server error", "echo")
            assert len({row[4] for row in rig.records}) == 2
            client.leave()

    virtual_time.run(scenario())


@pytest.mark.parametrize("path", ["/", "/app"])
def test_what_was_not_written_to_a_lost_instance_goes_to_another_one(
    tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[str] = []
    call = Link.call

    def not_sent(link: Link, invocation: str, *call_of: Any) -> Stream:
        stream = call(link, invocation, *call_of)
        if not lost or lost[-1] != invocation:
            lost.append(invocation)
            stream.finish(errors.NotSent("lost", instance=link.instance))
        return stream

    async def scenario() -> None:
        async with sockets_house(tmp_path) as (rig, _):
            monkeypatch.setattr(Link, "call", not_sent)
            client = await connected(rig, path)
            client.tell("echo")
            assert await client.until(1) == ["echo"]
            client.leave()
            await client.lost.wait()
            assert {row[11] for row in rig.records} == {"ok"}
            assert [row[0] for row in rig.records] == lost, "each was tried twice"

    virtual_time.run(scenario())


@pytest.mark.parametrize("path", ["/", "/app"])
def test_a_client_that_is_gone_before_it_is_accepted(tmp_path: Path, path: str) -> None:
    async def scenario() -> None:
        async with sockets_house(tmp_path) as (rig, program):
            Client(rig, path).vanish()
            told = [("disconnect", "1006")] if path == "/" else []
            while program.seen != [("connect", path), *told]:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            assert rig.records[0][11] == "client_gone"

    virtual_time.run(scenario())


@pytest.mark.parametrize(("path", "status"), [("/refuse", 403), ("/hang", 504), ("/chat", 500)])
def test_an_upgrade_that_is_not_accepted_leaves_nothing(tmp_path: Path, path: str, status: int) -> None:
    async def scenario() -> None:
        async with sockets_house(tmp_path, timeout_s=1) as (rig, program):
            client = Client(rig, path)
            while not client.status:
                await asyncio.sleep(0.01)
            assert (client.status, client.accepted) == (status, None)
            assert [kind for kind, _ in program.seen] == ["connect"]

    virtual_time.run(scenario())


async def test_a_function_cannot_reach_the_sockets_of_another(tmp_path: Path) -> None:
    async with house(tmp_path, program=SocketProgram()) as rig:
        await rig.call()
        runnable = rig.routes.lookup("f").runnable
        assert runnable is not None
        rooms = Sockets(1)
        mine, other = rooms.open(1, runnable, "live"), rooms.open(2, runnable, "live")
        member = next(iter(rig.pools[1].members.values()))
        stream = member.link.call("i", b"{}", b"", 1e9, lambda outcome: None)
        for kind, header in (
            (wire.WS_GROUP, {"g": "g", "to": other.id, "in": True}),
            (wire.WS_MESSAGE, {"t": 1, "to": other.id}),
            (wire.WS_CLOSE, {"c": 4000, "to": other.id}),
        ):
            rooms.commands(1)(stream, wire.Frame(kind, stream.id, wire.dumps(header), b"x"))
        assert (other.ending, other.groups, other._unsent_bytes) == (None, set(), 0)
        rooms.commands(2)(stream, wire.Frame(wire.WS_CLOSE, stream.id, wire.dumps({"c": 99_999, "to": other.id}), b""))
        assert (other.ending, mine.ending) == ((1011, ""), None)
        stream.close("client")

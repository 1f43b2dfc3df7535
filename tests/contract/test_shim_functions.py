"""The example functions, in the shim, with the packages of this environment as their layer."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import sysconfig
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from headrace import wire
from headrace.model import VersionConfig
from shim_kit import PATIENCE_S, Answer, Shim, Stream, http_header, waiting_shim

FUNCTIONS = Path(__file__).parent.parent.parent / "functions"
PACKAGES = Path(sysconfig.get_path("purelib"))


def config_of(name: str) -> VersionConfig:
    file = FUNCTIONS / name / "headrace.toml"
    return VersionConfig(**(tomllib.loads(file.read_text()) if file.exists() else {}))


@asynccontextmanager
async def function(home: Path, name: str) -> AsyncIterator[Shim]:
    """The function `name` as its headrace.toml configures it."""
    config = config_of(name)
    async with waiting_shim(home, FUNCTIONS / name, layer=PACKAGES) as shim:
        frame = await shim.load(
            function=name,
            handler=config.handler,
            kind=config.kind,
            memory_mb=config.memory_mb,
            timeout_s=config.timeout_s,
            concurrency=config.concurrency,
        )
        assert frame.type == wire.LOADED, frame.header.decode()
        yield shim


def photo(width: int, height: int, format: str = "JPEG", **options: Any) -> bytes:
    data = io.BytesIO()
    image = Image.radial_gradient("L").resize((width, height))
    Image.merge("RGB", (image, image.rotate(90), image.rotate(180))).save(data, format, **options)
    return data.getvalue()


@pytest.mark.parametrize("name", sorted(entry.name for entry in FUNCTIONS.iterdir()))
def test_every_function_is_whole(name: str) -> None:
    readme = (FUNCTIONS / name / "README.md").read_text()
    assert len(readme.rstrip("\n").split("\n")) == 2
    config_of(name)  # its headrace.toml is legal
    requirements = FUNCTIONS / name / "requirements.txt"
    if requirements.exists():
        assert all("==" in line for line in requirements.read_text().split())


async def test_hello(tmp_path: Path) -> None:
    async with function(tmp_path, "hello") as shim:
        plain = await shim.call("/")
        named = await shim.call("/?name=Ada", h=[["accept-language", "ja,en;q=0.5"]])

        assert (plain.body.decode(), plain.lines()) == ("Hello, world! The water is running.\n", [])
        assert (named.body.decode(), named.lines()) == ("こんにちは, Ada! The water is running.\n", ["greeting Ada"])
        assert (
            await shim.link.payload(b'{"name": "Grace"}').answer()
        ).json() == "Hello, Grace! The water is running.\n"


async def thumbnail(shim: Shim, query: str, body: bytes, type: str | None = None) -> Answer:
    headers = [["content-type", type]] if type else []
    return await shim.link.call(f"/{query}", b"", then=body, m="POST", h=headers).answer()


async def test_thumbnail_makes_pngs_that_fit(tmp_path: Path) -> None:
    form = "application/x-www-form-urlencoded"  # what curl --data-binary says
    rotated = Image.Exif()
    rotated[0x0112] = 6
    made = {
        "?width=200&height=100": (photo(1600, 1200), (133, 100)),
        "?width=50": (photo(400, 200), (50, 25)),
        "?height=80": (photo(400, 800), (40, 80)),
        "": (photo(300, 300, "PNG"), (256, 256)),
        "?width=2048": (photo(30, 20), (30, 20)),
        "?width=100&height=100": (photo(200, 100, exif=rotated), (50, 100)),
    }
    async with function(tmp_path, "thumbnail") as shim:
        for query, (data, size) in made.items():
            answer = await thumbnail(shim, query, data, form)
            assert (answer.status, answer.header("content-type")) == (200, "image/png"), answer
            with Image.open(io.BytesIO(answer.body)) as image:
                assert (image.format, image.size) == ("PNG", size)


async def test_thumbnail_says_what_is_wrong(tmp_path: Path) -> None:
    wrong = [
        ("?width=0", photo(9, 9), "from 1 to 2048"),
        ("?height=4000", photo(9, 9), "height=4000"),
        ("?width=²", photo(9, 9), "not a size"),
        ("?width=wide", photo(9, 9), "width=wide"),
        ("", b"", "no body"),
        ("", b"just text", "not an image"),
        ("", photo(900, 900)[:5000], "damaged"),
        ("", photo(9000, 9000, "PNG"), "too large"),
    ]
    async with function(tmp_path, "thumbnail") as shim:
        for query, data, text in wrong:
            answer = await thumbnail(shim, query, data)
            assert (answer.status, answer.error) == (400, None)
            assert text in answer.body.decode()
        multipart = b'--x\r\ncontent-disposition: form-data; name="photo"\r\n\r\n' + photo(9, 9) + b"\r\n--x--\r\n"
        answer = await thumbnail(shim, "", multipart, "multipart/form-data; boundary=x")
        assert (answer.status, b"--data-binary" in answer.body) == (400, True)


JSON = [["content-type", "application/json"], ["host", "h"]]


async def test_notes_creates_reads_updates_and_deletes(tmp_path: Path) -> None:
    async with function(tmp_path, "notes") as shim:
        assert shim.link.instance.logs[0]["text"] == "notes opened"
        note = json.dumps({"text": "water the plants", "tags": ["home"]}).encode()
        created = await shim.call("/notes", note, m="POST", h=JSON)
        assert (created.status, created.json()["id"]) == (201, 1)
        assert created.lines() == ["note 1 created"]
        await shim.call("/notes", b'{"text": "other"}', m="POST", h=JSON)

        assert [note["id"] for note in (await shim.call("/notes")).json()] == [1, 2]
        assert [note["id"] for note in (await shim.call("/notes?tag=home")).json()] == [1]
        replaced = await shim.call("/notes/1", b'{"text": "done"}', m="PUT", h=JSON)
        assert replaced.json() == {"id": 1, "text": "done", "tags": []}
        assert (await shim.call("/notes/1", m="DELETE")).status == 204
        gone = await shim.call("/notes/1")
        assert (gone.status, gone.json()) == (404, {"detail": "There is no note 1."})
        assert (await shim.call("/notes", b'{"text": ""}', m="POST", h=JSON)).status == 422
        assert (await shim.call("/")).json() == {"notes": 1, "starts": 1, "chatting": 0}
        shim.link.send(wire.DRAIN)
        assert (await shim.exited())[0] == 0
        assert shim.link.instance.logs[-1]["text"] == "notes closed with 1 notes"


async def test_notes_has_its_own_pages_under_its_prefix(tmp_path: Path) -> None:
    async with function(tmp_path, "notes") as shim:
        page = await shim.call("/docs", r="/fn/notes")

        assert page.status == 200
        assert b"/fn/notes/openapi.json" in page.body
        assert (await shim.call("/openapi.json", r="/fn/notes")).json()["servers"] == [{"url": "/fn/notes"}]


async def test_notes_streams_events_one_at_a_time(tmp_path: Path) -> None:
    async with function(tmp_path, "notes") as shim:
        answer = await shim.call("/ticks?count=3&every_ms=20")

        assert answer.header("content-type") == "text/event-stream; charset=utf-8"
        pieces = [frame.body for frame in answer.frames if frame.type == wire.BODY and frame.body]
        assert pieces == [b'data: {"tick": %d, "of": 3}\n\n' % number for number in (1, 2, 3)]


async def heard(stream: Stream) -> str:
    frame = await stream.frame()
    assert frame.type == wire.WS_MESSAGE
    return frame.body.decode()


async def test_notes_chat(tmp_path: Path) -> None:
    async with function(tmp_path, "notes") as shim:
        sockets = []
        for name in ("Ada", "Grace"):
            socket = shim.link.open()
            socket.send(wire.CALL, http_header(f"/chat?name={name}", ws=True, r="/fn/notes"))
            assert (await socket.frame()).type == wire.WS_ACCEPT
            assert await heard(socket) == f"{name} came in"
            sockets.append(socket)
        ada, grace = sockets
        assert await heard(ada) == "Grace came in"

        ada.send(wire.WS_MESSAGE, {"t": 1}, b"good morning")
        assert [await heard(socket) for socket in sockets] == ["Ada: good morning"] * 2
        ada.send(wire.WS_CLOSE, {"c": 1001, "r": ""})
        assert await heard(grace) == "Ada left"
        assert (await shim.call("/")).json()["chatting"] == 1


async def test_slow_takes_its_time(tmp_path: Path) -> None:
    async with function(tmp_path, "slow") as shim:
        for query in ("?seconds=0.1", "?seconds=0.1&busy=1"):
            assert (await shim.call(f"/{query}", d=5000)).json()["remaining_ms"] <= 4900


@pytest.mark.parametrize(
    ("way", "kind"), [("raise", "ValueError"), ("sys-exit", "SystemExit"), ("unholdable", "BadResponse")]
)
async def test_crash_that_leaves_the_instance(tmp_path: Path, way: str, kind: str) -> None:
    async with function(tmp_path, "crash") as shim:
        error = (await shim.call(f"/{way}")).error

        assert error is not None
        assert error["type"] == kind
        assert (await shim.call("/fork")).json() == {"forked": True}
        assert (await shim.call("/ok")).json()["ok"] is True


@pytest.mark.parametrize(("way", "code"), [("exit", 3), ("signal", -9)])
async def test_crash_that_ends_the_instance(tmp_path: Path, way: str, code: int) -> None:
    async with function(tmp_path, "crash") as shim:
        shim.link.call(f"/{way}")

        assert (await shim.exited())[0] == code


async def test_memory_hog_keeps_what_it_takes(tmp_path: Path) -> None:
    async with function(tmp_path, "memory-hog") as shim:
        assert [(await shim.call("/?mb=5")).json() for _ in range(2)] == [{"kept_mb": 5}, {"kept_mb": 10}]


async def test_big_body_both_ways(tmp_path: Path) -> None:
    data = bytes(range(256)) * 20_000
    async with function(tmp_path, "big-body") as shim:
        answer = await shim.link.call("/", b"", then=data, m="POST").answer()
        assert answer.json() == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

        assert (await shim.call("/?answer_mb=4")).body == bytes(range(256)) * 4096 * 4


async def test_stream_ends_fails_and_is_left(tmp_path: Path) -> None:
    async with function(tmp_path, "stream") as shim:
        whole = await shim.call("/?count=3&every_ms=1")
        broken = await shim.call("/?count=5&every_ms=1&fail_at=3")
        left = shim.link.call("/?count=1000&every_ms=50")
        await left.frame()
        left.send(wire.CANCEL, {"why": "client"})
        async with asyncio.timeout(PATIENCE_S):
            while not left.logs:
                await asyncio.sleep(0.01)

        assert whole.body == b"piece 1\npiece 2\npiece 3\n"
        assert broken.body == b"piece 1\npiece 2\n"
        assert broken.error is not None
        assert broken.error["message"] == "piece 3 was to fail"
        assert left.logs[0]["text"] == "stream over"

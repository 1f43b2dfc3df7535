"""The codec against the golden vectors, which it did not make, and against every way to cut them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace import wire

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "frames.json").read_text())
VALID = {vector["name"]: vector for vector in GOLDEN["valid"]}
INVALID = {vector["name"]: vector for vector in GOLDEN["invalid"]}
SMALL = [name for name, vector in VALID.items() if sum(times for _, times in vector["bytes"]) == 1]


def joined(parts: list[list[Any]]) -> bytes:
    return b"".join(bytes.fromhex(text) * times for text, times in parts)


def header_of(frame: dict[str, Any]) -> dict[str, Any]:
    """Long values are given in parts, too."""
    if isinstance(parts := frame["header"].get("k"), list):
        return {"k": "".join(text * times for text, times in parts)}
    return frame["header"]


def expected(vector: dict[str, Any]) -> list[tuple[int, int, dict[str, Any], bytes]]:
    return [(frame["type"], frame["stream"], header_of(frame), joined(frame["body"])) for frame in vector["frames"]]


def seen(frames: list[wire.Frame]) -> list[tuple[int, int, dict[str, Any], bytes]]:
    return [(frame.type, frame.stream, wire.loads(frame.header), frame.body) for frame in frames]


@pytest.mark.parametrize("name", VALID)
def test_valid_vector_decodes(name: str) -> None:
    decoder = wire.Decoder()

    assert seen(decoder.feed(joined(VALID[name]["bytes"]))) == expected(VALID[name])
    assert decoder.empty


@pytest.mark.parametrize("name", [name for name, vector in VALID.items() if vector.get("canonical", True)])
def test_valid_vector_encodes(name: str) -> None:
    frames = expected(VALID[name])

    encoded = [
        wire.encode(type, stream, wire.dumps(header) if header else b"", body) for type, stream, header, body in frames
    ]

    assert b"".join(encoded) == joined(VALID[name]["bytes"])


@pytest.mark.parametrize("name", SMALL)
def test_valid_vector_cut_in_two_at_every_byte(name: str) -> None:
    data = joined(VALID[name]["bytes"])
    for at in range(1, len(data)):
        decoder = wire.Decoder()
        first = decoder.feed(data[:at])
        # Nothing is held back: what is complete comes out with the bytes that complete it.
        complete = wire.Decoder().feed(data[:at])
        assert first == complete
        assert seen(first + decoder.feed(data[at:])) == expected(VALID[name])
        assert decoder.empty


@pytest.mark.parametrize("name", SMALL)
def test_valid_vector_byte_by_byte(name: str) -> None:
    data = joined(VALID[name]["bytes"])
    decoder = wire.Decoder()

    frames = [frame for at in range(len(data)) for frame in decoder.feed(data[at : at + 1])]

    assert seen(frames) == expected(VALID[name])


def test_all_vectors_in_one_stream_cut_at_every_byte() -> None:
    data = b"".join(joined(VALID[name]["bytes"]) for name in SMALL)
    wanted = [frame for name in SMALL for frame in expected(VALID[name])]
    for at in range(1, len(data)):
        decoder = wire.Decoder()
        assert seen(decoder.feed(data[:at]) + decoder.feed(data[at:])) == wanted


@pytest.mark.parametrize("name", [name for name, vector in INVALID.items() if vector["refused"] == "frame"])
def test_invalid_frame_is_refused_however_it_is_cut(name: str) -> None:
    data = bytes.fromhex(INVALID[name]["bytes"])
    for at in range(len(data)):
        decoder = wire.Decoder()
        with pytest.raises(wire.ProtocolError):
            decoder.feed(data[:at]), decoder.feed(data[at:])


@pytest.mark.parametrize("name", [name for name, vector in INVALID.items() if vector["refused"] == "header"])
def test_invalid_header_is_refused(name: str) -> None:
    (frame,) = wire.Decoder().feed(bytes.fromhex(INVALID[name]["bytes"]))

    with pytest.raises(wire.ProtocolError):
        wire.loads(frame.header)


def test_oversized_frame_is_refused_from_its_prefix_alone() -> None:
    prefix = bytes.fromhex(INVALID["payload over the limit"]["bytes"])
    assert len(prefix) == wire.PREFIX_SIZE

    with pytest.raises(wire.ProtocolError, match="1048577 bytes"):
        wire.Decoder().feed(prefix)


def test_vectors_name_every_type_of_the_protocol() -> None:
    named = {frame["type"] for vector in GOLDEN["valid"] for frame in vector["frames"]}

    assert set(range(wire.HELLO, wire.WS_CLOSE + 1)) <= named


def test_lone_surrogates_become_question_marks() -> None:
    assert wire.loads(wire.dumps({"p": "/\udcff"})) == {"p": "/?"}


def test_header_nested_beyond_the_parser_is_refused() -> None:
    with pytest.raises(wire.ProtocolError):
        wire.loads(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(codec="utf-8"), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=8,
)
headers = st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), json_values, max_size=5)
frames = st.tuples(st.integers(0, 255), st.integers(0, 2**32 - 1), headers, st.binary(max_size=300))


@given(st.lists(frames, max_size=8), st.data())
def test_any_frames_survive_any_cuts(sent: list[tuple[int, int, dict[str, Any], bytes]], data: st.DataObject) -> None:
    stream = b"".join(wire.encode(type, id, wire.dumps(header), body) for type, id, header, body in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    decoder = wire.Decoder()

    received: list[wire.Frame] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        received += decoder.feed(stream[start:end])

    assert seen(received) == sent
    assert decoder.empty


@given(
    st.lists(st.tuples(st.sampled_from((wire.BODY, wire.LOG)), st.integers(0, 3), st.binary(max_size=300))), st.data()
)
def test_bodies_that_come_apart_say_the_same(sent: list[tuple[int, int, bytes]], data: st.DataObject) -> None:
    stream = b"".join(wire.encode(type, id, b"", body) for type, id, body in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    decoder = wire.Decoder(apart=True)
    received: list[wire.Frame] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        received += decoder.feed(stream[start:end])
    assert decoder.empty
    whole = [frame for frame in received if frame.type == wire.LOG]
    assert [(frame.stream, frame.body) for frame in whole] == [
        (id, body) for type, id, body in sent if type == wire.LOG
    ]
    for id in range(4):
        got = b"".join(frame.body for frame in received if (frame.type, frame.stream) == (wire.BODY, id))
        assert got == b"".join(body for type, stream, body in sent if (type, stream) == (wire.BODY, id))


def test_a_long_body_that_comes_apart_is_not_copied() -> None:
    decoder = wire.Decoder(apart=True)
    data = wire.encode(wire.BODY, 1, b"", b"x" * 200_000)
    first, second = decoder.feed(data[:100_000])[0], decoder.feed(data[100_000:])[0]
    assert (type(first.body), type(second.body)) == (memoryview, bytes)
    assert bytes(first.body) + bytes(second.body) == b"x" * 200_000


@given(st.binary(max_size=2000), st.integers(0, 2000))
def test_noise_gives_frames_or_a_protocol_error(noise: bytes, cut: int) -> None:
    decoder = wire.Decoder()
    try:
        received = decoder.feed(noise[:cut]) + decoder.feed(noise[cut:])
        for frame in received:
            wire.loads(frame.header)
    except wire.ProtocolError:
        return
    rest = len(noise) - sum(wire.PREFIX_SIZE + len(frame.header) + len(frame.body) for frame in received)
    assert decoder.empty == (rest == 0)

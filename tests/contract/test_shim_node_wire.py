"""The codec in JavaScript against the reference codec: same bytes for same frames, however they are cut."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import wire
from node_kit import SHIM, node

# Reads [[piece in hex, ...], ...] and prints, for each, the frames or the error; nothing may refer to a fed buffer.
DECODE = """
const wire = require(process.argv[1]);
const cases = JSON.parse(require('node:fs').readFileSync(0, 'utf8'));
const shown = ({ type, stream, header, body }) => [type, stream, header, body.toString('hex')];
process.stdout.write(JSON.stringify(cases.map((pieces) => {
  const decoder = new wire.Decoder();
  const frames = [];
  try {
    for (const piece of pieces) {
      const data = Buffer.from(piece, 'hex');
      const found = decoder.feed(data);
      data.fill(0xee);
      for (const frame of found) { wire.loads(frame.header); frames.push(shown(frame)); }
    }
  } catch (error) {
    if (error instanceof wire.ProtocolError) return { frames, error: error.message };
    throw error;
  }
  return { frames, empty: decoder.empty };
})));
"""
ENCODE = """
const wire = require(process.argv[1]);
const cases = JSON.parse(require('node:fs').readFileSync(0, 'utf8'));
process.stdout.write(JSON.stringify(cases.map(([type, stream, header, body]) =>
  wire.encode(type, stream, header === null ? '' : wire.dumps(header), Buffer.from(body, 'hex')).toString('hex'))));
"""

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "frames.json").read_text())

HEADERS = st.dictionaries(
    st.text(max_size=6),
    st.one_of(st.integers(-(2**53), 2**53), st.text(st.characters(exclude_categories=["Cs"]), max_size=20), st.none()),
    max_size=4,
)
FRAMES = st.tuples(
    st.integers(0, 255), st.integers(0, 2**32 - 1), st.one_of(st.none(), HEADERS), st.binary(max_size=200)
)


def run(script: str, cases: Any) -> Any:
    result = subprocess.run(
        [node(), "-e", script, str(SHIM / "wire.js")],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def decoded(*streams: Sequence[bytes]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = run(DECODE, [[piece.hex() for piece in pieces] for pieces in streams])
    return found


def joined(parts: list[list[Any]]) -> bytes:
    return b"".join(bytes.fromhex(text) * times for text, times in parts)


def header_of(frame: dict[str, Any]) -> dict[str, Any]:
    header: dict[str, Any] = frame["header"]
    if isinstance(parts := header.get("k"), list):
        return {"k": "".join(text * times for text, times in parts)}
    return header


def check_frames(found: dict[str, Any], vector: dict[str, Any]) -> None:
    assert found.get("empty"), (vector["name"], found.get("error"))
    assert [
        (type_, stream, json.loads(header or "{}"), bytes.fromhex(body))
        for type_, stream, header, body in found["frames"]
    ] == [(frame["type"], frame["stream"], header_of(frame), joined(frame["body"])) for frame in vector["frames"]]


def test_golden_vectors_decode() -> None:
    for vector, found in zip(
        GOLDEN["valid"], decoded(*([joined(vector["bytes"])] for vector in GOLDEN["valid"])), strict=True
    ):
        check_frames(found, vector)


def test_golden_vectors_encode() -> None:
    vectors = [vector for vector in GOLDEN["valid"] if vector.get("canonical", True)]
    cases = [
        [frame["type"], frame["stream"], header_of(frame) or None, joined(frame["body"]).hex()]
        for vector in vectors
        for frame in vector["frames"]
    ]
    written = iter(run(ENCODE, cases))
    for vector in vectors:
        assert "".join(next(written) for _ in vector["frames"]) == joined(vector["bytes"]).hex(), vector["name"]


def test_golden_vectors_decode_cut_at_every_byte() -> None:
    small = [vector for vector in GOLDEN["valid"] if sum(times for _, times in vector["bytes"]) == 1]
    cuts = [
        (vector, [data[:at], data[at:]])
        for vector in small
        for data in [joined(vector["bytes"])]
        for at in range(1, len(data))
    ]
    for (vector, _), found in zip(cuts, decoded(*(pieces for _, pieces in cuts)), strict=True):
        check_frames(found, vector)
    by_byte = ([data[at : at + 1] for at in range(len(data))] for data in (joined(v["bytes"]) for v in small))
    for vector, found in zip(small, decoded(*by_byte), strict=True):
        check_frames(found, vector)


def test_golden_invalid_vectors_are_refused_however_they_are_cut() -> None:
    cuts = [
        (vector["name"], [data[:at], data[at:]])
        for vector in GOLDEN["invalid"]
        for data in [bytes.fromhex(vector["bytes"])]
        for at in range(len(data))
    ]
    for (name, _), found in zip(cuts, decoded(*(pieces for _, pieces in cuts)), strict=True):
        assert found.get("error"), name


@settings(max_examples=8, deadline=None)
@given(st.lists(FRAMES, min_size=1, max_size=30))
def test_both_codecs_write_and_read_the_same_bytes(frames: list[tuple[int, int, dict[str, Any] | None, bytes]]) -> None:
    cases = [[type_, stream, header, body.hex()] for type_, stream, header, body in frames]
    written = [bytes.fromhex(text) for text in run(ENCODE, cases)]
    for data, (type_, stream, header, body) in zip(written, frames, strict=True):
        (frame,) = wire.Decoder().feed(data)
        assert (frame.type, frame.stream, frame.body) == (type_, stream, body)
        assert wire.loads(frame.header) == (header or {})
    reference = [
        wire.encode(type_, stream, b"" if header is None else wire.dumps(header), body)
        for type_, stream, header, body in frames
    ]
    (found,) = decoded([b"".join(reference)])
    assert [[type_, stream, body] for type_, stream, _, body in found["frames"]] == [
        [type_, stream, body.hex()] for type_, stream, _, body in frames
    ]
    assert [json.loads(header or "{}") for _, _, header, _ in found["frames"]] == [
        header or {} for _, _, header, _ in frames
    ]

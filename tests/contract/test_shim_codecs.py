"""The codec of each shim in another language against the reference codec: same bytes for same frames, however cut."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import wire
from node_kit import SHIM as NODE
from node_kit import node
from shell_kit import SHIM as SHELL
from shell_kit import perl


@dataclass(frozen=True)
class Codec:
    """Commands that read cases as JSON and print what the codec makes of them.

    `decode`: of [[piece in hex, ...], ...], the frames or the error of each; nothing may refer to a fed buffer.
    `encode`: of [[type, stream, header as JSON or null, body in hex], ...], each frame in hex.
    """

    decode: list[str]
    encode: list[str]


NODE_DECODE = """
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
NODE_ENCODE = """
const wire = require(process.argv[1]);
const cases = JSON.parse(require('node:fs').readFileSync(0, 'utf8'));
const head = (text) => (text === null ? '' : wire.dumps(JSON.parse(text)));
process.stdout.write(JSON.stringify(cases.map(([type, stream, header, body]) =>
  wire.encode(type, stream, head(header), Buffer.from(body, 'hex')).toString('hex'))));
"""
SHELL_DECODE = r"""
my @found;
for my $pieces (@{ Json::decode(join '', <STDIN>) }) {
    my ($decoder, @frames) = (Wire->new);
    my $fine = eval {
        for my $piece (@$pieces) {
            for ($decoder->feed(pack 'H*', $piece)) {
                push @frames, [@$_[0, 1], Text::decoded(Json::encode(Wire::header($_->[2]))), unpack 'H*', $_->[3]];
            }
        }
        1;
    };
    push @found, { frames => \@frames, $fine ? (empty => \($$decoder eq '')) : (error => $@) };
}
print Json::encode(\@found);
"""
SHELL_ENCODE = r"""
print Json::encode([map {
    unpack 'H*', Wire::encode(@$_[0, 1], defined $_->[2] ? Text::encoded($_->[2]) : undef, pack 'H*', $_->[3])
} @{ Json::decode(join '', <STDIN>) }]);
"""


def in_node(script: str) -> list[str]:
    return [node(), "-e", script, str(NODE / "wire.js")]


def in_perl(script: str) -> list[str]:
    return [perl(), f"-I{SHELL}", "-MWire", "-e", script]


@pytest.fixture(scope="module", params=["node", "shell"])
def codec(request: pytest.FixtureRequest) -> Codec:
    if request.param == "node":
        return Codec(in_node(NODE_DECODE), in_node(NODE_ENCODE))
    return Codec(in_perl(SHELL_DECODE), in_perl(SHELL_ENCODE))


GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "frames.json").read_text())

HEADERS = st.dictionaries(
    st.text(max_size=6),
    st.one_of(st.integers(-(2**53), 2**53), st.text(st.characters(exclude_categories=["Cs"]), max_size=20), st.none()),
    max_size=4,
)
FRAMES = st.tuples(
    st.integers(0, 255), st.integers(0, 2**32 - 1), st.one_of(st.none(), HEADERS), st.binary(max_size=200)
)


def run(command: list[str], cases: Any) -> Any:
    result = subprocess.run(
        command,
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def decoded(codec: Codec, *streams: Sequence[bytes]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = run(codec.decode, [[piece.hex() for piece in pieces] for pieces in streams])
    return found


def joined(parts: list[list[Any]]) -> bytes:
    return b"".join(bytes.fromhex(text) * times for text, times in parts)


def header_of(frame: dict[str, Any]) -> dict[str, Any]:
    header: dict[str, Any] = frame["header"]
    if isinstance(parts := header.get("k"), list):
        return {"k": "".join(text * times for text, times in parts)}
    return header


def as_json(header: dict[str, Any] | None) -> str | None:
    return wire.dumps(header).decode() if header else None


def check_frames(found: dict[str, Any], vector: dict[str, Any]) -> None:
    assert found.get("empty"), (vector["name"], found.get("error"))
    assert [
        (type_, stream, json.loads(header or "{}"), bytes.fromhex(body))
        for type_, stream, header, body in found["frames"]
    ] == [(frame["type"], frame["stream"], header_of(frame), joined(frame["body"])) for frame in vector["frames"]]


def test_golden_vectors_decode(codec: Codec) -> None:
    for vector, found in zip(
        GOLDEN["valid"], decoded(codec, *([joined(vector["bytes"])] for vector in GOLDEN["valid"])), strict=True
    ):
        check_frames(found, vector)


def test_golden_vectors_encode(codec: Codec) -> None:
    vectors = [vector for vector in GOLDEN["valid"] if vector.get("canonical", True)]
    cases = [
        [frame["type"], frame["stream"], as_json(header_of(frame)), joined(frame["body"]).hex()]
        for vector in vectors
        for frame in vector["frames"]
    ]
    written = iter(run(codec.encode, cases))
    for vector in vectors:
        assert "".join(next(written) for _ in vector["frames"]) == joined(vector["bytes"]).hex(), vector["name"]


def test_golden_vectors_decode_cut_at_every_byte(codec: Codec) -> None:
    small = [vector for vector in GOLDEN["valid"] if sum(times for _, times in vector["bytes"]) == 1]
    cuts = [
        (vector, [data[:at], data[at:]])
        for vector in small
        for data in [joined(vector["bytes"])]
        for at in range(1, len(data))
    ]
    for (vector, _), found in zip(cuts, decoded(codec, *(pieces for _, pieces in cuts)), strict=True):
        check_frames(found, vector)
    by_byte = ([data[at : at + 1] for at in range(len(data))] for data in (joined(v["bytes"]) for v in small))
    for vector, found in zip(small, decoded(codec, *by_byte), strict=True):
        check_frames(found, vector)


def test_golden_invalid_vectors_are_refused_however_they_are_cut(codec: Codec) -> None:
    cuts = [
        (vector["name"], [data[:at], data[at:]])
        for vector in GOLDEN["invalid"]
        for data in [bytes.fromhex(vector["bytes"])]
        for at in range(len(data))
    ]
    for (name, _), found in zip(cuts, decoded(codec, *(pieces for _, pieces in cuts)), strict=True):
        assert found.get("error"), name


@settings(max_examples=8, deadline=None)
@given(st.lists(FRAMES, min_size=1, max_size=30))
def test_both_codecs_write_and_read_the_same_bytes(
    codec: Codec, frames: list[tuple[int, int, dict[str, Any] | None, bytes]]
) -> None:
    cases = [[type_, stream, as_json(header), body.hex()] for type_, stream, header, body in frames]
    written = [bytes.fromhex(text) for text in run(codec.encode, cases)]
    for data, (type_, stream, header, body) in zip(written, frames, strict=True):
        (frame,) = wire.Decoder().feed(data)
        assert (frame.type, frame.stream, frame.body) == (type_, stream, body)
        assert wire.loads(frame.header) == (header or {})
    reference = [
        wire.encode(type_, stream, b"" if header is None else wire.dumps(header), body)
        for type_, stream, header, body in frames
    ]
    (found,) = decoded(codec, [b"".join(reference)])
    assert [[type_, stream, body] for type_, stream, _, body in found["frames"]] == [
        [type_, stream, body.hex()] for type_, stream, _, body in frames
    ]
    assert [json.loads(header or "{}") for _, _, header, _ in found["frames"]] == [
        header or {} for _, _, header, _ in frames
    ]

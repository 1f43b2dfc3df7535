"""What a bundle asks to have installed, and which layer that is."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from headrace.errors import BuildFailed
from headrace.model import Runtime

FILE = "requirements.txt"
_MAX_BYTES = 1 << 20
_COMMENT = re.compile(r"(^|\s)#.*")
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*\s*(\[[^\]]*\])?"
_FROM_AFAR = re.compile(
    rf"{_NAME}\s*([<>=!~;][^/\\]*)?"  # a package of the index, with its version, marker and hashes
    rf"|{_NAME}\s*@\s*(git\+)?https?://\S+.*"
    r"|(-i|--index-url|--extra-index-url|--trusted-host|--only-binary|--no-binary|--prefer-binary|--pre|--require-hashes)\b.*"
)
_END_OF_NAME = re.compile(r"[\s\[<>=!~;@]")
_ARCHIVES = (".whl", ".zip", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar")


@dataclass(frozen=True, slots=True)
class Requirements:
    """The content of `requirements.txt`. `local`: it names files of the bundle, so other code means other results."""

    content: bytes
    local: bool

    def layer(self, runtime: Runtime, base_image: str, code: str) -> str:
        """The digest of the layer these give on `base_image` ("": the default), for the bundle with digest `code`."""
        parts = ["headrace layer 1", runtime, base_image, code if self.local else ""]
        return hashlib.sha256(json.dumps(parts).encode() + b"\n" + self.content).hexdigest()


def read(code_dir: Path) -> Requirements | None:
    """What the bundle in `code_dir` asks for; None when that is nothing. Raises `BuildFailed` for an absurd file."""
    path = code_dir / FILE
    if not path.is_file():
        return None
    with path.open("rb") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise BuildFailed(f"{FILE} is longer than {_MAX_BYTES >> 10} KiB: is it the right file?")
    text = content.decode("utf-8-sig", "replace").replace("\\\r\n", " ").replace("\\\n", " ")
    lines = [stripped for line in text.splitlines() if (stripped := _COMMENT.sub("", line).strip())]
    return Requirements(content, local=not all(map(_is_from_afar, lines))) if lines else None


def _is_from_afar(line: str) -> bool:
    name = _END_OF_NAME.split(line, maxsplit=1)[0].lower()
    return _FROM_AFAR.fullmatch(line) is not None and not name.endswith(_ARCHIVES)

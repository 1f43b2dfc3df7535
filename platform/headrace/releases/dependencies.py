"""What a bundle asks to have installed, and which layer that is."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from headrace.errors import BuildFailed
from headrace.runtimes import Dependencies

_MAX_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Wanted:
    """The files that say what to install. `local`: they name files of the bundle, so other code means other results."""

    files: dict[str, bytes]
    local: bool

    def layer(self, runtime: str, platform: str, code: str) -> str:
        """The digest of the layer these give on `platform` (an image's id), for the bundle with digest `code`."""
        digest = hashlib.sha256(
            json.dumps(["headrace layer 3", runtime, platform, code if self.local else ""]).encode()
        )
        for name, content in sorted(self.files.items()):
            digest.update(f"\n{name} {len(content)}\n".encode() + content)
        return digest.hexdigest()


def read(code_dir: Path, rules: Dependencies | None) -> Wanted | None:
    """What the bundle in `code_dir` asks for; None when that is nothing. Raises `BuildFailed` for an absurd file."""
    if rules is None or not (code_dir / rules.file).is_file():
        return None
    names = (rules.file, *rules.locks, *rules.inputs)
    files = {name: _content(code_dir / name) for name in names if (code_dir / name).is_file()}
    text = files[rules.file].decode("utf-8-sig", "replace")
    if not re.search(rules.asks, text):
        return None
    return Wanted(files, local=re.search(rules.local, text) is not None)


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise BuildFailed(f"{path.name} is longer than {_MAX_BYTES >> 20} MiB: is it the right file?")
    return content

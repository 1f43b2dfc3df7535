"""What has to be known of a Dockerfile before the engine builds it.

The engine itself fetches what `ADD` names by address, from its own place in the network and not from the build's, so
such lines are refused: they would let who deploys ask the host's own services.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from headrace.errors import BuildFailed

NAME = "Dockerfile"
_LONGEST = 1 << 20  # bytes
_ESCAPES = "\\", "`"  # a directive chooses; lines are looked at under both, so that nobody can hide behind it
_REMOTE = re.compile(r"://|^git@|\$", re.IGNORECASE)


def read(code_dir: Path) -> str:
    """The text of the Dockerfile in `code_dir`; raises `BuildFailed` for one that is refused."""
    path = code_dir / NAME
    if not path.is_file():
        raise BuildFailed(f"the bundle has no {NAME} at its top: put one there, or name an `image` in the config.")
    if path.stat().st_size > _LONGEST:
        raise BuildFailed(f"the {NAME} is longer than {_LONGEST >> 20} MiB: is it the right file?")
    text = path.read_text(encoding="utf-8", errors="replace")
    for escape in _ESCAPES:
        for number, words in instructions(text, escape):
            if words[0] == "ADD" and any(_REMOTE.search(word) for word in words[1:]):
                raise BuildFailed(
                    f"{NAME}, line {number}: ADD of an address or a variable is refused, because the engine would "
                    "fetch it from the host's own network. Put the file into the bundle, or fetch it with RUN."
                )
    return text


def instructions(text: str, escape: str) -> Iterator[tuple[int, list[str]]]:
    """Each instruction as its line number and words, the first in upper case; what follows ONBUILD counts as one.

    `escape` at the end of a line joins the next one to it.
    """
    lines = text.lstrip("\ufeff").split("\n")
    whole, started = "", 0
    for number, raw in enumerate([*lines, ""], 1):
        line = raw.strip()
        if line.startswith("#") or (whole and not line and number <= len(lines)):
            continue  # comments and empty lines do not end an instruction that goes on
        if not whole:
            started = number
        if line.endswith(escape):
            whole += line[:-1] + " "
            continue
        words = _words(whole + line)
        whole = ""
        if words:
            yield started, words


def _words(line: str) -> list[str]:
    name, rest = [*line.split(None, 1), "", ""][:2]
    if name.upper() == "ONBUILD":
        return _words(rest)
    return [name.upper(), *_arguments(rest)] if name else []


def _arguments(rest: str) -> list[str]:
    """Separated by spaces, or a JSON list."""
    found = re.search(r"\[.*\]", rest)
    if found:
        try:
            listed = json.loads(found[0])
        except ValueError:
            listed = []
        return [*rest.split(), *(str(item) for item in listed)]
    return rest.split()

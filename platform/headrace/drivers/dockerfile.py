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
_ESCAPE = re.compile(r"^#\s*escape\s*=\s*([\\`])\s*$", re.IGNORECASE)
_REMOTE = re.compile(r"://|^git@|\$", re.IGNORECASE)


def read(code_dir: Path) -> str:
    """The text of the Dockerfile in `code_dir`; raises `BuildFailed` for one that is refused."""
    path = code_dir / NAME
    if not path.is_file():
        raise BuildFailed(f"the bundle has no {NAME} at its top: put one there, or name an `image` in the config.")
    if path.stat().st_size > _LONGEST:
        raise BuildFailed(f"the {NAME} is longer than {_LONGEST >> 20} MiB: is it the right file?")
    text = path.read_text(encoding="utf-8", errors="replace")
    for number, words in instructions(text):
        if words[0] == "ADD" and any(_REMOTE.search(word) for word in words[1:]):
            raise BuildFailed(
                f"{NAME}, line {number}: ADD of an address or a variable is refused, because the engine would fetch it "
                "from the host's own network. Put the file into the bundle, or fetch it with RUN."
            )
    return text


def instructions(text: str) -> Iterator[tuple[int, list[str]]]:
    """Each instruction as its line number and words, the first in upper case; what follows ONBUILD counts as one."""
    lines = text.lstrip("\ufeff").split("\n")
    escape = next((found[1] for line in lines[:1] if (found := _ESCAPE.match(line.strip()))), "\\")
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
    name, _, rest = line.strip().partition(" ")
    name, tab, more = name.partition("\t")
    rest = (more + " " + rest if tab else rest).strip()
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

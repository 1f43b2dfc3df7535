"""Which runtime a project is written for, as the manifests of the runtimes tell it: by the file of its handler.

Without any handler, a Dockerfile says that the project is an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headrace import runtimes
from headrace.errors import Invalid
from headrace.model import DEFAULT_RUNTIME, IMAGE_RUNTIME, VersionConfig
from headrace.releases import bundle


def runtime(directory: Path, values: Mapping[str, Any]) -> str | None:
    """The runtime for the code in `directory` and the checked config `values`, which names none.

    None: the default one, or nobody's: whoever takes the code says what is missing. Raises `Invalid` when the handler
    is there in several languages and nothing that one of them installs from decides between them.
    """
    found = [name for name in runtimes.names() if _handler(directory, name, values) is not None]
    if not found and "handler" not in values and _builds_an_image(directory):
        return IMAGE_RUNTIME
    decided = [name for name in found or runtimes.names() if _asks(directory, name)]
    names = decided if len(found) != 1 and decided else found
    if len(names) > 1:
        files = " and ".join(str(_handler(directory, name, values)) for name in names)
        raise Invalid(
            f"{files} are both here: say which is the handler's with `runtime` in headrace.toml ({', '.join(names)})."
        )
    return names[0] if names and names[0] != DEFAULT_RUNTIME else None


def _handler(directory: Path, name: str, values: Mapping[str, Any]) -> str | None:
    config = VersionConfig(**{**values, "runtime": name})
    candidates, _ = bundle.places(config, runtimes.get(name).code)
    return next((path for path in candidates if (directory / path).is_file()), None)


def _builds_an_image(directory: Path) -> bool:
    return any((directory / name).is_file() for name in runtimes.get(IMAGE_RUNTIME).code.files)


def _asks(directory: Path, name: str) -> bool:
    rules = runtimes.get(name).dependencies
    return rules is not None and (directory / rules.file).is_file()

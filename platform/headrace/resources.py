"""Where the files that travel beside the modules are: runtime images and migrations.

An installed wheel carries them in `headrace/_share`; a checkout has them at its top level.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def share(name: str) -> Path:
    """The directory `name` (`runtime-images`, `migrations`)."""
    for root in (_PACKAGE / "_share", _PACKAGE.parent.parent):
        if (root / name).is_dir():
            return root / name
    raise FileNotFoundError(f"{name} is missing from this installation of headrace: install it again.")

"""Failures of user code as the `e` of a frame: type, message and a stack without the shim's own frames."""

from __future__ import annotations

import importlib
import os
import traceback
from asyncio import CancelledError
from typing import Any

MESSAGE_LIMIT = 4 << 10  # characters
STACK_LIMIT = 16 << 10  # characters; the middle is left out

# The shim, and the import of the handler.
_NOT_THE_USERS = (os.path.dirname(__file__) + os.sep, importlib.__file__, "<frozen importlib")  # noqa: PTH120


class Plain(Exception):
    """An error that its words explain whole: where in the shim it was raised tells nobody anything."""

    __module__ = "builtins"  # its subclasses are shown by their bare names


def describe(error: BaseException, root: str = "") -> dict[str, str]:
    """`error` for the wire. File names below the directory `root` are given relative to it."""
    stack = f"{type(error).__name__}: {error}" if isinstance(error, Plain) else _stack(error)
    if root:
        stack = stack.replace(f'File "{root}{os.sep}', 'File "')
    return {"type": type(error).__name__, "message": _message(error)[:MESSAGE_LIMIT], "stack": _shorten(stack)}


def _message(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"the code called sys.exit({'' if error.code is None else repr(error.code)})"
    if isinstance(error, CancelledError) and not error.args:
        return "the code cancelled its own task"
    try:
        return str(error)
    except Exception as second:  # noqa: BLE001 - user code may break here too
        return f"<{type(second).__name__} in __str__ of this error>"


def _stack(error: BaseException) -> str:
    try:
        story = traceback.TracebackException.from_exception(error)
        _trim(story, set())
        return "".join(story.format()).rstrip("\n")
    except Exception as second:  # noqa: BLE001 - a broken __str__, __cause__ or source file
        return f"{type(error).__name__} (its stack cannot be shown: {type(second).__name__})"


def _trim(story: Any, seen: set[int]) -> None:
    """Drop the frames of the shim and of the import system, in `story` and in what caused it."""
    if story is None or id(story) in seen:
        return
    seen.add(id(story))
    story.stack[:] = [frame for frame in story.stack if not frame.filename.startswith(_NOT_THE_USERS)]
    for other in (story.__cause__, story.__context__, *(getattr(story, "exceptions", None) or ())):
        _trim(other, seen)


def _shorten(stack: str) -> str:
    if len(stack) <= STACK_LIMIT:
        return stack
    half = STACK_LIMIT // 2
    return f"{stack[:half]}\n[... {len(stack) - 2 * half} characters left out ...]\n{stack[-half:]}"

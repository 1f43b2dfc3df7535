"""From LOAD to something that runs calls: environment, path, import, and which kind of code it is."""

from __future__ import annotations

import gc
import importlib
import os
import sys
import time
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Callable, Union

from .event import Function
from .handler import HandlerApp
from .logs import Log

if TYPE_CHECKING:
    from .asgi import AsgiApp

    App = Union[HandlerApp, AsgiApp]

_COROUTINE = 0x80  # CO_COROUTINE of a code object


class HandlerMissing(Exception):
    """The bundle holds no such module, or the module no such attribute; the message says what it does hold."""

    __module__ = "builtins"  # stacks show its bare name


def load(spec: dict[str, Any], code: str, layer: str | None, instance: str, log: Log) -> App:
    """Import the handler of the LOAD header `spec` and wrap it. Raises whatever the code raises."""
    function = Function(spec, instance)
    _enter(spec["env"], code, layer)
    target = _resolve(spec["handler"], code)
    kind = spec["kind"]
    if kind == "asgi" or (kind == "auto" and is_asgi(target)):
        from .asgi import AsgiApp  # plain handlers need none of it

        app: App = AsgiApp(_callable(target, spec["handler"]), code, log)
    else:
        handler = _callable(target, spec["handler"])
        app = HandlerApp(handler, is_coroutine(handler), function, code, log)
    gc.freeze()  # what is loaded stays; collections need not look at it
    return app


def _enter(env: dict[str, str], code: str, layer: str | None) -> None:
    """Apply the environment, go to the code, and set the path: the code, its dependencies, Python's own library."""
    os.environ.update(env)
    if "TZ" in env:
        time.tzset()
    os.chdir(code)
    sys.path[:] = [code, *([layer] if layer else []), *filter(_comes_with_python, sys.path)]
    sys.dont_write_bytecode = True  # the code is shared and read-only
    importlib.invalidate_caches()


def _comes_with_python(entry: str) -> bool:
    """Not what happens to be installed beside this Python: a function has the packages that it brings."""
    library = os.path.dirname(os.__file__)  # noqa: PTH120
    return entry.endswith(".zip") or (entry.startswith(library) and not entry.endswith("-packages"))


def _resolve(handler: str, code: str) -> Any:
    path, _, attribute = handler.rpartition(".")
    name = path.replace("/", ".")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None:
            raise
        if name == error.name or name.startswith(f"{error.name}."):
            raise HandlerMissing(_no_module(handler, path, code)) from None
        error.msg = f"No module named {error.name!r}. Is it in requirements.txt, or among the files of the bundle?"
        raise
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise HandlerMissing(_no_attribute(handler, module, attribute)) from None


def _no_module(handler: str, path: str, code: str) -> str:
    found = sorted(entry.name for entry in os.scandir(code) if not entry.name.startswith("."))[:20]
    files = ", ".join(found) or "nothing"
    return f"handler {handler!r} needs {path.replace('.', '/')}.py, and the bundle has no such file. It holds: {files}."


def _no_attribute(handler: str, module: Any, attribute: str) -> str:
    own = [
        name
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", "") == module.__name__
    ]
    defined = ", ".join(own[:20]) or "nothing callable"
    return f"handler {handler!r}: module {module.__name__!r} has no {attribute!r}. It defines: {defined}."


def _callable(target: Any, handler: str) -> Callable[..., Any]:
    if not callable(target):
        raise HandlerMissing(
            f"handler {handler!r} is a {type(target).__name__}, which cannot be called: name a function "
            "`handler(event, context)` or an ASGI application."
        )
    return target


def is_coroutine(target: Any) -> bool:
    """True when calling `target` gives a coroutine: an `async def`, or an object whose `__call__` is one."""
    function = _function(target)
    return function is not None and bool(function.__code__.co_flags & _COROUTINE)


def is_asgi(target: Any) -> bool:
    """True for `async def app(scope, receive, send)` and for objects that are called so. In doubt False."""
    function = _function(target)
    if function is None or not function.__code__.co_flags & _COROUTINE:
        return False
    takes = function.__code__.co_argcount - (function is not target)  # without self
    return takes == 3 and not function.__defaults__


def _function(target: Any) -> FunctionType | None:
    """The Python function that runs when `target` is called, None when that cannot be told."""
    if isinstance(target, FunctionType):
        return target
    call = target if isinstance(target, MethodType) else getattr(type(target), "__call__", None)  # noqa: B004 - its code
    function = getattr(call, "__func__", call)
    return function if isinstance(function, FunctionType) else None

"""Modules that load when they are first used.

asyncio imports `ssl` and `inspect` whether or not anyone opens a TLS connection: 5 MiB and 20 ms of every waiting
instance. They are put into `sys.modules` unloaded, and load on the first attribute that is read or set. Unlike
`importlib.util.LazyLoader` before Python 3.12, two threads may do that at once: the second waits.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, PathFinder
from threading import RLock
from types import ModuleType
from typing import Any

_lock = RLock()
_loading: set[str] = set()


class _Lazy(ModuleType):
    def __getattribute__(self, name: str) -> Any:
        if name not in ("__spec__", "__class__"):  # what the import system itself reads
            _load(self)
        return ModuleType.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _load(self)
        ModuleType.__setattr__(self, name, value)


def _load(module: ModuleType) -> None:
    with _lock:
        spec = ModuleType.__getattribute__(module, "__spec__")
        if ModuleType.__getattribute__(module, "__class__") is not _Lazy or spec.name in _loading:
            return  # loaded by another thread meanwhile, or asked for while it loads
        _loading.add(spec.name)
        try:
            spec.loader.exec_module(module)
            ModuleType.__setattr__(module, "__class__", ModuleType)
        finally:
            _loading.discard(spec.name)


def prepare() -> None:
    """Defer what asyncio imports and a plain handler never uses. To be called before asyncio is imported."""
    defer("inspect")
    if _find("_ssl") is not None or "_ssl" in sys.builtin_module_names:  # else `import ssl` has to fail at once
        defer("ssl")
        defer("asyncio.sslproto")


def defer(name: str) -> None:
    """Put the module `name` into `sys.modules` unloaded; nothing when it is there or does not exist."""
    if name in sys.modules:
        return
    spec = _find(name)
    if spec is None or spec.loader is None:
        return
    module = ModuleType(name)
    module.__spec__ = spec
    module.__loader__ = spec.loader
    module.__file__ = spec.origin
    module.__cached__ = spec.cached
    module.__package__ = spec.parent
    module.__class__ = _Lazy
    sys.modules[name] = module


def _find(name: str) -> ModuleSpec | None:
    package, _, _leaf = name.rpartition(".")
    if not package:
        return PathFinder.find_spec(name)
    parent = PathFinder.find_spec(package)
    return PathFinder.find_spec(name, parent.submodule_search_locations) if parent else None

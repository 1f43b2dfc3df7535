"""Packs the interpreter that runs this, so that it runs in any image: its program, its loader, its libraries.

The files go to the directory that is the one argument: `loader`, `lib/` with the shared libraries and the standard
library, `bin/python3`. Started as `loader --library-path lib bin/python3` it needs nothing of the image around it,
whatever C library that has. It finds its standard library by where `bin/python3` is.
"""

import compileall
import importlib
import os
import shutil
import sys
import sysconfig
from pathlib import Path

LOADED = ("asyncio", "hashlib", "json", "random", "uuid", "zlib")  # whose shared libraries are wanted
WITHOUT = ("_hashlib", "_ssl", "_lzma", "_bz2")  # what these can do without
LEFT_OUT = (
    "__pycache__", "config-*", "dist-packages", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages",
    "sqlite3", "test", "tests", "tkinter", "turtledemo",
)  # fmt: skip
NO_EXTENSIONS = ("_ctypes*", "_curses*", "_dbm.*", "_sqlite3.*", "_test*", "_tkinter.*", "readline.*")
STDLIB = Path(sysconfig.get_path("stdlib"))


def main(target):
    os.umask(0o022)
    libraries = target / "lib"
    own = libraries / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    libraries.mkdir()
    (target / "bin").mkdir()
    ignored = shutil.ignore_patterns(*LEFT_OUT, *NO_EXTENSIONS, *(f"{module}.*" for module in WITHOUT))
    shutil.copytree(STDLIB, own, ignore=ignored)
    shutil.copy(Path(sys.executable).resolve(), target / "bin" / "python3")
    sys.modules.update(dict.fromkeys(WITHOUT))
    for module in LOADED:
        importlib.import_module(module)
    for path in mapped():
        for place in [target / "loader"] if is_loader(path) else [libraries / name for name in names_of(path)]:
            shutil.copy(path, place)
    if not (target / "loader").exists():
        sys.exit("the interpreter has no loader: is it linked statically?")
    compileall.compile_dir(own, quiet=2, ddir="")


def mapped():
    """The shared libraries of this process, but for the extension modules of the standard library."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    paths = {Path(line.split(None, 5)[5].strip()) for line in lines if "/" in line and ".so" in line}
    return sorted(path for path in paths if STDLIB not in path.parents and path.is_file())


def names_of(path):
    """Its own name, and those of the links beside it: programs ask for one of these."""
    return [entry.name for entry in path.parent.iterdir() if ".so" in entry.name and entry.resolve() == path.resolve()]


def is_loader(path):
    return path.name.startswith(("ld-", "ld.so"))


main(Path(sys.argv[1]))

"""The runtimes of this installation: a folder below `runtime-images/` each, with a manifest `runtime.toml`.

All that the platform knows about a language stands there; `runtime-images/README.md` describes every key for who adds
one. Commands are argument lists in which `{shim}`, `{out}`, `{runtime}` and `{self}` stand for paths that are
known when they run; `{self}` is the interpreter that the platform itself runs on.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from headrace.errors import Invalid, SettingsError
from headrace.model import IMAGE_RUNTIME, NAME_PATTERN, Kind, VersionConfig
from headrace.resources import share
from headrace.settings import Settings

MANIFEST = "runtime.toml"
_NAME = re.compile(NAME_PATTERN)
_SETTING = r"^[A-Z][A-Z0-9_]*$"

Command = Annotated[tuple[str, ...], Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Image(_Part):
    """The base image: pulled from a registry, else made on this machine out of packages of a distribution."""

    pull: str
    holds: str  # what an image has to hold that somebody chooses instead
    suite: str
    packages: tuple[str, ...]
    finish: tuple[str, ...] = ()  # a command that adds to `{root}`, the unpacked packages
    leave_out: tuple[str, ...] = ()


class Shim(_Part):
    """What speaks the protocol inside an instance."""

    files: tuple[str, ...]  # of the runtime's folder, laid out in the directory that instances see as `{shim}`
    packages: tuple[str, ...] = ()  # of the platform's own environment, laid out there too; plain code only
    codec: str = ""  # where in it the platform's own codec goes, for a shim that can use it
    finish: tuple[str, ...] = ()  # a command that completes that directory when it is laid out
    command: Command
    process: tuple[str, ...] = ()  # the command without a container; none: this runtime needs one


class Code(_Part):
    """How a bundle is looked at when it arrives."""

    files: Command  # where the module of a handler may be, `{module}` being its path; in this order
    separators: str = "/"  # that part the path in a handler's name
    packages: str = ""  # a file that runs first in each folder on the way, `{package}` being its path
    check: tuple[str, ...] = ()  # a command that judges the files it is given; left out where its program is missing
    shown: bool = True  # to instances; not where the code is only what an image is built from


class Dependencies(_Part):
    """What a bundle may ask to have installed, and how that is done."""

    file: str  # asks for packages
    locks: tuple[str, ...] = ()  # say exactly which
    unlocked: str = ""  # what to do where there is none of these
    inputs: tuple[str, ...] = ()  # other files that the result depends on
    asks: str  # found in `file` when there is anything to install
    local: str  # found in `file` when the result depends on other files of the bundle, too
    install: Command
    process: tuple[str, ...] = ()  # the command without a container, where it is another
    beside: str = ""  # a directory of the result that has to lie beside the code for the language to find it
    env: dict[str, str] = {}
    ca_env: tuple[str, ...] = ()  # variables that name the CA bundle
    source: tuple[str, ...] = ()  # a command that prints where packages come from on this machine, NAME=value a line
    setting: Annotated[str, StringConstraints(pattern=_SETTING)]  # HEADRACE_<this> replaces what that found
    setting_env: str  # the variable for it
    noise: tuple[str, ...] = ()  # starts of lines that nobody needs
    errors: tuple[str, ...] = ()  # starts of lines that say what went wrong
    vague: tuple[str, ...] = ()  # how such lines go on when they tell nothing by themselves
    foreign: dict[str, str] = {}  # files of other installers, and what to do instead
    memory_advice: str

    @field_validator("asks", "local")
    @classmethod
    def _is_pattern(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from None
        return value


class Carried(_Part):
    """For versions with an image of their own: the shim's programs come along, as a directory mounted into it.

    They are those of the base image of another runtime, whose shim is laid out beside this one's.
    """

    runtime: str
    pack: Command  # run in that base image: fills `{out}`


class Runtime(_Part):
    """One runtime. `name` is the name of its folder."""

    name: str
    title: str
    kinds: tuple[Kind, ...]
    memory_mb: int = 32  # the least that an instance needs
    image: Image
    shim: Shim
    code: Code
    dependencies: Dependencies | None = None
    carried: Carried | None = None

    @property
    def base(self) -> Runtime:
        """The runtime whose base image is used: another one when its programs are carried."""
        return self if self.carried is None else get(self.carried.runtime)

    @property
    def directory(self) -> Path:
        return share("runtime-images") / self.name

    @property
    def image_setting(self) -> str:
        """HEADRACE_<this> chooses another image."""
        return f"BASE_IMAGE_{self.name.replace('-', '_').upper()}"

    def image_name(self, settings: Settings) -> str:
        """The image that its instances run in: the one that the settings choose, else one named by its recipe.

        Where the versions bring images: the one whose programs are carried into them.
        """
        if self.carried is not None:
            return self.base.image_name(settings)
        return settings.runtimes.get(self.image_setting) or f"headrace-{self.name}:{self._recipe()}"

    def _recipe(self) -> str:
        """Same recipe, same text: the manifest's words and the programs that they name."""
        digest = hashlib.sha256(json.dumps(self.image.model_dump(), sort_keys=True).encode())
        digest.update(self.programs(self.image.finish))
        return digest.hexdigest()[:12]

    def programs(self, command: Sequence[str]) -> bytes:
        """The content of what `command` runs out of this runtime's folder."""
        names = [word.removeprefix("{runtime}/") for word in command if word.startswith("{runtime}/")]
        return b"".join((self.directory / name).read_bytes() for name in names)


@cache
def names() -> tuple[str, ...]:
    """The runtimes that there are, in order, but for `model.IMAGE_RUNTIME`."""
    found = (path.parent.name for path in share("runtime-images").glob(f"*/{MANIFEST}"))
    return tuple(sorted(name for name in found if name != IMAGE_RUNTIME))


def declared() -> frozenset[str]:
    """The settings, without their prefix, that the runtimes add."""
    found = [get(name) for name in names()]
    indexes = {runtime.dependencies.setting for runtime in found if runtime.dependencies is not None}
    return frozenset(indexes | {runtime.image_setting for runtime in found})


def check(config: VersionConfig) -> Runtime:
    """The runtime that `config` asks for; raises `Invalid` when there is none, or it can't run what is asked."""
    runtime = get(config.runtime)
    if config.kind not in runtime.kinds:
        raise Invalid(f"kind {config.kind!r}: the runtime {runtime.name} takes {' or '.join(runtime.kinds)}.")
    if config.memory_mb < runtime.memory_mb:
        raise Invalid(
            f"memory_mb {config.memory_mb}: an instance of {runtime.name} needs {runtime.memory_mb} at least."
        )
    return runtime


@cache
def get(name: str) -> Runtime:
    """Raises `Invalid` for a name that no folder has, `SettingsError` for a manifest that is none."""
    path = share("runtime-images") / name / MANIFEST
    if not _NAME.fullmatch(name) or not path.is_file():
        raise Invalid(f"the runtime {name[:80]!r} is not part of this installation: use {' or '.join(names())}.")
    try:
        values = {**tomllib.loads(path.read_text()), "name": name}
        if "carried" in values:
            values.setdefault("image", get(Carried.model_validate(values["carried"]).runtime).image)
        return Runtime.model_validate(values)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise SettingsError(f"{path}: {error}") from None


def filled(command: Sequence[str], values: Mapping[str, str | Path]) -> list[str]:
    """`command` with `{name}` replaced by `values[name]`."""
    return [
        re.sub(r"\{([a-z]+)\}", lambda found: str(values.get(found[1], found[0])), argument) for argument in command
    ]

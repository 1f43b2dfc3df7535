"""What one run of the command line shares between its parts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from headrace.cli.output import Output

if TYPE_CHECKING:
    from headrace.cli.client import Control
    from headrace.settings import Settings


class Session:
    """The environment as it was at the start, the output, and the control API once it is needed."""

    def __init__(self, environ: Mapping[str, str], out: Output) -> None:
        self.environ = environ
        self.out = out

    @cached_property
    def settings(self) -> Settings:
        return self.settings_with()

    def settings_with(self, **overrides: Any) -> Settings:
        """The settings with options of the command line on top; None: not given."""
        from headrace import runtimes
        from headrace.settings import load

        return load(self.environ, runtimes.declared(), **overrides)

    def close(self) -> None:
        """Let go of what was opened."""
        if "control" in self.__dict__:
            self.control.close()

    @cached_property
    def control(self) -> Control:
        from headrace.cli.client import Control

        return Control(self.settings)

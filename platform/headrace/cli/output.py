"""What the command line prints: results on stdout, everything else on stderr.

On a terminal it is rich: tables, colours, spinners. Elsewhere it is plain lines that other programs can read.
Text that functions wrote is printed as it is, but a terminal never gets their control characters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, TextIO

from headrace.errors import HeadraceError, Invalid

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Work:
    """A piece of long work in sight: `note` leaves a line behind, `step` says what happens now."""

    def __init__(self, output: Output, status: Status | None) -> None:
        self.kept = status is None  # every step stays to be read
        self._output = output
        self._status = status

    def step(self, text: str) -> None:
        if self._status is None:
            self._output.note(text)
        else:
            self._status.update(_first_line(text, self._output.width))

    def note(self, text: str) -> None:
        self._output.note(text, "dim")


class Output:
    """Prints to `stdout` and `stderr`, each as handsome as it can show."""

    def __init__(self, stdin: TextIO, stdout: TextIO, stderr: TextIO) -> None:
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.terminal = stdout.isatty()
        self._stderr_terminal = stderr.isatty()

    @property
    def width(self) -> int:
        """Columns of the terminal."""
        return self._err.width

    @cached_property
    def _out(self) -> Console:
        return _console(self.stdout)

    @cached_property
    def _err(self) -> Console:
        return _console(self.stderr)

    def line(self, text: str, style: str = "") -> None:
        """One line of the result."""
        if self.terminal:
            _print(self._out, text, style)
        else:
            print(text, file=self.stdout, flush=True)

    def note(self, text: str, style: str = "") -> None:
        """One line beside the result: progress, warnings, what to do next."""
        if self._stderr_terminal:
            _print(self._err, text, style)
        else:
            print(text, file=self.stderr, flush=True)

    def raw(self, data: bytes) -> None:
        """Bytes of the result as they are."""
        self.stdout.flush()
        self.stdout.buffer.write(data)
        self.stdout.buffer.flush()

    def text(self, data: str) -> None:
        """A piece of the result's text, without a line end of its own."""
        self.stdout.write(visible(data) if self.terminal else data)
        self.stdout.flush()

    def failure(self, error: HeadraceError) -> None:
        first, *rest = failure_lines(error)
        self.note(first, "bold red")
        for line in rest:
            self.note(line)

    def confirm(self, question: str) -> bool:
        """Ask the person at the terminal. Raises `Invalid` when there is none."""
        if not (self.stdin.isatty() and self._stderr_terminal):
            raise Invalid(f"{question} There is no terminal to ask: give --yes.")
        print(f"{visible(question)} [y/N] ", end="", file=self.stderr, flush=True)
        return self.stdin.readline().strip().lower() in ("y", "yes")

    def document(self, value: Any) -> None:
        """`value` as JSON, for other programs."""
        print(json.dumps(value, indent=2, ensure_ascii=False), file=self.stdout, flush=True)

    def record(self, value: Any) -> None:
        """`value` as one line of JSON, for streams."""
        print(json.dumps(value, ensure_ascii=False), file=self.stdout, flush=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> None:
        """`rows` under `columns`; the columns named in `right` are aligned right.

        Lines are as long as they are: ids and URLs stay whole, to be copied, and a narrow terminal breaks them.
        """
        head, *body = _aligned([columns, *rows], [column in right for column in columns])
        if not self.terminal:
            for cells in (head, *body):
                self.line("  ".join(cells).rstrip())
            return
        from rich.text import Text

        self.line("  ".join(head).rstrip(), "bold")
        self.line("─" * min(sum(map(len, head)) + 2 * len(head) - 2, self._out.width), "dim")
        for cells in body:
            styled = (Text(cell, style=_STYLES.get(cell.strip(), "")) for cell in cells)
            line = Text("  ").join(styled)
            line.rstrip()
            self._out.print(line, soft_wrap=True)

    @contextmanager
    def working(self, text: str) -> Iterator[Work]:
        """Long work: a spinner with the latest step on a terminal, a line per step elsewhere."""
        if not self._stderr_terminal:
            self.note(text)
            yield Work(self, None)
            return
        with self._err.status(_first_line(text, self.width)) as status:
            yield Work(self, status)


_STYLES = {
    "ready": "green",
    "ok": "green",
    "failed": "red",
    "fail": "red",
    "warn": "yellow",
    "retired": "dim",
    "building": "cyan",
    "probing": "cyan",
    "pending": "cyan",
}


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    return Console(file=stream, markup=False, highlight=False, emoji=False)


def _aligned(rows: Sequence[Sequence[str]], right: Sequence[bool]) -> list[list[str]]:
    """The cells of `rows`, padded to the widest of their column."""
    shown = [[visible(" ".join(cell.split())) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    return [
        [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ]
        for row in shown
    ]


def _print(console: Console, text: str, style: str) -> None:
    from rich.text import Text

    console.print(Text(visible(text), style=style), soft_wrap=True)


def visible(text: str) -> str:
    """`text` with control characters shown, so that nothing a function wrote can steer the terminal."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found.group()):02x}", text)


def _first_line(text: str, width: int) -> str:
    """What of `text` fits into one line beside a spinner."""
    return visible(text.partition("\n")[0])[: max(width - 4, 1)]


_SPARKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float]) -> str:
    """`values` as one line of bars, scaled to their highest."""
    highest = max(values, default=0.0)
    if highest <= 0:
        return _SPARKS[0] * len(values)
    return "".join(_SPARKS[min(len(_SPARKS) - 1, int(value / highest * len(_SPARKS)))] for value in values)


def traffic_text(traffic: dict[str, int]) -> str:
    """`{"3": 90, "4": 10}` as `3: 90 %, 4: 10 %`; all traffic on one version as its number."""
    if len(traffic) == 1:
        return next(iter(traffic))
    return ", ".join(f"{number}: {weight} %" for number, weight in traffic.items()) or "-"


def bytes_text(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def ms_text(value: float | None) -> str:
    if value is None:
        return "-"
    if value >= 10_000:
        return f"{value / 1000:.1f} s"
    return f"{value:.0f} ms" if value >= 100 else f"{value:.2f} ms"


_FAULTS = {"caller": "the request", "function": "the function", "platform": "the platform"}
_STATE = ("generation", "traffic")  # of what a conflict is about


def failure_lines(error: HeadraceError) -> list[str]:
    """A failure for people: what happened, whose fault it is, what to do, and the stack where a function raised."""
    lines = [f"Error: {error.title} (the fault of {_FAULTS[error.fault]})."]
    lines += [f"  {line}" for line in error.detail.splitlines()]
    raised = error.ids.get("error")
    if not isinstance(raised, dict):
        raised = error.ids
    if "type" in raised and "message" in raised:
        lines.append(f"  {raised['type']}: {raised['message']}")
    for block in (raised.get("stack"), error.ids.get("log")):
        lines += [f"    {line}" for line in str(block or "").splitlines()]
    lines += [f"  {name} is now: {error.ids[name]}" for name in _STATE if name in error.ids]
    return lines

"""The scenarios by name. Each takes the options of the run and returns a report."""

from __future__ import annotations

from collections.abc import Callable

import burst
import churn
import cold
import image
import languages
import many
import moves
import sockets
import stream
import warm
from measure import Options, Report

SCENARIOS: dict[str, Callable[[Options], Report]] = {
    "warm-32": lambda options: warm.run(32, options),
    "warm-1": lambda options: warm.run(1, options),
    "cold": cold.run,
    "cold-layer": cold.run_layered,
    "image": image.run,
    "burst": burst.run,
    "moves": moves.run,
    "many": many.run,
    "stream": stream.run,
    "churn": churn.run,
    "runtimes": languages.run,
    "sockets": sockets.run,
}

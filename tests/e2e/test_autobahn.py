"""The Autobahn fuzzing client against an application and a plain handler that both echo.

Left out are sections 12 and 13, about compression, which is not offered, and for the handler what is over its limit of
a mebibyte. `LATE` are cases where the client would like a refusal even earlier: before the rest of a message has come,
or with the echo of what came before it. None of them fails.
"""

from __future__ import annotations

import pytest
from test_websocket_rules import APP, HANDLER

import autobahn
from stack import Headrace

WITHOUT = ["12.*", "13.*"]
TOO_LONG = [f"9.{part}.{case}" for part in (1, 2) for case in (4, 5, 6)]
TOO_LONG += [f"9.{part}.*" for part in (3, 4)]
LATE = {"3.2", "3.3", "3.4", "4.1.3", "4.1.4", "4.1.5", "4.2.3", "4.2.4", "4.2.5", "5.15", "6.4.3", "6.4.4"}


@pytest.mark.parametrize("kind", ["application", "handler"])
def test_the_fuzzing_client_passes(platform: Headrace, kind: str) -> None:
    if kind == "application":
        platform.deploy("autobahn", {"main.py": APP}, {"handler": "main.app"})
        without, least = WITHOUT, 301
    else:
        platform.deploy("autobahn", {"handler.py": HANDLER}, {})
        without, least = WITHOUT + TOO_LONG, 270
    found = autobahn.fuzz(platform.url("autobahn").replace("http", "ws", 1), ["*"], without)
    assert len(found) >= least
    passed = {"OK", "INFORMATIONAL"}
    bad = {case: seen for case, seen in found.items() if not (passed >= {seen.behavior, seen.close})}
    assert {case for case, seen in bad.items() if seen.behavior != "NON-STRICT" or seen.close not in passed} == set()
    assert set(bad) <= LATE

"""Every scenario in a short form. Shows its table; fails when something failed under load, never by a time."""

from __future__ import annotations

import pytest
from run import main
from scenarios import SCENARIOS


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print()
        assert main([name, "--seconds", "1"]) == 0

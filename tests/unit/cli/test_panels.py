"""Lists and lines: they add up, and say what a person needs."""

from __future__ import annotations

import pytest

from kvloom.cli import panels
from kvloom.types import Fidelity, Usage


def test_the_usage_line_adds_up_to_the_prompt() -> None:
    usage = Usage(1204, 980, 200, 24, 200, 0, 0, 65, Fidelity.SPLICE, ttft_s=0.2, total_s=3.4)
    line = panels.usage_line(usage)
    assert line.startswith("prompt 1,204 = 980 reused + 200 loaded (200 rotated) + 24 computed")
    assert "first token 0.200 s" in line
    assert "65 tokens at 20.0/s" in line
    assert line.endswith("splice")


def test_what_was_recomputed_or_dropped_is_said() -> None:
    usage = Usage(100, 0, 76, 24, 0, 12, 40, 1, Fidelity.BLEND, ttft_s=0.2, total_s=0.2)
    line = panels.usage_line(usage)
    assert "24 computed (and 12 again in place)" in line
    assert "40 dropped" in line
    assert "1 tokens ·" in line


@pytest.mark.parametrize("mode", list(Fidelity))
def test_every_mode_is_explained(mode: Fidelity) -> None:
    assert panels.fidelity_text(mode).startswith(f"{mode.value}: ")

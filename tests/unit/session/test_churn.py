"""Random operations on one conversation; `tests/soak` drives 100,000 of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.session.churn import Churn


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_done_every_question_is_in_the_prompt_or_in_the_ledger(tmp_path: Path, seed: int) -> None:
    churn = Churn(tmp_path / "home", seed)
    try:
        done = {churn.step() for _ in range(150)}
        churn.check_device()
    finally:
        churn.close()
    assert {"ask", "undo"} <= done
    assert churn.given

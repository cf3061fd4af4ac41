"""The ledger's invariant over 100,000 random operations: `make soak`. SOAK_STEPS sets another number."""

from __future__ import annotations

import os
from pathlib import Path

from tests.unit.session.churn import Churn

STEPS = int(os.environ.get("SOAK_STEPS", "100000"))
STEPS_OF_ONE = 500
"""Steps of one session: the check behind each step looks at all that was ever given to it."""


def test_nothing_is_lost_over_100_000_operations(tmp_path: Path) -> None:
    done = 0
    while done < STEPS:
        churn = Churn(tmp_path / f"home-{done}", seed=done)
        try:
            for _ in range(min(STEPS_OF_ONE, STEPS - done)):
                churn.step()
                done += 1
            churn.check_device()
        finally:
            churn.close()
        print(f"{done} of {STEPS} operations", flush=True)

"""The budgets of RAM and disk, by what is really held; `tests/soak` does it at length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kvloom.session.loom import Loom
from kvloom.session.probe import Probe
from kvloom.session.session import Session
from kvloom.types import Fidelity
from tests.unit.session.fakes import engine_of, fake_loom, fresh_logits, held_tokens
from tests.unit.session.hoard import Hoard

RAM_BYTES, DISK_BYTES = 120_000, 200_000
SLACK = 1.05


def check_fake(loom: Loom, session: Session) -> None:
    assert held_tokens(loom, session) == session.tokens()
    if session.fidelity is Fidelity.EXACT:
        probe = Probe(session)
        question = probe.question_tokens("And now?")
        want = fresh_logits(engine_of(loom), [*session.tokens(), *question])
        np.testing.assert_array_equal(probe.logits_behind(question), want)


@pytest.mark.parametrize("seed", range(2))
def test_tiers_stay_within_their_budgets_whatever_is_brought_in(tmp_path: Path, seed: int) -> None:
    def opened() -> Loom:
        return fake_loom(
            tmp_path / "home", context=768, ram_budget_bytes=RAM_BYTES, disk_budget_bytes=DISK_BYTES,
            compression={"enabled": False},
        )  # fmt: skip

    hoard = Hoard(opened, check_fake, seed)
    try:
        done = set()
        for number in range(1, 161):
            done.add(hoard.step())
            if not number % 40:
                hoard.check()
    finally:
        hoard.close()
    watcher = hoard.watcher
    assert hoard.stored_bytes > 3 * DISK_BYTES, "or nothing was ever evicted"
    assert 0.7 * RAM_BYTES < watcher.peak_ram_bytes <= SLACK * RAM_BYTES
    assert 0.7 * DISK_BYTES < watcher.peak_disk_bytes <= SLACK * DISK_BYTES
    assert {"bring", "ask", "restore"} <= done

"""200 kills at random instants over one home: `make soak`. SOAK_KILLS sets another number."""

from __future__ import annotations

import os
from pathlib import Path

from tests.unit.session.keeping import check, kill_once

KILLS = int(os.environ.get("SOAK_KILLS", "200"))
KILLS_OF_ONE = 10
"""Kills of one home: what is checked behind each grows with what was given to it."""


def test_nothing_acknowledged_is_lost_in_200_kills(tmp_path: Path) -> None:
    home, questions, snapshots = tmp_path, set[str](), set[str]()
    for number in range(KILLS):
        if number % KILLS_OF_ONE == 0:
            home, questions, snapshots = tmp_path / f"home-{number}", set(), set()
        asked, taken = kill_once(home, number)
        questions |= asked
        snapshots |= taken
        check(home, questions, snapshots)
        print(f"{number + 1} of {KILLS} kills, {len(questions)} turns and {len(snapshots)} snapshots kept", flush=True)

"""`kill -9` while turns, snapshots and entries are written; `tests/soak` does it 200 times."""

from __future__ import annotations

from pathlib import Path

from tests.unit.session.keeping import check, kill_once


def test_what_was_acknowledged_survives_kills_at_random_instants(tmp_path: Path) -> None:
    home = tmp_path / "home"
    questions: set[str] = set()
    snapshots: set[str] = set()
    for seed in range(4):
        asked, taken = kill_once(home, seed)
        questions |= asked
        snapshots |= taken
        check(home, questions, snapshots)
    assert questions

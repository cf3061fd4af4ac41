"""The measurements of what the server adds and what conversations share, on the deterministic engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kvloom.bench.overhead import LIMIT_S, overhead_row
from kvloom.bench.sharing import CONVERSATIONS, Start, _completion, _row
from kvloom.config import load_settings
from kvloom.session.fake_rooms import open_fake

ROUNDS = 30
DOCUMENT = "".join(f"line {number} of a file about piers\n" for number in range(60))


def test_the_overhead_is_the_difference_of_two_real_ways() -> None:
    row = overhead_row(ROUNDS)
    assert row.peer_s == LIMIT_S and row.extra["n"] == ROUNDS
    assert 0 < row.extra["direct_first_token_s"] < row.extra["served_first_token_s"] <= row.extra["served_p95_s"]
    assert abs(row.ours_s - (row.extra["served_first_token_s"] - row.extra["direct_first_token_s"])) < 1e-9
    assert row.ours_s < 20 * LIMIT_S  # whatever else this machine does


def test_conversations_over_one_document_hold_it_once(tmp_path: Path) -> None:
    settings = load_settings({"context": 4096, "guard": {"enabled": False}})
    with open_fake(settings, tmp_path) as loom:
        chunk = loom.load_text(DOCUMENT, name="piers.txt").id
        sessions = [loom.session() for _ in range(CONVERSATIONS + 1)]
        for session in sessions:
            session.activate(chunk)

        def in_a_session(number: int) -> Iterator[object]:
            return sessions[number].stream("What?", max_tokens=8, temperature=0.0)

        starts: dict[str, Start] = {
            "shared-sessions": in_a_session,
            "shared-requests": lambda number: _completion(loom, chunk, number),
        }
        for case, start in starts.items():
            row = _row(case, loom, len(DOCUMENT), start)
            assert row.extra["cells_of_one"] > len(DOCUMENT)
            # One token a byte: what each asks and gets is long beside the document.
            assert row.extra["cells"] < row.extra["cells_of_one"] + CONVERSATIONS * 300
            assert row.extra["cells"] > row.extra["cells_of_one"]

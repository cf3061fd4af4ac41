"""Reports: medians, ratios, the JSON that readers rely on, and the table for a person."""

from __future__ import annotations

import io
import json

import pytest

from kvloom.bench.report import Report, Row, compare, machine


def report() -> Report:
    rows = (
        compare("reorder", "splice", [0.7, 0.6, 5.0], ("llama.cpp server", [30.0, 36.0]), 50.0, {"edit_s": 0.01}),
        compare("off", "exact", [2.0], ("llama.cpp server", [1.0]), 0.95),
        Row("alone", "", 0.25),
    )
    return Report(
        "switch", {"model_name": "m", "threads": 2, "command": "kvloom bench switch"}, rows, columns=("edit_s",)
    )


def test_a_row_compares_medians_and_keeps_the_extremes() -> None:
    row = report().rows[0].document()
    assert (row["ours_s"], row["peer_s"]) == (0.7, 33.0)
    assert row["speedup"] == pytest.approx(33.0 / 0.7)
    assert (row["n"], row["ours_min_s"], row["ours_max_s"], row["peer_max_s"]) == (3, 0.6, 5.0, 36.0)
    assert row["met"] is False


def test_json_has_the_promised_keys_and_nothing_else_is_printed() -> None:
    out = io.StringIO()
    report().show(as_json=True, stream=out)
    document = json.loads(out.getvalue())
    assert set(document) >= {"bench", "setup", "rows"}
    assert document["bench"] == "switch"
    for row in document["rows"]:
        assert set(row) >= {"case", "fidelity", "ours_s", "peer", "peer_s", "speedup"}
    assert document["rows"][2]["speedup"] is None


def test_the_table_marks_what_was_missed_and_says_how_to_repeat_it() -> None:
    out = io.StringIO()
    report().show(stream=out)
    text = out.getvalue()
    assert "47.1×" in text
    assert "50× missed" in text
    assert "0.95× missed" in text
    assert "again: kvloom bench switch" in text


def test_a_ratio_at_the_target_is_met() -> None:
    assert compare("a", "", [2.0], ("p", [2.0]), 1.0).is_met is True
    assert compare("a", "", [2.0], ("p", [1.99]), 1.0).is_met is False
    assert Row("a", "", 1.0).is_met is None


def test_the_machine_is_described_in_plain_json_values() -> None:
    found = json.loads(json.dumps(machine()))
    assert found["cores"] >= 1
    assert found["cpu"]
    assert found["libraries"]["numpy"]

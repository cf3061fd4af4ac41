"""What `bench snapshots` measures of a conversation, on a tiny random model."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from kvloom.bench import snapshots
from kvloom.bench.setting import Request
from kvloom.errors import UsageError
from kvloom.session.values import Progress
from tests.tiny_gguf import TinyModel, write_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf", TinyModel(context=4096)))


def test_every_size_is_saved_and_loaded_here_and_in_a_fresh_loom(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "SIZES", (1000, 3000, 32_000))
    told: list[Progress] = []
    report = snapshots.run(Request(model, progress=told.append, threads=1, repeats=2))
    rows = {row["case"]: row for row in report.document()["rows"]}
    assert list(rows) == [f"{case}-{size}" for size in ("1k", "3k") for case in ("save", "load", "load-fresh")]
    assert report.setup["left_out"] == ["32k"], "the model was not trained for it"
    assert report.notes[0] == "left out of this run: 32k."
    for size, tokens in (("1k", 1000), ("3k", 3000)):
        save, load, fresh = (rows[f"{case}-{size}"] for case in ("save", "load", "load-fresh"))
        assert 0.85 * tokens < save["tokens"] <= tokens
        assert save["n"] == load["n"] == fresh["n"] == 2
        assert load["num_identical"] == load["num_loads"] == 4, "what is restored goes on as it would have"
        assert 0 < load["restore_s"] <= load["ours_s"]
        assert load["ours_min_s"] < load["peer_s"]
        assert 0 < fresh["restore_s"] <= fresh["ours_s"]
        assert save["ours_s"] > 0
    if hasattr(psutil.Process(), "io_counters"):
        assert 0 < rows["save-1k"]["written_bytes"] < rows["save-3k"]["written_bytes"] < rows["save-3k"]["kv_bytes"]
    assert told[-1].done == told[-1].total == 8


def test_a_model_that_is_too_small_for_any_size_is_refused_with_the_numbers(model: str) -> None:
    with pytest.raises(UsageError, match="trained for 4096 tokens: too few for a conversation of 8000"):
        snapshots.fitting(Request(model, threads=1), Path(model).parent / "home", (8000,))


def test_one_length_is_measured_alone(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "SIZES", (1000, 2000))
    report = snapshots.run(Request(model, progress=lambda _: None, threads=1, repeats=1), cases="1k")
    assert [row.case for row in report.rows] == ["save-1k", "load-1k", "load-fresh-1k"]
    assert report.setup["left_out"] == ["2k"]
    assert report.setup["command"].endswith("--cases 1k")


def test_a_length_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UsageError, match="no case '4k'; choose of 1k, 8k, 32k"):
        snapshots.run(Request(), cases="4k")

"""Every benchmark, whole, on a tiny random model: the rows that it promises, and nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from kvloom.bench import codecs, decode, fidelity, restart, switch, upkeep
from kvloom.bench.compositions import CASES
from kvloom.bench.setting import Request
from kvloom.cli.main import run
from kvloom.config import DiskCompression
from kvloom.errors import StoreError
from kvloom.session.values import Progress
from kvloom.types import Fidelity
from tests.tiny_gguf import TinyModel, write_tiny

pytest.importorskip("xllamacpp", reason="the peer is a dependency of the benchmarks only")

QUESTION_TOKENS = 120
"""A tiny model has about a token for every letter."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf", TinyModel(context=4096)))


def small_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switch, "QUICK", switch.Size(4, 100, 1024, 1, 3))
    monkeypatch.setattr(switch, "QUESTION_TOKENS", QUESTION_TOKENS)


def test_switch_measures_every_case_in_every_fidelity(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small_switch(monkeypatch)
    told: list[Progress] = []
    report = switch.run(Request(model, quick=True, progress=told.append, threads=1))
    rows = {(row["case"], row["fidelity"]): row for row in report.document()["rows"]}
    assert set(rows) == {(case, mode.value) for case in CASES for mode in Fidelity}
    assert all(row["ours_s"] > 0 and row["peer_s"] > 0 and row["speedup"] > 0 for row in rows.values())
    assert rows["full-prefill", "splice"]["loaded_tokens"] == 0
    assert rows["reorder", "splice"]["rotated_tokens"] > 0
    assert rows["reorder", "blend"]["recomputed_tokens"] > 0
    assert rows["on-seen", "exact"]["rotated_tokens"] == 0
    assert rows["off", "splice"]["computed_tokens"] == rows["subset-in-order", "splice"]["computed_tokens"]
    measured = [step for step in told if step.task == "bench switch"]
    assert measured[-1].done == measured[-1].total == len(CASES) * 4
    assert not report.setup["left_out"]
    assert not [child for child in psutil.Process().children(recursive=True) if "peer_server" in child.cmdline()]


def test_one_case_is_measured_alone_in_the_same_way(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_switch(monkeypatch)
    report = switch.run(Request(model, quick=True, threads=1), cases="on-seen,subset-unseen", fidelity="splice")
    rows = {(row["case"], row["fidelity"]): row for row in report.document()["rows"]}
    assert set(rows) == {("on-seen", "splice"), ("subset-unseen", "splice")}
    # One document came back, and the whole is what was there before.
    assert rows["on-seen", "splice"]["reused_tokens"] > rows["on-seen", "splice"]["loaded_tokens"]
    assert rows["on-seen", "splice"]["computed_tokens"] == rows["subset-unseen", "splice"]["computed_tokens"]
    left_out = "full-prefill, off, subset-in-order, insert-front, reorder, blend, exact"
    assert report.notes[0] == f"left out of this run: {left_out}."
    assert "--cases on-seen,subset-unseen --fidelity splice" in report.setup["command"]
    # Without a callback every measurement is a line of its own.
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if "/4] on-seen: kvloom splice" in line]) == 1
    assert "4/4] subset-unseen: better is" in lines[-1]


def test_restart_loads_everything_and_computes_only_the_tail(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restart, "QUICK", restart.Size(2, 150, 1024, 1))
    monkeypatch.setattr(restart, "QUESTION_TOKENS", QUESTION_TOKENS)
    monkeypatch.setattr(restart, "FIDELITIES", (Fidelity.EXACT,))
    report = restart.run(Request(model, quick=True, threads=1))
    rows = {(row["case"], row["peer"]): row for row in report.document()["rows"]}
    assert len(rows) == 4
    stored = report.setup["stored_tokens"]
    for (case, _), row in rows.items():
        assert row["loaded_tokens"] == stored
        assert row["computed_tokens"] == (5 if case == "tail-5" else report.setup["question_prompt_tokens"])
        assert 0 < row["ours_s"] < row["load_s"] + 60


def test_fidelity_compares_all_variants_on_the_same_draws(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "NUM_DOCUMENTS", 3)
    monkeypatch.setattr(fidelity, "DOCUMENT_TOKENS", 600)
    report = fidelity.run(Request(model, quick=True, threads=1, repeats=2))
    rows = {row["case"]: row for row in report.document()["rows"]}
    assert set(rows) == {*(name for name, _ in fidelity.VARIANTS), fidelity.EXACT, fidelity.FLOOR}
    assert {rows[name]["num_draws"] for name, _ in fidelity.VARIANTS} == {2}
    assert rows["splice"]["share"] == 0
    assert 0 < rows["blend-5"]["share"] <= 0.05
    assert rows["first-k-15"]["share"] == pytest.approx(0.15, abs=0.01)
    assert rows["exact"]["kl_mean"] < rows["splice"]["kl_mean"] / 100
    assert rows["exact"]["identical_restores"] == rows["exact"]["restores"] == 1
    assert all(row["kl_mean_low"] <= row["kl_mean"] <= row["kl_mean_high"] for row in rows.values())


def test_decode_measures_speed_overhead_and_the_books(
    model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(decode, "QUICK_REPLY_TOKENS", 48)
    monkeypatch.setattr(upkeep, "QUICK_NUM_CHUNKS", 40)
    monkeypatch.setattr(upkeep, "LARGE_CELLS", 8192)
    # Cells are allocated beyond the model's own length: a window may not pass it.
    report = decode.run(Request(model, quick=True, threads=1))
    rows = {row["case"]: row for row in report.document()["rows"]}
    assert list(rows) == ["decode", "decode-overhead", "activation", "plan", "usage", "status"]
    assert rows["decode"]["num_tokens"] == 48
    assert rows["decode"]["ours_tokens_per_s"] == pytest.approx(1 / rows["decode"]["ours_s"])
    assert (rows["activation"]["peer_num_cells"], rows["activation"]["num_cells"]) == (4096, 8192)
    assert rows["plan"]["num_chunks"] == 40


def test_codecs_sends_every_coding_through_a_disk_and_back(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs, "NUM_DOCUMENTS", 3)
    monkeypatch.setattr(codecs, "DOCUMENT_TOKENS", 600)
    told: list[Progress] = []
    report = codecs.run(Request(model, quick=True, progress=told.append, threads=1, repeats=2))
    rows = {row["case"]: row for row in report.document()["rows"]}
    assert list(rows) == ["off", "lossless", "q8_0", "low4"]
    for name in ("off", "lossless"):
        assert rows[name]["num_identical_entries"] == rows[name]["num_entries"] == 6
        assert rows[name]["num_identical_logits"] == 2
        assert (rows[name]["kl_mean"], rows[name]["top1"], rows[name]["is_lossy"]) == (0, 1, False)
        assert f"{name}: all 6 entries came back identical to the bit (checked)." in report.notes
    assert rows["q8_0"]["num_identical_entries"] == rows["low4"]["num_identical_entries"] == 0
    assert 0 < rows["q8_0"]["kl_mean"] < rows["low4"]["kl_mean"]
    assert 1 < rows["off"]["size_share"] < 1.1
    assert rows["off"]["size_share"] > rows["q8_0"]["size_share"] > rows["low4"]["size_share"]
    assert all(row["write_s"] > 0 and row["read_s"] > 0 and row["peer_s"] > 0 for row in rows.values())
    assert {row["num_tokens"] for row in rows.values()} == {rows["off"]["num_tokens"]}
    assert told[-1].done == told[-1].total == 8


def test_codecs_fails_where_a_faithful_coding_changes_a_bit(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs, "NUM_DOCUMENTS", 2)
    monkeypatch.setattr(codecs, "DOCUMENT_TOKENS", 400)
    monkeypatch.setattr(codecs, "IDENTICAL", tuple(DiskCompression))
    with pytest.raises(StoreError, match="q8_0 must give back every bit, and 2 of 2 entries came back changed"):
        codecs.run(Request(model, quick=True, threads=1, repeats=1))


def test_the_command_prints_json_tells_every_step_and_draws(
    model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="plots are drawn with the bench extra only")
    monkeypatch.setattr(codecs, "NUM_DOCUMENTS", 2)
    monkeypatch.setattr(codecs, "DOCUMENT_TOKENS", 400)
    picture = tmp_path / "results" / "codecs.svg"
    words = ["bench", "codecs", "--quick", "--threads", "1", "--model", model, "--json", "--plot", str(picture)]
    assert run(words) == 0
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert document["bench"] == "codecs"
    assert document["setup"]["command"].endswith("--threads 1 --quick")
    assert [row["case"] for row in document["rows"]] == ["off", "lossless", "q8_0", "low4"]
    steps = [line for line in shown.err.splitlines() if ", draw 0: " in line]
    assert [line.partition(" s, ")[2].partition(",")[0] for line in steps] == [
        "1/4] off", "2/4] lossless", "3/4] q8_0", "4/4] low4",
    ]  # fmt: skip
    assert "low4" in picture.read_text(encoding="utf-8")

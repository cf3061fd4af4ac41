"""Every benchmark, whole, on a tiny random model: the rows that it promises, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from kvloom.bench import decode, fidelity, restart, switch, upkeep
from kvloom.session.values import Progress
from kvloom.types import Fidelity
from tests.tiny_gguf import TinyModel, write_tiny

pytest.importorskip("xllamacpp", reason="the peer is a dependency of the benchmarks only")

QUESTION_TOKENS = 120
"""A tiny model has about a token for every letter."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf", TinyModel(context=4096)))


def test_switch_measures_every_case_in_every_fidelity(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switch, "QUICK", switch.Size(3, 120, 1024, 1, 2))
    monkeypatch.setattr(switch, "QUESTION_TOKENS", QUESTION_TOKENS)
    told: list[Progress] = []
    report = switch.run(model, quick=True, progress=told.append, threads=1)
    rows = {(row["case"], row["fidelity"]): row for row in report.document()["rows"]}
    assert set(rows) == {(case, mode.value) for case in switch.CASES for mode in Fidelity}
    assert all(row["ours_s"] > 0 and row["peer_s"] > 0 and row["speedup"] > 0 for row in rows.values())
    assert rows["full-prefill", "splice"]["loaded_tokens"] == 0
    assert rows["reorder", "splice"]["rotated_tokens"] > 0
    assert rows["reorder", "blend"]["recomputed_tokens"] > 0
    assert rows["on-seen", "exact"]["rotated_tokens"] == 0
    measured = [step for step in told if step.task == "bench switch"]
    assert measured[-1].done == measured[-1].total == len(switch.CASES) * 4
    assert not [child for child in psutil.Process().children(recursive=True) if "peer_server" in child.cmdline()]


def test_restart_loads_everything_and_computes_only_the_tail(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restart, "QUICK", restart.Size(2, 150, 1024, 1))
    monkeypatch.setattr(restart, "QUESTION_TOKENS", QUESTION_TOKENS)
    monkeypatch.setattr(restart, "FIDELITIES", (Fidelity.EXACT,))
    report = restart.run(model, quick=True, threads=1)
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
    report = fidelity.run(model, quick=True, threads=1, repeats=2)
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
    monkeypatch.setattr(upkeep, "LARGE_CONTEXT", 7_000)
    report = decode.run(model, quick=True, threads=1)
    rows = {row["case"]: row for row in report.document()["rows"]}
    assert list(rows) == ["decode", "decode-overhead", "activation", "plan", "usage", "status"]
    assert rows["decode"]["num_tokens"] == 48
    assert rows["decode"]["ours_tokens_per_s"] == pytest.approx(1 / rows["decode"]["ours_s"])
    assert (rows["activation"]["peer_num_cells"], rows["activation"]["num_cells"]) == (4096, 8192)
    assert rows["plan"]["num_chunks"] == 40

"""Pictures of reports: a file with the cases' names in it, from a run or from stored JSON; clear words where not."""

from __future__ import annotations

import importlib.util
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from kvloom.bench import plot
from kvloom.cli.main import run
from kvloom.errors import UsageError

needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="plots are drawn with the bench extra only"
)


def row(case: str, fidelity: str, speedup: float | None, target: float | None = None, **more: Any) -> dict[str, Any]:
    return {
        "case": case, "fidelity": fidelity, "ours_s": 1.0, "peer": "llama.cpp server", "peer_s": speedup,
        "speedup": speedup, "target": target, **more,
    }  # fmt: skip


def kl(share: float, mean: float) -> dict[str, float]:
    return {"share": share, "kl_mean": mean, "kl_mean_low": mean * 0.7, "kl_mean_high": mean * 1.5}


def coded(name: str, share: float, mean: float) -> dict[str, Any]:
    return row(name, "splice", 50.0, **kl(0, mean), size_share=share, write_s=0.02, read_s=0.01)


ROWS: dict[str, list[dict[str, Any]]] = {
    "switch": [
        row("off", "splice", 1.01, 1.0),
        row("reorder", "splice", 46.6, 50.0),
        row("off", "blend", 0.4),
        row("reorder", "blend", 17.4, 10.0),
        row("off", "exact", 1.45, 0.95),
        row("unmeasured", "exact", None),
    ],
    "restart": [
        row("tail-5", "splice", 262.4, 80.0) | {"peer": "llama.cpp server, cold prefill"},
        row("tail-5", "splice", 0.79, 0.9) | {"peer": "llama.cpp server, slot restore"},
        row("question-30", "exact", 59.2, 40.0) | {"peer": "llama.cpp server, cold prefill"},
    ],
    "fidelity": [
        row("splice", "splice", 9.0, **kl(0.0, 0.1)),
        row("blend-5", "blend", 5.0, **kl(0.05, 0.07)),
        row("blend-15", "blend", 3.0, **kl(0.15, 0.05)),
        row("first-k-5", "", 5.0, **kl(0.05, 0.09)),
        row("exact", "exact", None, **kl(0.0, 0.0005)),
        row("re-batching floor", "", None, **kl(0.0, 0.0004)),
    ],
    "decode": [
        row("decode", "", 1.1, 1.15, ours_tokens_per_s=27.0, peer_tokens_per_s=24.0),
        row("decode-overhead", "", 0.98, 0.97, ours_tokens_per_s=27.0, peer_tokens_per_s=27.5)
        | {"peer": "bare native loop"},
        row("plan", "", 160.0, 1.0),
    ],
    "room": [
        row("restore-tail-5", "splice", 120.0, 80.0) | {"peer": "full prefill"},
        row("resize-up-and-down", "splice", 2.0, 1.0) | {"peer": "limit"},
        row("facts-adaptive", "splice", 0.95, 0.9) | {"peer": "plain sight"},
    ],
    "snapshots": [
        row("save-8k", "splice", None),
        row("load-8k", "splice", 90.0) | {"peer": "computing it once"},
        row("load-fresh-8k", "splice", 60.0) | {"peer": "computing it once"},
    ],
    "codecs": [coded("off", 1.01, 0.0), coded("lossless", 0.86, 0.0), coded("low4", 0.26, 0.01)],
    "ask": [
        row("first-token", "splice", 22.0, 10.0),
        row("right-to-peer", "splice", 0.98, 0.93),
        row("kept-of-peer-low", "blend", 0.0, 0.9),
        row("no-context", "", None),
        row("disk-times-smaller", "low4", 3.7, 3.33) | {"peer": "f16"},
    ],
    "retrieval": [row("all", "", 3.7, 1.0) | {"peer": "limit"}, row("constant", "", 4.6)],
}
SHOWN = {
    "switch": {"off", "reorder", "splice", "blend", "exact", "target, at least", "46.6×"},
    "restart": {"tail-5", "question-30", "cold prefill", "slot restore"},
    "fidelity": {"splice", "blend", "first-k", "exact", "re-batching floor"},
    "decode": {"kvloom", "llama.cpp server", "bare native loop", "decode-overhead", "plan"},
    "room": {"restore-tail-5", "resize-up-and-down", "facts-adaptive"},
    "snapshots": {"load-8k", "load-fresh-8k"},
    "codecs": {"off", "lossless", "low4", "write", "read", "compute"},
    "ask": {"first-token", "right-to-peer", "disk-times-smaller", "splice", "low4"},
    "retrieval": {"all", "constant"},
}


def report(bench: str) -> dict[str, Any]:
    return {
        "bench": bench,
        "setup": {"model_name": "tiny", "cpu": "a processor", "is_quick": True},
        "rows": ROWS[bench],
    }


def texts(svg: Path) -> set[str]:
    """Every run of text in a picture."""
    return {(element.text or "").strip() for element in ET.parse(svg).iter() if element.tag.endswith("text")}


def test_every_benchmark_has_a_picture() -> None:
    assert set(ROWS) == set(SHOWN)
    assert set(plot.PICTURES) == {*ROWS, "explore"}, "that of `explore` has rows of its own, and tests in test_explore"


@needs_matplotlib
@pytest.mark.parametrize("bench", list(ROWS))
def test_an_svg_holds_the_names_of_the_cases_as_text(bench: str, tmp_path: Path) -> None:
    plot.plot(report(bench), tmp_path / "out.svg")
    found = texts(tmp_path / "out.svg")
    assert found >= SHOWN[bench]
    assert any(text.startswith(f"kvloom bench {bench} · tiny") and "proves nothing" in text for text in found)


@needs_matplotlib
@pytest.mark.parametrize("bench", list(ROWS))
def test_a_png_is_a_picture(bench: str, tmp_path: Path) -> None:
    plot.plot(report(bench), tmp_path / "out.PNG")
    data = (tmp_path / "out.PNG").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 10_000


@needs_matplotlib
def test_equal_reports_give_equal_files(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        plot.plot(report("switch"), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@needs_matplotlib
def test_a_stored_report_is_drawn_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored, out = tmp_path / "switch.json", tmp_path / "new" / "switch.svg"
    stored.write_text(json.dumps(report("switch")), encoding="utf-8")
    assert run(["bench", "plot", str(stored), "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"bench": "switch", "file": str(out)}
    assert "reorder" in texts(out)


@needs_matplotlib
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "holds no JSON document"),
        ("[1]", "is no report of kvloom bench"),
        ('{"bench": "switch"}', "is no report of kvloom bench"),
        ('{"bench": "lunch", "rows": []}', "no picture for bench 'lunch'"),
        ('{"bench": "switch", "rows": []}', "lacks what its picture shows"),
        ('{"bench": "switch", "rows": [{"case": "off"}]}', "lacks what its picture shows"),
        ('{"bench": "codecs", "rows": []}', "lacks what its picture shows"),
        ('{"bench": "switch", "rows": [7]}', "lacks what its picture shows"),
        ('{"bench": "fidelity", "rows": [{"case": "exact", "kl_mean": 1}]}', "lacks what its picture shows"),
    ],
)
def test_what_is_no_report_is_refused(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = tmp_path / "stored.json"
    stored.write_text(content, encoding="utf-8")
    assert run(["bench", "plot", str(stored), "--out", str(tmp_path / "out.svg")]) == 1
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out.svg").exists()


def test_a_missing_report_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone\.json cannot be read: No such file"):
        plot.read_report(tmp_path / "gone.json")


def test_another_format_is_refused_before_anything_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "switch", "--plot", "out.jpeg", "--model", "/nowhere.gguf"]) == 1
    error = capsys.readouterr().err
    assert ".svg or .png" in error
    assert "nowhere" not in error


def test_without_matplotlib_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "matplotlib" else real(name, *rest)
    )
    with pytest.raises(UsageError, match=r"make bench.*kvloom\[bench\]"):
        plot.require_plot(tmp_path / "out.svg")


@needs_matplotlib
def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match="cannot be made"):
        plot.require_plot(tmp_path / "file" / "deeper" / "out.svg")

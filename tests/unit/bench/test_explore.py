"""`bench explore` on a tiny random model: the rows of every part, those chosen, the tables, the picture."""

from __future__ import annotations

import importlib.util
import io
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.bench import explore, explore_context, explore_strategies, explore_values, plot
from kvloom.bench.facts import Fact
from kvloom.bench.setting import Request
from kvloom.cli.main import run
from kvloom.errors import UsageError
from kvloom.session.values import Progress
from tests.tiny_gguf import TinyModel, write_tiny

pytest.importorskip("xllamacpp", reason="the peer is a dependency of the benchmarks only")

SMALL = replace(
    explore_values.QUICK, contexts=(512, 1024), num_facts=3, facts_window=320, text_tokens=400, num_text_facts=2,
    windows=(200,), overlaps=(0.0, 0.5), depths=(1, 2), num_questions=2, corpus_tokens=40_000,
)  # fmt: skip


def words(text: str) -> int:
    return len(text.split())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf", TinyModel(context=8192)))


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explore, "QUICK", SMALL)


def test_every_part_gives_its_rows_its_table_and_its_panels(model: str, tmp_path: Path) -> None:
    told: list[Progress] = []
    report = explore.run(Request(model, quick=True, threads=1, progress=told.append))
    rows = {row["case"]: row for row in report.document()["rows"]}
    assert list(rows) == [
        "context-512", "context-1024",
        "strategy-stop", "strategy-fifo", "strategy-sliding_window", "strategy-keep_first", "strategy-adaptive",
        "strategy-truncate-head", "strategy-truncate-tail", "strategy-truncate-middle",
        "window-200-0%", "window-200-50%",
        "depth-1", "depth-2",
    ]  # fmt: skip
    small, large = rows["context-512"], rows["context-1024"]
    assert small["forecast_mib"] < large["forecast_mib"]
    assert small["kv_mib"] < large["kv_mib"]
    for row in (small, large):
        assert 0.8 * row["window"] < row["prompt_tokens"] < row["window"]
        assert row["prefill_ms_per_token"] > 0
    assert rows["strategy-stop"]["refused"] > 0
    assert rows["strategy-stop"]["left_out"] == 0
    assert rows["strategy-fifo"]["refused"] == 0
    assert rows["strategy-fifo"]["left_out"] > 0
    for row in rows.values():
        if row["part"] == "strategies":
            assert row["context_tokens"] <= SMALL.facts_window
            assert 0 <= row["right"] <= row["facts"]
    plain, overlapping = rows["window-200-0%"], rows["window-200-50%"]
    assert plain["windows"] < overlapping["windows"]
    assert plain["read_tokens"] < overlapping["read_tokens"]
    assert 0 < rows["depth-1"]["passage_tokens"] < rows["depth-2"]["passage_tokens"]
    assert rows["depth-1"]["in_sight"] <= rows["depth-2"]["in_sight"] <= SMALL.num_questions
    measured = [step for step in told if step.task == "bench explore"]
    assert measured[-1].done == measured[-1].total == len(rows)

    out = io.StringIO()
    report.show(stream=out)
    for part in explore.PARTS:
        assert f"explore: {part}" in out.getvalue()
    assert "again: kvloom bench explore" in out.getvalue()
    assert report.setup["command"].endswith("--threads 1 --quick")
    if importlib.util.find_spec("matplotlib") is not None:
        picture = tmp_path / "explore.svg"
        plot.plot(report.document(), picture)
        text = picture.read_text(encoding="utf-8")
        for label in ("forecast", "planted facts answered", "facts found, %", "passages given"):
            assert label in text


def test_one_part_runs_alone_and_the_report_says_what_is_left_out(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words_ = ["bench", "explore", "--quick", "--threads", "1", "--repeats", "2", "--model", model, "--cases", "windows"]
    assert run(words_) == 0
    shown = capsys.readouterr()
    assert "left out of this run: context, strategies, depth." in shown.out
    assert "--cases windows" in shown.out.split("again: ")[1]
    assert "explore: context" not in shown.out
    assert "2/2] 200 tokens, overlap 50%" in shown.err


@pytest.mark.parametrize("cases", ["window", "context,speed", "", " , "])
def test_a_part_that_there_is_not_is_refused_with_those_there_are(cases: str) -> None:
    with pytest.raises(UsageError, match="choose of context, strategies, windows, depth"):
        explore.run(Request("none.gguf", quick=True), cases=cases)


def test_parts_keep_their_order_whatever_the_order_they_are_named_in() -> None:
    assert explore.chosen("depth, context") == ["context", "depth"]
    assert explore.chosen(None) == list(explore.PARTS)


def test_windows_double_up_to_the_models_own_length() -> None:
    assert explore_context.contexts(explore_values.FULL, 32_768) == [512, 1024, 2048, 4096, 8192, 16_384, 32_768]
    assert explore_context.contexts(explore_values.FULL, 10_000) == [512, 1024, 2048, 4096, 8192, 10_000]
    assert explore_context.contexts(explore_values.FULL, 2048) == [512, 1024, 2048]
    assert explore_context.contexts(explore_values.QUICK, 32_768) == list(explore_values.QUICK.contexts)


@given(num_tokens=st.integers(400, 3000), number=st.integers(1, 12))
def test_planted_facts_stand_once_each_on_a_line_of_their_own(num_tokens: int, number: int) -> None:
    text = explore_values.planted(words, num_tokens, number)
    lines = text.text.split("\n")
    assert [line for line in lines if line in {fact.text for fact in text.facts}] == [fact.text for fact in text.facts]
    assert words(text.text) <= num_tokens
    assert words(text.text) > 0.8 * num_tokens


def test_a_fact_is_found_once_however_often_it_is_told() -> None:
    wanted = [Fact("a", "a?", "1234"), Fact("b", "b?", "5678")]
    assert explore_values.num_found("1234 and again 1234", wanted) == 1


def test_more_prose_than_there_is_is_refused_with_the_numbers() -> None:
    with pytest.raises(UsageError, match="tokens of the 90,000,000"):
        explore_values.prose(words, 90_000_000)


def test_every_strategy_is_one_step() -> None:
    assert explore_strategies.num_steps(SMALL, 512) == 8
    assert explore_context.num_steps(explore_values.FULL, 32_768) == 7

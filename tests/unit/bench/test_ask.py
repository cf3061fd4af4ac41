"""Questions asked of a library, whole, on a tiny random model; and what the search finds, without a model."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from kvloom.bench import ask, retrieval
from kvloom.bench.corpus import texts
from kvloom.bench.questions import Kind, Question, questions
from kvloom.bench.reader import PROBED_ROWS, Answer, Given, Reader
from kvloom.bench.setting import Request, open_loom, settings_for
from kvloom.session.values import Progress
from kvloom.types import Fidelity
from tests.tiny_gguf import TinyModel, write_tiny

pytest.importorskip("xllamacpp", reason="the peer is a dependency of the benchmarks only")

CONTEXT = 8192
"""A tiny model has about a token for every letter."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf", TinyModel(context=CONTEXT)))


def test_ask_asks_four_ways_and_prefills_no_passage_again(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask, "QUICK", ask.Size(num_questions=3, depth=2, corpus_tokens=150_000, num_probed=1))
    monkeypatch.setattr(ask, "CONTEXT", CONTEXT)
    told: list[Progress] = []
    report = ask.run(Request(model, quick=True, progress=told.append, threads=1)).document()
    rows = {(row["case"], row["fidelity"]): row for row in report["rows"]}
    shares = ("right-to-peer", "right-to-peer-low", "kept-of-peer", "kept-of-peer-low")
    both = {(case, mode) for case in ("first-token", *shares) for mode in ("splice", "blend")}
    assert set(rows) == both | {("no-context", ""), ("cold-start", "splice"), ("disk-times-smaller", "low4")}
    for mode in ("splice", "blend"):
        first = rows["first-token", mode]
        assert first["n"] == first["peer_n"] == 3
        assert first["prefilled_chunk_tokens"] == 0
        assert first["ours_s"] > 0 and first["peer_s"] > 0 and first["paired_speedup"] > 0
        assert first["computed_tokens"] < first["prompt_tokens"] / 4
        assert first["loaded_tokens"] > first["prompt_tokens"] / 2, "nothing of it stood on the device"
        assert rows["kept-of-peer", mode]["n"] == 3
    assert rows["first-token", "blend"]["recomputed_tokens"] > 0
    cold = rows["cold-start", "splice"]
    assert cold["prefilled_chunk_tokens"] == cold["prefilled_in_all"] == 0
    assert cold["loaded_tokens"] > 0
    disk = rows["disk-times-smaller", "low4"]
    assert 0 < disk["file_bytes"] < disk["rows_bytes"]
    assert disk["kl_positions"] == PROBED_ROWS
    assert disk["kl_mean"] >= 0
    assert told[-1].done == told[-1].total == 3 * 5
    assert not [child for child in psutil.Process().children(recursive=True) if "peer_server" in child.cmdline()]


def test_a_reader_keeps_what_stays_and_puts_passages_in_the_wanted_order(model: str, tmp_path: Path) -> None:
    source = texts()[0]
    with (
        retrieval.indexed([source]) as index,
        open_loom(settings_for(Request(model, threads=1), context=CONTEXT), tmp_path) as loom,
        Reader(loom, Fidelity.SPLICE) as reader,
    ):
        first, second, third = list(index.passages())[:3]
        reader.arrange([first, second])
        reader.session.warm()
        reader.arrange([third, second])
        assert list(reader.session.manifest.chunk_ids) == [third.id, second.id]
        assert reader.session.warm().computed_tokens > 0
        reader.arrange([second, third])
        warmed = reader.session.warm()
        assert list(reader.session.manifest.chunk_ids) == [second.id, third.id]
        assert warmed.computed_tokens == 0
        before = reader.session.tokens()
        question = Question(Kind.CONSTANT, "What?", "never said by chance", source.name, 1, 1)
        answer = reader.ask(Given(question, (second, third)))
        assert isinstance(answer, Answer)
        assert not answer.is_right
        assert answer.prefilled_tokens == 0
        assert answer.edit_s <= answer.ttft_s <= answer.total_s
        assert reader.session.tokens() == before
        reader.arrange([])
        assert list(reader.session.manifest.chunk_ids) == []


def test_retrieval_with_a_model_has_a_row_with_its_vectors_beside_each(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        retrieval, "QUICK", retrieval.Size(num_questions=10, corpus_tokens=60_000, num_large_documents=2)
    )
    model = write_tiny(tmp_path / "tiny.gguf", TinyModel())
    report = retrieval.run(Request(str(model), quick=True, threads=1)).document()
    rows = {row["case"]: row for row in report["rows"]}
    plain = [case for case in rows if not case.endswith(retrieval.WITH_VECTORS) and not case.startswith("large")]
    assert {f"{case}{retrieval.WITH_VECTORS}" for case in plain} == {
        case for case in rows if case.endswith(retrieval.WITH_VECTORS)
    }
    assert all(rows[f"{case}{retrieval.WITH_VECTORS}"]["n"] == rows[case]["n"] for case in plain)
    assert report["setup"]["vectors_per_1000_s"] > 0


def test_retrieval_reports_recall_that_grows_with_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        retrieval, "QUICK", retrieval.Size(num_questions=20, corpus_tokens=150_000, num_large_documents=2)
    )
    told: list[Progress] = []
    report = retrieval.run(Request(quick=True, progress=told.append)).document()
    rows = {row["case"]: row for row in report["rows"]}
    large = {case: rows.pop(case) for case in list(rows) if case.startswith("large")}
    assert report["setup"]["num_large_passages"] == 200
    assert set(large) == {"large, plain", "large, quoted", "large, named", "large, purge"}
    assert all(row["ours_s"] > 0 for row in large.values())
    assert rows["all"]["n"] == sum(row["n"] for case, row in rows.items() if case != "all") == 20
    for row in rows.values():
        recalls = [row[f"recall_{depth}"] for depth in retrieval.DEPTHS]
        assert recalls == sorted(recalls)
        assert 0 <= recalls[0] <= recalls[-1] <= 1
    # Far above chance (8 of hundreds of passages), on the questions' own texts.
    assert rows["all"]["recall_8"] > 0.5
    assert told[-1].done == told[-1].total == 20


def test_only_questions_whose_place_lies_in_one_passage_are_asked() -> None:
    sources = texts()[:6]
    with retrieval.indexed(sources) as index:
        passages = list(index.passages())
        asked = questions(sources, 20, fits=lambda found: retrieval.answerable(found, index))
        assert {passage.document for passage in passages} == {source.name for source in sources}
    by_name = {source.name: source for source in sources}
    for question in asked:
        (held,) = [passage for passage in passages if retrieval.holds(passage, question)]
        lines = by_name[question.document].lines[question.first_line - 1 : question.last_line]
        assert all(line in held.text for line in lines)


def test_ranks_count_from_one_and_nought_says_not_found() -> None:
    sources = texts()[:3]
    with retrieval.indexed(sources) as index:
        question = questions(sources, 1, fits=lambda found: retrieval.answerable(found, index))[0]
        (right,) = [p for p in index.search(question.text, 200) if retrieval.holds(p, question)]
        others = [p for p in index.search(question.text, 200) if p.document != question.document]
    assert others, "another document has a word of the question, too"
    found = retrieval.look(question, lambda _text, _limit: [others[0], right])
    assert (found.passage_rank, found.document_rank) == (2, 2)
    missed = retrieval.look(question, lambda _text, _limit: [others[0]])
    assert (missed.passage_rank, missed.document_rank) == (0, 0)

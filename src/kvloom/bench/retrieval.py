"""`bench retrieval`: how often the passage that answers is among the first that a library's index finds.

Questions whose places are known, over real texts; no model. Knows the index and the questions only.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

from kvloom.bench.corpus import Text, corpus
from kvloom.bench.questions import Kind, Question, questions
from kvloom.bench.report import Report, Row, Sample, machine
from kvloom.bench.setting import Request
from kvloom.index import Found, LibraryIndex, StoredPassage
from kvloom.read import read
from kvloom.text.counter import estimate_tokens

DEPTHS = (1, 3, 5, 8, 20)
"""Passages looked at: 8 are what fits beside a conversation in a window of 4,096."""
SEARCH_LIMIT_S = 0.05
ALL = "all"

Search = Callable[[str, int], Sequence[Found]]


@dataclass(frozen=True)
class Size:
    """How much is asked, over how many tokens (estimated: no model is loaded)."""

    num_questions: int
    corpus_tokens: int


FULL = Size(num_questions=240, corpus_tokens=900_000)
QUICK = Size(num_questions=40, corpus_tokens=150_000)


@dataclass(frozen=True)
class Looked:
    """One question's search: the rank (from 1) of the first passage that holds the whole place, of the first one of
    its document, and the seconds. 0: not among those looked at."""

    question: Question
    passage_rank: int
    document_rank: int
    seconds: float


@contextmanager
def indexed(texts: Sequence[Text]) -> Iterator[LibraryIndex]:
    """The texts as files, read and indexed as a library is. All of it is gone at the end."""
    with tempfile.TemporaryDirectory(prefix="kvloom-library-") as name:
        folder = Path(name) / "texts"
        for text in texts:
            file = folder / text.name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text.text, encoding="utf-8", newline="")
        with LibraryIndex.open(Path(name) / "library.sqlite3") as index:
            # One by one, so that what stands at the top is named without the folder.
            index.update(read(sorted(folder.iterdir())))
            yield index


def answerable(found: Sequence[Question], index: LibraryIndex) -> list[Question]:
    """Those of which one passage holds the whole place: no search can find more than there is."""
    passages: dict[str, list[StoredPassage]] = {}
    for passage in index.passages():
        passages.setdefault(passage.document, []).append(passage)
    return [q for q in found if any(holds(passage, q) for passage in passages.get(q.document, ()))]


def holds(passage: StoredPassage, question: Question) -> bool:
    return question.is_covered(passage.document, passage.first_line, passage.last_line)


def look(question: Question, search: Search) -> Looked:
    began = time.perf_counter()
    found = search(question.text, max(DEPTHS))
    seconds = time.perf_counter() - began
    ranks = [rank for rank, passage in enumerate(found, start=1) if holds(passage, question)]
    documents = [rank for rank, passage in enumerate(found, start=1) if passage.document == question.document]
    return Looked(question, ranks[0] if ranks else 0, documents[0] if documents else 0, seconds)


def row_of(case: str, looked: Sequence[Looked]) -> Row:
    """Recall at each depth; the time of a search beside what it may take."""
    extra: dict[str, object] = {"n": len(looked)}
    for depth in DEPTHS:
        extra[f"recall_{depth}"] = mean(0 < one.passage_rank <= depth for one in looked)
    extra["document_1"] = mean(one.document_rank == 1 for one in looked)
    extra["mean_reciprocal_rank"] = mean(1 / one.passage_rank if one.passage_rank else 0.0 for one in looked)
    seconds = Sample.of(one.seconds for one in looked)
    extra["ours_max_s"] = seconds.most
    speedup = SEARCH_LIMIT_S / seconds.median
    return Row(case, "", seconds.median, "limit", SEARCH_LIMIT_S, speedup, 1.0 if case == ALL else None, extra)


def run(request: Request) -> Report:
    """Run the benchmark with `repeats` questions: some seconds for making the index, some for asking it."""
    size = QUICK if request.quick else FULL
    size = replace(size, num_questions=request.repeats or size.num_questions)
    texts = corpus(lambda text: round(estimate_tokens(text)), size.corpus_tokens)
    tell = request.teller("retrieval", size.num_questions)
    began = time.perf_counter()
    with indexed(texts) as index:
        built_s = time.perf_counter() - began
        tell.say(f"{len(texts)} texts, {index.num_passages} passages read and indexed in {built_s:.1f} s")
        asked = questions(texts, size.num_questions, fits=lambda found: answerable(found, index))
        looked = []
        for question in asked:
            one = look(question, index.search)
            looked.append(one)
            tell.step(f"{question.kind.value}: rank {one.passage_rank or 'none'} in {one.seconds * 1e3:.1f} ms")
        num_passages = index.num_passages
    rows = [row_of(ALL, looked)]
    for kind in Kind:
        of_kind = [one for one in looked if one.question.kind is kind]
        if of_kind:
            rows.append(row_of(kind.value, of_kind))
    setup = {
        "model_name": "no model",
        **machine(),
        "num_texts": len(texts),
        "num_passages": num_passages,
        "index_s": built_s,
        **request.closing("retrieval"),
    }
    columns = ("n", *(f"recall_{depth}" for depth in DEPTHS), "document_1", "mean_reciprocal_rank")
    return Report("retrieval", setup, tuple(rows), columns=columns, notes=NOTES)


NOTES = (
    "recall at k: the share of the questions for which one of the first k passages holds the whole place of the "
    "answer; document_1: the first passage is of the right document, whatever its place in it.",
    "ours: seconds of a search in a library of so many passages; the peer's column is the limit of 50 ms.",
)

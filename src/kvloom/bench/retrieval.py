"""`bench retrieval`: how often the passage that answers is among the first that a library's index finds.

Questions whose places are known, over real texts; no model, unless one is named: then by its vectors, too. Knows the
index and the questions only.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

from kvloom.bench import large_library
from kvloom.bench.corpus import Text, corpus
from kvloom.bench.large_library import SEARCH_LIMIT_S
from kvloom.bench.questions import Kind, Question, questions
from kvloom.bench.report import Report, Row, Sample, machine
from kvloom.bench.setting import Request, open_loom, own_home, settings_for
from kvloom.bench.teller import Teller
from kvloom.errors import UsageError
from kvloom.index import Found, LibraryIndex, StoredPassage, Vectors
from kvloom.read import read
from kvloom.session.embedders import MODEL
from kvloom.text.counter import estimate_tokens

DEPTHS = (1, 2, 4, 8)
"""Passages looked at: 2 are what a question gets by default."""
ALL = "all"
WITH_VECTORS = " + vectors"

Search = Callable[[str, int], Sequence[Found]]


@dataclass(frozen=True)
class Size:
    """How much is asked, over how many tokens (estimated: no model is loaded).

    `num_large_documents`: documents of 100 passages each in the library that is only timed.
    """

    num_questions: int
    corpus_tokens: int
    num_large_documents: int


FULL = Size(num_questions=240, corpus_tokens=900_000, num_large_documents=1000)
QUICK = Size(num_questions=40, corpus_tokens=150_000, num_large_documents=10)


@dataclass(frozen=True)
class Looked:
    """One question's search: the rank (from 1) of the first passage that holds the whole place, of the first one of
    its document, and the seconds. 0: not among those looked at."""

    question: Question
    passage_rank: int
    document_rank: int
    seconds: float


@contextmanager
def indexed(texts: Iterable[Text]) -> Iterator[LibraryIndex]:
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


def rows_of(looked: Sequence[Looked]) -> list[Row]:
    """All of them, and each kind."""
    kinds = ((kind, [one for one in looked if one.question.kind is kind]) for kind in Kind)
    return [row_of(ALL, looked), *(row_of(kind.value, of_kind) for kind, of_kind in kinds if of_kind)]


def in_large(num_documents: int, tell: Teller) -> tuple[list[Row], dict[str, object]]:
    """The rows of a library that is so large, and what it was."""
    words = large_library.Words()
    began = time.perf_counter()
    with indexed(large_library.texts(words, num_documents)) as index:
        built_s, number = time.perf_counter() - began, index.num_passages
        tell.say(f"{number} passages of random words written, read and indexed in {built_s:.1f} s")
        return large_library.rows(words, index), {"num_large_passages": number, "large_index_s": built_s}


@dataclass(frozen=True)
class ByVectors:
    """The same questions with a model's vectors beside the words, and what these took."""

    looked: list[Looked]
    setup: dict[str, object]


def by_vectors(request: Request, tell: Teller, index: LibraryIndex, asked: Sequence[Question]) -> ByVectors:
    """Raises UsageError where the model has no vectors to give."""
    settings = settings_for(request, recall={"vectors": MODEL})
    with own_home() as home, open_loom(settings, home, tell) as loom:
        began = time.perf_counter()
        embedder = loom.embedders.get()
        if embedder is None:
            raise UsageError(f"{loom.model_name} is no file here: its token table cannot be read")
        made_s = time.perf_counter() - began
        vectors = Vectors(embedder)
        began = time.perf_counter()
        vectors.update(index)
        filled_s = time.perf_counter() - began
        tell.say(f"vectors of {index.num_passages} passages in {filled_s:.1f} s")
        looked = [look(question, lambda text, limit: index.search(text, limit, vectors)) for question in asked]
        per_thousand_s = filled_s / max(1, index.num_passages) * 1000
        setup = {"model_name": loom.model_name, "embedder_s": made_s, "vectors_per_1000_s": per_thousand_s}
        return ByVectors(looked, setup)


def run(request: Request) -> Report:
    """Run the benchmark with `repeats` questions: some seconds for making the index, some for asking it, and
    a minute or two for a large one."""
    size = QUICK if request.quick else FULL
    size = replace(size, num_questions=request.repeats or size.num_questions)
    texts = corpus(lambda text: round(estimate_tokens(text)), size.corpus_tokens)
    tell = request.teller("retrieval", size.num_questions)
    model: dict[str, object] = {"model_name": "no model"}
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
        rows = rows_of(looked)
        if request.model is not None:
            near = by_vectors(request, tell, index, asked)
            rows += [replace(row, case=f"{row.case}{WITH_VECTORS}") for row in rows_of(near.looked)]
            model = near.setup
    large, large_setup = in_large(size.num_large_documents, tell)
    rows += large
    setup = {
        **model,
        **machine(),
        "num_texts": len(texts),
        "num_passages": num_passages,
        "index_s": built_s,
        **large_setup,
        **request.closing("retrieval"),
    }
    columns = ("n", *(f"recall_{depth}" for depth in DEPTHS), "document_1", "mean_reciprocal_rank")
    return Report("retrieval", setup, tuple(rows), columns=columns, notes=NOTES)


NOTES = (
    "recall at k: the share of the questions for which one of the first k passages holds the whole place of the "
    "answer; document_1: the first passage is of the right document, whatever its place in it.",
    "+ vectors: the same questions with the vectors of the model's token table beside the words (--model).",
    "ours: seconds of a search in a library of so many passages; the peer's column is the limit of 50 ms.",
    "large: searches of a library of 100,000 passages of random words (--quick: 1,000); purge: one of them taken out, "
    "and no byte of it left in the files.",
)

"""`bench explore`, depth: how many passages of a library are given with a question, and what that buys.

The passages are what the library's index finds; their KV is stored before they are asked. Knows the façade only.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from kvloom.bench.corpus import corpus
from kvloom.bench.explore_values import Size, Stage
from kvloom.bench.questions import questions
from kvloom.bench.reader import Answer, Given, Reader
from kvloom.bench.report import Row
from kvloom.bench.retrieval import answerable, holds, indexed
from kvloom.bench.setting import open_loom, settings_for
from kvloom.index import PASSAGE_SIZES
from kvloom.types import Fidelity

if TYPE_CHECKING:
    from kvloom.session.loom import Loom

BESIDE_TOKENS = 512
COLUMNS = ("right", "in_sight", "questions", "passage_tokens", "first_token_s", "prefill_first_time_s")


def num_steps(size: Size, _train_context: int) -> int:
    return len(size.depths)


def rows(stage: Stage) -> list[Row]:
    size = stage.size
    context = max(size.depths) * PASSAGE_SIZES.whole_tokens + BESIDE_TOKENS
    settings = settings_for(
        stage.request, context=context, reserve_tokens=BESIDE_TOKENS // 4, fidelity="splice", guard={"enabled": False}
    )
    with open_loom(settings, stage.home, stage.tell) as loom:
        given = _given(size, loom)
        most = max(sum(loom.count(passage.text) for passage in one.passages) for one in given)
        # The index counts by estimate: another tokenizer may need more.
        loom.ensure_window(max(context, most + BESIDE_TOKENS))
        return [_row(stage, loom, given, depth) for depth in size.depths]


def _given(size: Size, loom: Loom) -> list[Given]:
    """Every question with the most passages, the best last."""
    texts = corpus(loom.count, size.corpus_tokens)
    with indexed(texts) as index:
        asked = questions(texts, size.num_questions, fits=lambda found: answerable(found, index))
        return [Given(q, tuple(reversed(index.search(q.text, max(size.depths))))) for q in asked]


def _row(stage: Stage, loom: Loom, given: Sequence[Given], depth: int) -> Row:
    cut = [Given(one.question, one.passages[-depth:]) for one in given]
    computing_s, computed = 0.0, 0
    answers: list[Answer] = []
    with Reader(loom, Fidelity.SPLICE) as reader:
        reader.session.resize(min(loom.pool.window, loom.engine.train_context))
        for one in cut:
            reader.arrange(one.passages)
            warmed = reader.session.warm()
            computing_s, computed = computing_s + warmed.seconds, computed + warmed.computed_tokens
            answers += [reader.ask(one) for _ in range(stage.size.repeats)]
    rate = computing_s / computed if computed else None
    num_tokens = median(answer.chunk_tokens for answer in answers)
    right = sum(answer.is_right for answer in answers) // stage.size.repeats
    extra = {
        "part": "depth",
        "depth": depth,
        "right": right,
        "in_sight": sum(any(holds(passage, one.question) for passage in one.passages) for one in cut),
        "questions": len(cut),
        "passage_tokens": num_tokens,
        "first_token_s": median(answer.ttft_s for answer in answers),
        "prefill_first_time_s": None if rate is None else rate * num_tokens,
    }
    seconds = median(answer.total_s for answer in answers)
    stage.tell.step(f"{depth} passages: {right} of {len(cut)} right, {seconds:.2f} s")
    return Row(f"depth-{depth}", Fidelity.SPLICE.value, seconds, extra=extra)

"""What the parts of `bench explore` share: how much is measured, who is told, and the texts with facts in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvloom.bench.corpus import reference
from kvloom.bench.facts import Fact, facts
from kvloom.bench.setting import Request
from kvloom.bench.teller import Teller
from kvloom.errors import UsageError
from kvloom.reduce.truncate import truncate

Count = Callable[[str], int]


@dataclass(frozen=True)
class Size:
    """How much is measured. Sizes are in tokens.

    `contexts`: windows that are opened and filled, doubled up to the model's own length where `is_to_model_end`.
    `facts_window`: what the strategies have for `num_facts` facts. `text_tokens` with `num_text_facts` facts are read
    by windows of `windows` with each of `overlaps`. `depths`: passages given with each of `num_questions`.
    """

    contexts: tuple[int, ...]
    is_to_model_end: bool
    num_facts: int
    facts_window: int
    text_tokens: int
    num_text_facts: int
    windows: tuple[int, ...]
    overlaps: tuple[float, ...]
    depths: tuple[int, ...]
    num_questions: int
    corpus_tokens: int
    repeats: int = 1


FULL = Size(
    contexts=(512, 1024, 2048, 4096), is_to_model_end=True, num_facts=24, facts_window=768, text_tokens=8192,
    num_text_facts=12, windows=(1024, 2048, 4096), overlaps=(0.0, 0.25, 0.5, 0.75), depths=(1, 2, 4, 8),
    num_questions=24, corpus_tokens=300_000,
)  # fmt: skip
QUICK = Size(
    contexts=(512, 1024), is_to_model_end=False, num_facts=3, facts_window=192, text_tokens=512, num_text_facts=3,
    windows=(256,), overlaps=(0.0, 0.5), depths=(1, 2), num_questions=2, corpus_tokens=40_000,
)  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """What every part is given: what was asked for, how much, a home of the run's own, and whom to tell."""

    request: Request
    size: Size
    home: Path
    tell: Teller


def prose(count: Count, num_tokens: int) -> str:
    """The beginning of the language's reference, `num_tokens` long. Raises UsageError where there is less of it."""
    text, total = "", 0
    for topic in reference():
        text += topic.text + "\n"
        total += count(topic.text)
        if total >= num_tokens:
            return truncate(text, num_tokens, count, marker="").text
    raise UsageError(f"this Python's reference has {total:,} tokens of the {num_tokens:,} that are to be read")


@dataclass(frozen=True)
class Planted:
    """A text with facts in it, each on a line of its own."""

    text: str
    facts: tuple[Fact, ...]


def planted(count: Count, num_tokens: int, number: int) -> Planted:
    """`number` facts at even distances in real prose of `num_tokens`."""
    found = facts(number)
    lines = prose(count, num_tokens - sum(count(fact.text) for fact in found)).split("\n")
    for place, fact in reversed(list(enumerate(found))):
        lines.insert(round((place + 0.5) * len(lines) / number), fact.text)
    return Planted("\n".join(lines), tuple(found))


def num_found(reply: str, wanted: Sequence[Fact]) -> int:
    return sum(fact.is_in(reply) for fact in wanted)

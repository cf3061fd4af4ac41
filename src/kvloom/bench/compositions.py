"""Which documents `bench switch` has in the context, and in which order, case by case. Seeded; no question is repeated.

Pure: knows numbers of documents, no texts and no engine.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations
from typing import Protocol

from kvloom.errors import UsageError

FULL_PREFILL = "full-prefill"
CASES = (FULL_PREFILL, "off", "on-seen", "subset-in-order", "insert-front", "reorder", "subset-unseen")
"""In the order in which a run measures them."""

SPREAD = 3
"""From repeat to repeat the document that is switched off lies this many places further on."""

Composition = tuple[int, ...]


class Asker(Protocol):
    """Gives a new question each time."""

    def next(self) -> str: ...


@dataclass(frozen=True)
class Step:
    """Bring the context to `target` (documents in order) and ask. Unmeasured steps set a case up."""

    case: str
    target: Composition
    question: str
    is_measured: bool = True


Chain = tuple[Step, ...]
"""Steps that follow one another. Every chain begins with all documents in their first order, on both sides."""


class Compositions:
    """Draws what each repeat asks. What is measured as unseen was not asked before in the run, `on-seen` was."""

    def __init__(self, num_documents: int, subset: int) -> None:
        self.whole: Composition = tuple(range(num_documents))
        self._subset = subset
        # In the order in which they are asked; a dictionary for its keys.
        self._seen: dict[Composition, None] = {self.whole: None}

    def repeat(self, number: int, questions: Asker) -> list[Chain]:
        """All cases but `full-prefill`. Raises UsageError where every composition of a case was asked already."""
        draw = random.Random(f"kvloom-switch:{number}")
        whole = self.whole
        spread = [whole[(number * SPREAD + index) % len(whole)] for index in whole]
        off = self._take("off", (_without(whole, out) for out in spread))
        # The first five of eight are a plain prefix: nothing would be deleted in front of anything.
        in_order = [some for some in combinations(whole, self._subset) if some != whole[: self._subset]]
        in_order_chosen = self._take("subset-in-order", draw.sample(in_order, len(in_order)))
        # Never the first in front: that is the whole as it was. The seven before it are asked, too.
        lates = [late for late in reversed(whole[1:]) if _without(whole, late) not in self._seen]
        inserted = self._take("insert-front", ((late, *_without(whole, late)) for late in lates))
        self._seen[inserted[1:]] = None
        orders = list(permutations(whole))
        reordered = self._take("reorder", draw.sample(orders, len(orders)))
        subsets = list(permutations(whole, self._subset))
        shuffled = (some for some in draw.sample(subsets, len(subsets)) if not self._is_within_seen(some))
        unseen = self._take("subset-unseen", shuffled)
        return [
            (Step("off", off, questions.next()), Step("on-seen", whole, questions.next())),
            (Step("subset-in-order", in_order_chosen, questions.next()),),
            (
                Step("insert-front", inserted[1:], questions.next(), is_measured=False),
                Step("insert-front", inserted, questions.next()),
            ),
            (Step("reorder", reordered, questions.next()),),
            (Step("subset-unseen", unseen, questions.next()),),
        ]

    def _take(self, case: str, candidates: Iterable[Composition]) -> Composition:
        """The first that was not asked before."""
        for candidate in candidates:
            if candidate not in self._seen:
                self._seen[candidate] = None
                return candidate
        raise UsageError(
            f"{case}: all compositions of {len(self.whole)} documents were asked in earlier repeats, and each repeat "
            "needs one of its own; take fewer --repeats"
        )

    def _is_within_seen(self, some: Composition) -> bool:
        return any(is_subsequence(some, seen) for seen in self._seen)


def is_subsequence(short: Sequence[int], long: Sequence[int]) -> bool:
    """Whether `short` is `long` with some left out."""
    rest = iter(long)
    return all(index in rest for index in short)


def keep_cases(chains: Iterable[Chain], cases: Sequence[str]) -> list[Chain]:
    """The chains that measure one of `cases`, up to the last one; the others of their steps only set it up."""
    kept = []
    for chain in chains:
        steps = [replace(step, is_measured=step.is_measured and step.case in cases) for step in chain]
        while steps and not steps[-1].is_measured:
            steps.pop()
        if steps:
            kept.append(tuple(steps))
    return kept


def _without(whole: Composition, out: int) -> Composition:
    return tuple(index for index in whole if index != out)

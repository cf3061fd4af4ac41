"""What `bench retrieval` measures in a library of 100,000 passages: a search, and a purge. Random words, no model.

Knows the index only.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from itertools import accumulate
from string import ascii_lowercase

from kvloom.bench.corpus import Text
from kvloom.bench.report import Row, compare
from kvloom.index import LibraryIndex

PARAGRAPHS, PARAGRAPH_WORDS = 100, 300
"""Of each document. A paragraph is long enough to be a passage of its own."""
NUM_WORDS = 30_000
QUESTION_WORDS = 6
NUM_SEARCHES = 50
DEPTH = 6
"""What a question with two passages looks at."""
SEARCH_LIMIT_S = 0.05


class Words:
    """Made-up words, as frequent as their rank says, as in any language (Zipf). Seeded."""

    def __init__(self) -> None:
        self._draw = random.Random("kvloom-large")
        self._words = [
            "".join(self._draw.choices(ascii_lowercase, k=self._draw.randint(3, 9))) for _ in range(NUM_WORDS)
        ]
        self._weights = list(accumulate(1 / rank for rank in range(1, NUM_WORDS + 1)))

    def some(self, number: int) -> str:
        return " ".join(self._draw.choices(self._words, cum_weights=self._weights, k=number))

    def below(self, number: int) -> int:
        return self._draw.randrange(number)


def texts(words: Words, number: int) -> Iterator[Text]:
    """`number` documents, `document-0.md` and so on."""
    for place in range(number):
        paragraphs = (f"{words.some(PARAGRAPH_WORDS).capitalize()}." for _ in range(PARAGRAPHS))
        yield Text(f"document-{place}.md", "\n\n".join(paragraphs))


def rows(words: Words, index: LibraryIndex) -> list[Row]:
    """A search by plain words, one that quotes a name, one that names a document; and a purge of one passage."""

    def plain() -> str:
        return f"What does {words.some(QUESTION_WORDS)} say?"

    def quoted() -> str:
        return f"What is the value of `{words.some(1)}` in {words.some(QUESTION_WORDS)}?"

    def named() -> str:
        return f"In document-{words.below(index.num_documents)}.md, {plain()}"

    cases = {"plain": plain, "quoted": quoted, "named": named}
    return [*(_search(case, ask, index) for case, ask in cases.items()), _purge(index)]


def _search(case: str, ask: Callable[[], str], index: LibraryIndex) -> Row:
    seconds = []
    for _ in range(NUM_SEARCHES):
        question = ask()
        began = time.perf_counter()
        index.search(question, DEPTH)
        seconds.append(time.perf_counter() - began)
    return compare(f"large, {case}", "", seconds, ("limit", [SEARCH_LIMIT_S]), 1.0)


def _purge(index: LibraryIndex) -> Row:
    """What no file may hold any more has the whole index of words written anew."""
    first = next(iter(index.passages()))
    began = time.perf_counter()
    index.forget(first.id)
    return Row("large, purge", "", time.perf_counter() - began)

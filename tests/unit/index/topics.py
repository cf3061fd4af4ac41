"""An embedder for tests: it knows some topics by their words, and counts what it was given."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kvloom.errors import UsageError
from kvloom.index import Embedder
from kvloom.types import F32Array

GOODS = (("car", "automobile", "engine"), ("bread", "flour", "oven"), ("sea", "ocean", "wave"))


class Topics(Embedder):
    """Texts of one topic are near to each other, whichever of its words they use; `fails` makes it raise."""

    least_similarity = 0.9

    def __init__(self, name: str = "topics", topics: Sequence[Sequence[str]] = GOODS) -> None:
        self.name = name
        self.num_texts = 0
        self.fails = False
        self._topics = topics

    def embed(self, texts: Sequence[str]) -> F32Array:
        self.num_texts += len(texts)
        return self._rows(texts)

    def embed_question(self, question: str, words: Sequence[tuple[str, float]]) -> F32Array:
        row: F32Array = self._rows([question])[0]
        return row

    def _rows(self, texts: Sequence[str]) -> F32Array:
        if self.fails:
            raise UsageError("the embedder has no batteries")
        rows = [[0.1 + sum(word in text.lower() for word in topic) for topic in self._topics] for text in texts]
        return np.array(rows, np.float32) * 7

"""Vectors of passages, by an embedder that the caller has, beside the words' index; both in one order.

Knows no model: an embedder turns texts into numbers, and its name says which of them belong together.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from kvloom.errors import UsageError
from kvloom.index.file import IndexFile
from kvloom.index.values import Found, Progress
from kvloom.types import ChunkId, F32Array

if TYPE_CHECKING:
    from kvloom.index.store import LibraryIndex

_BATCH = 64
"""Texts embedded and written together: what a stopped run loses at most."""
NEAR_WEIGHT = 0.2
"""What the nearest passage gains beside what the one with the most words has. Measured with a token table: by
reciprocal rank, half of the order each, recall at 4 fell from 0.73 to 0.66; with 0.2 it does not fall."""


class Embedder(ABC):
    """`name` must change when the vectors do. Rows need no certain length."""

    name: str
    least_similarity: float = math.inf
    """The cosine from which a passage is a find that has no word of the question; without one, vectors only order."""

    @abstractmethod
    def embed(self, texts: Sequence[str]) -> F32Array:
        """Passages to rows, (len(texts), dimensions)."""

    @abstractmethod
    def embed_question(self, question: str, words: Sequence[tuple[str, float]]) -> F32Array:
        """A question to one row. `words`: those that are looked for, each with its weight in this library."""


@dataclass(frozen=True)
class Near:
    """How near every passage with a vector is to one question: cosines in the order of the sorted keys."""

    keys: Sequence[bytes]
    cosines: F32Array
    least_similarity: float = math.inf

    def first(self, limit: int) -> list[bytes]:
        """The nearest ones that are finds by themselves, at most `limit`."""
        (finds,) = np.nonzero(self.cosines >= self.least_similarity)
        ordered = sorted(finds.tolist(), key=lambda i: (-float(self.cosines[i]), i))
        return [self.keys[i] for i in ordered[:limit]]

    def similarity(self, chunk: ChunkId) -> float | None:
        """The cosine; None for a passage that has no vector yet."""
        key = bytes.fromhex(chunk)
        at = bisect_left(self.keys, key)
        return float(self.cosines[at]) if at < len(self.keys) and self.keys[at] == key else None


class Vectors:
    """The vectors of one library by one embedder. Thread-safe.

    Stored as f16, held as f32 once searched: 100,000 passages of 256 dimensions take 100 MB. Read from disk for each
    question, they would take 20 times as long as they take to be compared.
    """

    def __init__(self, embedder: Embedder) -> None:
        self.name = embedder.name
        self._embedder = embedder
        self._lock = threading.Lock()
        self._held: tuple[object, list[bytes], F32Array] | None = None
        self._filled_at: tuple[int, int] | None = None

    def num_missing(self, index: LibraryIndex) -> int:
        """Passages that have no vector yet."""
        (number,) = index._file.row(
            "SELECT count(DISTINCT id) FROM passages p WHERE NOT EXISTS "
            "(SELECT 1 FROM vectors v WHERE v.embedder = ? AND v.id = p.id)",
            (self.name,),
        )
        return int(number)

    def update(
        self,
        index: LibraryIndex,
        progress: Callable[[Progress], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> bool:
        """Embeds the passages that have no vector yet. False if stopped; the next goes on behind it.

        Those of passages that leave the index leave with them.
        """
        file = index._file
        version = file.version_of_data()
        if version == self._filled_at:
            return True
        num_done, last = 0, b""
        while True:
            # By id, so that every passage is looked at once, however many have their vectors.
            rows = file.rows(
                "SELECT id, text FROM passages p WHERE id > ? AND NOT EXISTS "
                "(SELECT 1 FROM vectors v WHERE v.embedder = ? AND v.id = p.id) GROUP BY id ORDER BY id LIMIT ?",
                (last, self.name, _BATCH),
            )
            if not rows:
                break
            if is_cancelled is not None and is_cancelled():
                return False
            vectors = self._unit([text for _, text in rows])
            with file.transaction():
                file.execute_many(  # not where the passage has left meanwhile: nothing of it may stay
                    "INSERT OR REPLACE INTO vectors SELECT ?1, ?2, ?3 WHERE EXISTS "
                    "(SELECT 1 FROM passages WHERE id = ?2)",
                    [
                        (self.name, key, row.astype("<f2").tobytes())
                        for (key, _), row in zip(rows, vectors, strict=True)
                    ],
                )
            num_done, last = num_done + len(rows), rows[-1][0]
            if progress is not None:
                progress(Progress(self.name, num_done, num_done))
        if not num_done:  # else our own writes are in the version: the next look is a short one
            self._filled_at = version
        return True

    def near(self, file: IndexFile, question: str, words: Sequence[tuple[str, float]]) -> Near:
        """How near the passages are to a question; a blank question is near to none."""
        keys, matrix = self._loaded(file) if question.strip() else ([], _NOTHING)
        if not keys:
            return Near([], np.empty(0, np.float32))
        asked = np.asarray(self._embedder.embed_question(question, words), np.float32).reshape(-1)
        if asked.shape[0] != matrix.shape[1]:
            raise UsageError(
                f"the embedder {self.name} gives {asked.shape[0]} dimensions, its stored vectors have "
                f"{matrix.shape[1]}: give another embedder another name"
            )
        return Near(keys, matrix @ _normed(asked[None])[0], self._embedder.least_similarity)

    def _loaded(self, file: IndexFile) -> tuple[list[bytes], F32Array]:
        version = (file.path, file.version_of_data())
        with self._lock:
            if self._held is None or self._held[0] != version:
                rows = file.rows("SELECT id, vector FROM vectors WHERE embedder = ? ORDER BY id", (self.name,))
                if len({len(vector) for _, vector in rows}) > 1:
                    raise file.damaged(f"vectors of {self.name} differ in length")
                data = b"".join(vector for _, vector in rows)
                matrix = np.frombuffer(data, "<f2").astype(np.float32).reshape(len(rows), -1) if rows else _NOTHING
                self._held = (version, [key for key, _ in rows], _finite(matrix))
            return self._held[1], self._held[2]

    def _unit(self, texts: Sequence[str]) -> F32Array:
        rows = np.asarray(self._embedder.embed(texts), dtype=np.float32)
        if rows.ndim != 2 or rows.shape[0] != len(texts):
            raise UsageError(f"the embedder {self.name} gave an array of {rows.shape} for {len(texts)} texts")
        return _normed(rows)


_NOTHING: F32Array = np.empty((0, 0), np.float32)


def _finite(rows: F32Array) -> F32Array:
    """A row with NaN or infinity in it says nothing, and would make every score NaN: zeros stand for it."""
    is_sound = np.isfinite(rows).all(axis=1, keepdims=True)
    return rows if is_sound.all() else np.where(is_sound, rows, np.float32(0))


def _normed(rows: F32Array) -> F32Array:
    """Rows of length 1, or of zeros."""
    rows = _finite(rows)
    with np.errstate(over="ignore"):  # of numbers near the largest that there are: zeros, too
        unit: F32Array = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit


def fused(scored: Sequence[Found], near: Near, limit: int, discount: Callable[[Found], float]) -> list[Found]:
    """Passages by their words, and by how far their vectors stand out of the library's; scores stay 0 … 1.

    What the nearest one has over the usual one is `NEAR_WEIGHT` of what the best by words has; vectors below the usual
    take nothing away. `discount`: what a passage's part by vectors is multiplied by.
    """
    if not near.keys:
        return list(scored[:limit])
    usual = float(np.median(near.cosines))
    reach = max(float(near.cosines.max()) - usual, 1e-6)
    most = max((passage.score for passage in scored), default=0.0) or 1.0
    found: list[tuple[float, float | None, bool, Found]] = []
    for passage in scored:
        similarity = near.similarity(passage.id)
        gain = 0.0 if similarity is None else NEAR_WEIGHT * max(0.0, similarity - usual) / reach * discount(passage)
        is_near = similarity is not None and similarity >= near.least_similarity
        if passage.words or is_near:
            found.append(((passage.score + most * gain) / (1 + NEAR_WEIGHT), similarity, is_near, passage))
    found.sort(key=lambda one: -one[0])
    return [
        replace(passage, score=score, similarity=similarity, is_near=is_near)
        for score, similarity, is_near, passage in found[:limit]
    ]

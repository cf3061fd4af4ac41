"""Vectors of passages, by an embedder that the caller has, beside the words' index; fused by reciprocal rank.

Knows no model: an embedder is a function, and its name says which vectors belong together.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from kvloom.errors import UsageError
from kvloom.index.file import IndexFile
from kvloom.index.values import Found, Progress
from kvloom.types import ChunkId, F32Array

if TYPE_CHECKING:
    from kvloom.index.store import LibraryIndex

Embed = Callable[[Sequence[str]], F32Array]
"""Texts to rows, (len(texts), dimensions) f32; rows need no certain length."""

_BATCH = 64
"""Texts embedded and written together: what a stopped run loses at most."""
_RANK_OFFSET = 60
"""Of reciprocal rank fusion (Cormack, Clarke and Büttcher 2009): the first places do not outweigh all others."""


class Vectors:
    """The vectors of one embedder. `name` must change when the embedder's vectors do. Thread-safe.

    Stored as f16, held as f32 once searched: 100,000 passages of 256 dimensions take 100 MB.
    """

    def __init__(self, name: str, embed: Embed) -> None:
        self.name = name
        self._embed = embed
        self._lock = threading.Lock()
        self._held: tuple[object, list[bytes], F32Array] | None = None

    def update(
        self,
        index: LibraryIndex,
        progress: Callable[[Progress], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> bool:
        """Embeds the passages that have no vector yet, and forgets those of passages that left. False if stopped."""
        file = index._file
        file.execute("DELETE FROM vectors WHERE embedder = ? AND id NOT IN (SELECT id FROM passages)", (self.name,))
        num_done = 0
        while True:
            if is_cancelled is not None and is_cancelled():
                return False
            rows = file.rows(
                "SELECT id, text FROM passages p WHERE NOT EXISTS "
                "(SELECT 1 FROM vectors v WHERE v.embedder = ? AND v.id = p.id) GROUP BY id LIMIT ?",
                (self.name, _BATCH),
            )
            if not rows:
                return True
            vectors = self._unit([text for _, text in rows])
            with file.transaction():
                file.execute_many(
                    "INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)",
                    [
                        (self.name, key, row.astype("<f2").tobytes())
                        for (key, _), row in zip(rows, vectors, strict=True)
                    ],
                )
            num_done += len(rows)
            if progress is not None:
                progress(Progress(self.name, num_done, num_done))

    def search(self, file: IndexFile, question: str, limit: int) -> list[tuple[ChunkId, float]]:
        """The passages nearest to a question, with the cosine, nearest first; none for a blank question."""
        if not question.strip():
            return []
        keys, matrix = self._loaded(file)
        if not keys:
            return []
        (asked,) = self._unit([question])
        if asked.shape[0] != matrix.shape[1]:
            raise UsageError(
                f"the embedder {self.name} gives {asked.shape[0]} dimensions, its stored vectors have "
                f"{matrix.shape[1]}: give another embedder another name"
            )
        near = matrix @ asked
        best = np.argpartition(-near, min(limit, len(keys)) - 1)[:limit]
        ordered = sorted(best.tolist(), key=lambda i: (-float(near[i]), i))
        return [(ChunkId(keys[i].hex()), float(near[i])) for i in ordered]

    def _loaded(self, file: IndexFile) -> tuple[list[bytes], F32Array]:
        version = (file.path, file.version_of_data())
        with self._lock:
            if self._held is None or self._held[0] != version:
                rows = file.rows("SELECT id, vector FROM vectors WHERE embedder = ? ORDER BY id", (self.name,))
                if len({len(vector) for _, vector in rows}) > 1:
                    raise file.damaged(f"vectors of {self.name} differ in length")
                data = b"".join(vector for _, vector in rows)
                matrix = np.frombuffer(data, "<f2").astype(np.float32).reshape(len(rows), -1) if rows else _NOTHING
                self._held = (version, [key for key, _ in rows], matrix)
            return self._held[1], self._held[2]

    def _unit(self, texts: Sequence[str]) -> F32Array:
        rows = np.asarray(self._embed(texts), dtype=np.float32)
        if rows.ndim != 2 or rows.shape[0] != len(texts):
            raise UsageError(f"the embedder {self.name} gave an array of {rows.shape} for {len(texts)} texts")
        unit: F32Array = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        return unit


_NOTHING: F32Array = np.empty((0, 0), np.float32)


def fused(by_words: Sequence[Found], near: Sequence[tuple[ChunkId, float]], limit: int) -> list[Found]:
    """Both orders in one by reciprocal rank; a score of 1 is first in both. `by_words` holds every text of `near`."""
    similarity = dict(near)
    scores = {chunk: 1 / (_RANK_OFFSET + rank) for rank, (chunk, _) in enumerate(near, start=1)}
    with_words = (passage for passage in by_words if passage.words)
    for rank, passage in enumerate(with_words, start=1):
        scores[passage.id] = scores.get(passage.id, 0.0) + 1 / (_RANK_OFFSET + rank)
    most = 2 / (_RANK_OFFSET + 1)
    found = [
        replace(passage, score=scores[passage.id] / most, similarity=similarity.get(passage.id))
        for passage in by_words
        if passage.id in scores
    ]
    return sorted(found, key=lambda passage: -passage.score)[:limit]

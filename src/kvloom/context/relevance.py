"""How much texts have to do with a question: BM25 over an index in memory (SQLite's FTS5, words stemmed).

Knows no manifest and no model. Nothing is written to disk.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Mapping

from kvloom.text.words import TOKENIZER, spaced, words

HALF_SCORE = 2.0
"""The BM25 score that counts as a relevance of 0.5: about one rare word in common."""
MAX_TEXT_CHARS = 200_000
"""Of a longer text the start is indexed: enough to tell what it is about."""


class RelevanceIndex:
    """Texts by key. Safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys: dict[str, int] = {}
        self._db = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        self._db.execute(f"CREATE VIRTUAL TABLE texts USING fts5(body, tokenize = '{TOKENIZER}')")

    def add(self, key: str, text: Callable[[], str]) -> None:
        """Index a text once, asked for only then; texts under a key never change."""
        with self._lock:
            if key in self._keys:
                return
            row = self._db.execute("INSERT INTO texts (body) VALUES (?)", (spaced(text()[:MAX_TEXT_CHARS]),))
            self._keys[key] = row.lastrowid or 0

    def scores(self, question: str) -> Mapping[str, float]:
        """The relevance of each text that has a word in common with the question, 0 … 1."""
        asked = words(question)
        if not asked:
            return {}
        query = " OR ".join(f'"{word}"' for word in asked)
        with self._lock:
            rows = dict(self._db.execute("SELECT rowid, -bm25(texts) FROM texts WHERE texts MATCH ?", (query,)))
            found = {key: max(0.0, rows[number]) for key, number in self._keys.items() if number in rows}
        return {key: score / (score + HALF_SCORE) for key, score in found.items()}

    def close(self) -> None:
        """Idempotent."""
        with self._lock:
            self._db.close()

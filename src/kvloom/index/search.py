"""Finds passages: SQLite's index gives candidates by a question's rare words, and those are scored. Writes nothing."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from kvloom.chunk.content import content_id
from kvloom.errors import UsageError
from kvloom.index.file import IndexFile, Row, Value
from kvloom.index.question import Asked, Query, Terms, Word, file_names, weight, without_file_names
from kvloom.index.values import Found
from kvloom.index.vectors import Vectors, fused
from kvloom.text.definitions import defined_in, defined_names_in
from kvloom.types import ChunkId

_MAX_MARKED_ROWS = 50_000
"""Rows that are looked at for which words they hold, 0.1 µs each: of the rarest words, others while there is room."""
_MAX_RANKED_ROWS = 5_000
"""Rows that SQLite ranks by how often they hold them, 2 µs each; one word alone may take twice as many."""
_NUM_CANDIDATES = 40
_PER_FOUND = 3
"""Candidates by either way, and for each passage that is wanted: both orders are near the last one, not the same."""
_NOT_NAMED = 0.5
"""What a passage's score is multiplied by where the question names documents, and not the passage's."""
_NOT_DEFINING = 0.5
"""… where the question writes names, and the passage does not say what one of them is: many use what one defines."""
_OPENING_COVERAGE = 0.5
"""Of the first passages of a named document that has none of the question's other words: see `Found`."""
_MAX_NAMED = 20
_MAX_VALUES = 500
"""In one statement; older builds of SQLite take 999."""
_MAX_CACHED_TERMS = 10_000


class Search:
    """The searching half of an index. Thread-safe."""

    def __init__(self, file: IndexFile) -> None:
        self._file = file
        self._terms = Terms()
        self._lock = threading.Lock()
        self._frequency: dict[str, int] = {}
        self._version: tuple[int, int] | None = None

    def find(self, question: str, limit: int, vectors: Vectors | None) -> list[Found]:
        """See `LibraryIndex.search`."""
        if limit < 1:
            raise UsageError(f"{limit} passages were asked for: ask for at least 1")
        num_candidates = max(_NUM_CANDIDATES, _PER_FOUND * limit)
        names = file_names(question)
        with self._file.snapshot():
            by_name = self._named(names)
            named = list(dict.fromkeys(document for documents in by_name.values() for document in documents))
            # Whoever writes a document's name asks for it, not for passages that hold the name.
            asked = self._asked(without_file_names(question, by_name), is_of_documents=bool(named))
            rows = self._rows("p.number", self._by_words(asked, num_candidates, named))
            openings = [] if any(row[1] in named for row in rows) else self._openings(asked, named, limit)
        if vectors is None:
            return [*openings, *self._scored(asked, rows, set(named))][:limit]
        # Not in the snapshot: an embedder may take its time, and a passage that leaves meanwhile is no row below.
        near = vectors.near(self._file, question, [(w.asked, asked.weights[w.term]) for w in asked.query.words])
        # By vectors alone a passage is found by its text; words are looked for in it all the same.
        rows += self._rows("p.id", near.first(num_candidates))
        scored = self._scored(asked, rows, set(named))
        found = fused(scored, near, limit, lambda one: 1.0 if not named or one.document in named else _NOT_NAMED)
        if any(one.document in named for one in found):  # by a vector that is a find by itself
            return found
        return [*(replace(one, similarity=near.similarity(one.id)) for one in openings), *found][:limit]

    def close(self) -> None:
        """Idempotent."""
        self._terms.close()

    def _asked(self, question: str, *, is_of_documents: bool) -> Asked:
        query = self._terms.of_question(question)
        if query.phrase and is_of_documents:  # "what is in", the name left out, is no phrase to look for
            query = Query(())
        num_passages, num_chars = self._file.row("SELECT num_passages, num_chars FROM totals")
        # A name that stands nowhere is not missing in any passage: its words may be there, written otherwise.
        query = replace(query, words=tuple(w for w in query.words if " " not in w.term or self._num_with(w.term)))
        weights = {word.term: weight(self._num_with(word.term), num_passages) for word in query.words}
        return Asked(query, weights, num_chars / max(1, num_passages), defined_names_in(question))

    def _num_with(self, term: str) -> int:
        """How many passages hold a term. Counting a frequent one takes milliseconds, so it is kept until a write."""
        version = self._file.version_of_data()
        with self._lock:
            if version != self._version or len(self._frequency) > _MAX_CACHED_TERMS:
                self._frequency, self._version = {}, version
            if term in self._frequency:
                return self._frequency[term]
        if " " in term:
            rows = self._file.rows("SELECT count(*) FROM words WHERE words MATCH ?", (f'"{term}"',))
        else:
            rows = self._file.rows("SELECT doc FROM vocabulary WHERE term = ?", (term,))
        number = int(rows[0][0]) if rows else 0
        with self._lock:
            if version == self._version:
                self._frequency[term] = number
        return number

    def _named(self, names: Sequence[str]) -> dict[str, list[str]]:
        """The documents that each of `names` names, by their whole names or by what they end with; at least one."""
        named: dict[str, list[str]] = {}
        for name in names:
            like = re.sub(r"([%_!])", r"!\1", name)
            rows = self._file.rows("SELECT name FROM documents WHERE name LIKE ? ESCAPE '!'", (like,))
            rows = rows or self._file.rows("SELECT name FROM documents WHERE name LIKE ? ESCAPE '!'", (f"%/{like}",))
            if 0 < len(rows) <= _MAX_NAMED:  # a name that many have names none of them
                named[name] = [document for (document,) in rows]
        return named

    def _openings(self, asked: Asked, named: Sequence[str], limit: int) -> list[Found]:
        """The first passages of each document that is named, those that stand first before others: see `Found`."""
        placed: list[tuple[int, Row]] = []
        for name in named:
            rows = self._file.rows(
                "SELECT p.position, p.id, d.name, p.first_line, p.last_line, p.heading, p.text FROM passages p "
                "JOIN documents d ON p.document = d.number WHERE d.name = ? ORDER BY p.position LIMIT ?",
                (name, limit),
            )
            placed += [(row[0], row[1:]) for row in rows]
        unique: dict[bytes, Row] = {}
        for _, row in sorted(placed, key=lambda one: one[0]):
            unique.setdefault(row[0], row)
        coverage = _OPENING_COVERAGE if asked.query.words else 1.0
        return [
            Found(
                checked_id(self._file, key, text), name, first_line, last_line, heading, text,
                score=1 - (1 - _NOT_NAMED) * number / limit, words=(), coverage=coverage,
            )
            for number, (key, name, first_line, last_line, heading, text) in enumerate(list(unique.values())[:limit])
        ]  # fmt: skip

    def _numbers_of(self, named: Sequence[str]) -> npt.NDArray[np.int64]:
        numbers = [
            number
            for name in named
            for (number,) in self._file.rows(
                "SELECT p.number FROM passages p JOIN documents d ON p.document = d.number WHERE d.name = ?", (name,)
            )
        ]
        return np.array(numbers, dtype=np.int64)

    def _by_words(self, asked: Asked, limit: int, named: Sequence[str]) -> list[int]:
        """Row numbers of candidates: those that hold most of the question's weight, and those that SQLite ranks first;
        of the documents that it names as many again.

        The first alone cannot choose between rows that all hold the one rare word, the second alone sees few words.
        """
        if asked.query.phrase:
            return self._matching(f'"{asked.query.phrase}"', "LIMIT", limit)
        rarest = sorted(
            ((self._num_with(word.term), place, word) for place, word in enumerate(asked.query.words)),
            key=lambda item: item[:2],
        )
        there = [(num_with, word) for num_with, _, word in rarest if num_with]
        ranked = _within(there, _MAX_RANKED_ROWS, 2 * _MAX_RANKED_ROWS)
        query = " OR ".join(f'"{word.asked}"' for word in ranked)
        by_rank = self._matching(query, "ORDER BY rank LIMIT", limit) if ranked else []
        marked = _within(there, _MAX_MARKED_ROWS, _MAX_MARKED_ROWS)
        sums = self._sums({word: asked.weights[word.term] for word in marked})
        by_weight = _heaviest(sums, limit)
        if named:
            inside = np.zeros_like(sums)
            numbers = self._numbers_of(named)
            numbers = numbers[numbers < sums.size]
            inside[numbers] = sums[numbers]
            by_weight += _heaviest(inside, limit)
        return list(dict.fromkeys([*by_rank, *by_weight]))

    def _matching(self, query: str, order: str, limit: int) -> list[int]:
        rows = self._file.rows(f"SELECT rowid FROM words WHERE words MATCH ? {order} ?", (query, limit))
        return [number for (number,) in rows]

    def _sums(self, weights: Mapping[Word, float]) -> npt.NDArray[np.float64]:
        """By row number the sum of the weights of the words that it holds."""
        numbers: list[npt.NDArray[np.int64]] = []
        for word in weights:
            # As one text: a row for each number would take three times as long to hand over.
            rows = self._file.rows("SELECT group_concat(rowid) FROM words WHERE words MATCH ?", (f'"{word.asked}"',))
            numbers.append(np.fromstring(rows[0][0] or "", dtype=np.int64, sep=","))
        sums = np.zeros(1 + max((int(some.max()) for some in numbers if some.size), default=0))
        for some, share in zip(numbers, weights.values(), strict=True):
            sums[some] += share
        return sums

    def _rows(self, column: str, values: Sequence[int] | Sequence[bytes]) -> list[Row]:
        rows: list[Row] = []
        for start in range(0, len(values), _MAX_VALUES):
            some: list[Value] = list(values[start : start + _MAX_VALUES])
            rows += self._file.rows(
                "SELECT p.id, d.name, p.first_line, p.last_line, p.heading, p.text FROM passages p "
                f"JOIN documents d ON p.document = d.number WHERE {column} IN ({', '.join('?' * len(some))})",
                some,
            )
        return rows

    def _scored(self, asked: Asked, rows: Sequence[Row], named: Set[str]) -> list[Found]:
        """Each text once, under the first document that holds it, one that was named before others; best first."""
        unique: dict[bytes, Row] = {}
        for row in sorted(rows, key=lambda row: (row[1] not in named, row[1], row[2])):
            unique.setdefault(row[0], row)
        ordered = list(unique.values())
        counts = self._terms.counts([(row[4], row[5]) for row in ordered], list(asked.weights))
        found = [
            Found(
                checked_id(self._file, key, text), name, first_line, last_line, heading, text,
                score=asked.score(count, len(text)) * _factor(asked, text, is_named=not named or name in named),
                words=asked.words_in(count),
                coverage=asked.coverage(count),
            )
            for (key, name, first_line, last_line, heading, text), count in zip(ordered, counts, strict=True)
        ]  # fmt: skip
        return sorted(found, key=lambda passage: -passage.score)


def _factor(asked: Asked, text: str, *, is_named: bool) -> float:
    """What a passage's score is multiplied by for what the question names."""
    return (1.0 if is_named else _NOT_NAMED) * (1.0 if _is_defining(asked.names, text) else _NOT_DEFINING)


def _is_defining(names: Set[str], text: str) -> bool:
    """Whether a text says what one of the names is; of no names, every text does."""
    if not names:
        return True
    lowered = text.lower()
    # First whether it holds one at all: looking a passage through takes 0.15 ms.
    return any(name in lowered for name in names) and not names.isdisjoint(defined_in(text))


def checked_id(file: IndexFile, key: object, text: object) -> ChunkId:
    """The id that a row has for its text; a damaged disk must not give one chunk's KV to another text."""
    found = content_id(text.encode()) if isinstance(text, str) else None
    if found is None or not isinstance(key, bytes) or key.hex() != found:
        raise file.damaged("a passage is not what was stored")
    return found


def _heaviest(sums: npt.NDArray[np.float64], limit: int) -> list[int]:
    """The row numbers with the highest sums, in no order."""
    (held,) = np.nonzero(sums)
    if held.size > limit:
        held = held[np.argpartition(-sums[held], limit)[:limit]]
    return [int(number) for number in held]


def _within(rarest: Sequence[tuple[int, Word]], max_rows: int, max_alone: int) -> list[Word]:
    """The rarest words that have `max_rows` rows together, or the rarest alone where it has up to `max_alone`."""
    chosen: list[Word] = []
    num_rows = 0
    for num_with, word in rarest:
        if num_rows + num_with > (max_rows if chosen else max_alone):
            break
        chosen.append(word)
        num_rows += num_with
    return chosen

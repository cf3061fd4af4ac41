"""Blend: which tokens of chunks that were computed alone are computed again in place, for one question.

Knows token texts and positions only: no engine, no rows, no disk. What was measured: docs/blend.md.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise

from kvloom.text.definitions import DEFINING, WORD, given_values, names_in

HEAD_TOKENS = 16
"""First tokens of every chunk, where the question names a place: they deviate most (docs/blend.md)."""
HEAD_SHARE = 0.2
"""Most of the budget that heads may take from a place. For chunks computed behind the preamble; behind the sink token
alone 0.5 is better (docs/blend.md)."""
BACK_SHARE = 0.25
"""Part of a run that lies before its place: what a question quotes is mostly asked about what follows."""
PLACE_TOKENS = 32
"""Matches this close together speak of one place: about three lines of code."""
MAX_PLACES = 3
RIVAL_SHARE = 0.75
"""Another place that scores this much of the best one shares the budget with it."""
COMMON_SHARE = 0.01
"""Words that are more than this part of all words point nowhere; only used where the question has no other."""
TELLING_COUNT = 4
"""A place must score as much as one word that occurs this often, or hold a quoted word or an identifier."""
MAX_MATCHES = 400
"""Matches that are looked at, rarest words first: keeps the choice below 5 ms."""
EMPHASIS = 2.0
"""Factor for a word that is quoted or looks like an identifier, for one that follows the same word or a defining one,
and for one of the first kind that is given a value: such a place beats those that only use the name."""

_STOP_WORDS = (
    "a an and are as at be by can do does for from give has have how i in into is it its me must of on one or please "
    "say show tell that the their them there these this to was what when where which who why will with would you your "
    # Words about documents in general: a question that has no other is about all of them.
    "all any both brief briefly called class classes code compare contain contains could describe difference "
    "differences document documents each every explain file files find first function functions last line lines list "
    "main mean means method methods module modules name names other overview paragraph project purpose read sentence "
    "short should some summarise summarize summary text texts use used word words work works write define defined "
    "defines"
)
_STOP = frozenset(_STOP_WORDS.split())


@dataclass(frozen=True)
class BlendChunk:
    """A chunk as it stands in the context: token i is at `position + i` and stands for the bytes `pieces[i]`."""

    position: int
    pieces: tuple[bytes, ...]

    @property
    def stop(self) -> int:
        return self.position + len(self.pieces)


@dataclass(frozen=True)
class RecomputeRun:
    """Positions start ≤ p < stop, inside of chunks."""

    start: int
    stop: int

    @property
    def num_tokens(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class _Place:
    """Matches of the question in one chunk, as token indices start ≤ i < stop."""

    chunk: int
    start: int
    stop: int
    score: float


@dataclass(frozen=True)
class _Asked:
    """What a question looks for: words with weights, quoted words, neighbours, and the least score of a place."""

    weights: dict[str, float]
    emphasized: frozenset[str]
    follows: frozenset[tuple[str, str]]
    floor: float


@dataclass(frozen=True)
class _Index:
    """The words of one chunk in their order, where each stands, and which are given a value there."""

    words: tuple[str, ...]
    tokens: tuple[int, ...]
    ordinals: dict[str, tuple[int, ...]]
    defined: frozenset[int]


def select_runs(chunks: Sequence[BlendChunk], question: str, budget: float, max_runs: int) -> tuple[RecomputeRun, ...]:
    """The runs to recompute, disjoint and by position: at most `budget` of the chunks' tokens, in `max_runs` runs.

    `chunks` are given by position. Where the question speaks of a place, runs around it and a few first tokens of
    every chunk; where it speaks of none, it is about all chunks, and all goes to their first tokens. Deterministic.
    Raises ValueError for a budget outside 0 … 1.
    """
    if not 0 <= budget <= 1:
        raise ValueError(f"blend budget is a share of the chunks' tokens, 0 … 1, got {budget}")
    chunks = [chunk for chunk in chunks if chunk.pieces]
    # In ten-thousandths: a budget of 0.15 of 100 tokens is 15, whatever the binary fraction says.
    num_tokens = round(budget * 10_000) * sum(len(chunk.pieces) for chunk in chunks) // 10_000
    if not num_tokens or max_runs <= 0:
        return ()
    places = _places(chunks, question)[: min(MAX_PLACES, max_runs)]
    headed = _headed(chunks, places, max_runs - len(places))
    picked = _Picked(chunks, num_tokens)
    if places:
        picked.add_heads(headed, min(HEAD_TOKENS, int(num_tokens * HEAD_SHARE) // max(1, len(headed))))
        picked.add_places(places)
    picked.grow_heads(headed)
    return tuple(picked.runs())


class _Picked:
    """Token indices picked in every chunk as one head and some intervals, within a number of tokens."""

    def __init__(self, chunks: Sequence[BlendChunk], num_tokens: int) -> None:
        self._chunks = chunks
        self._left = num_tokens
        self._marks = [bytearray(len(chunk.pieces)) for chunk in chunks]

    def add_heads(self, headed: Sequence[int], size: int) -> None:
        for number in headed:
            self._mark(number, 0, size)

    def grow_heads(self, headed: Sequence[int]) -> None:
        """Spend what is left on the heads, evenly: the shortest chunks first, so that what they leave is shared."""
        ordered = sorted(headed, key=lambda number: (self._num_unmarked(number), number))
        for done, number in enumerate(ordered):
            self._grow(_Place(number, 0, 1, 1.0), self._left // (len(ordered) - done))

    def add_places(self, places: Sequence[_Place]) -> None:
        """Spend what is left on `places`, by score; each takes what its chunk can use of its part."""
        total = sum(place.score for place in places)
        left = self._left
        for place in places:
            self._grow(place, round(left * place.score / total))
        for place in places:
            self._grow(place, self._left)

    def runs(self) -> list[RecomputeRun]:
        """What is picked, as runs; runs that touch are one, also across chunks."""
        positions = [
            chunk.position + index
            for chunk, marks in zip(self._chunks, self._marks, strict=True)
            for index, mark in enumerate(marks)
            if mark
        ]
        if not positions:
            return []
        cuts = [i for i, (a, b) in enumerate(pairwise(positions), start=1) if b != a + 1]
        return [RecomputeRun(positions[a], positions[b - 1] + 1) for a, b in pairwise([0, *cuts, len(positions)])]

    def _mark(self, number: int, start: int, stop: int) -> None:
        marks = self._marks[number]
        for index in range(max(0, start), min(stop, len(marks))):
            if self._left and not marks[index]:
                marks[index] = 1
                self._left -= 1

    def _num_unmarked(self, number: int) -> int:
        return self._marks[number].count(0)

    def _grow(self, place: _Place, num_tokens: int) -> None:
        """Pick `num_tokens` more around a place: the place itself, then 1 before it for every 3 behind it."""
        marks = self._marks[place.chunk]
        back, ahead = place.start - 1, place.start
        for step in range(4 * len(marks)):
            if num_tokens <= 0 or (back < 0 and ahead >= len(marks)):
                return
            goes_back = step % round(1 / BACK_SHARE) == 1 and back >= 0
            if not goes_back and ahead >= len(marks):
                goes_back = True
            index = back if goes_back else ahead
            back, ahead = (back - 1, ahead) if goes_back else (back, ahead + 1)
            before = self._left
            self._mark(place.chunk, index, index + 1)
            num_tokens -= before - self._left


def _headed(chunks: Sequence[BlendChunk], places: Sequence[_Place], num_runs: int) -> list[int]:
    """Chunks whose head is recomputed: all, or as many as runs allow, those with a place and the last ones first."""
    with_place = {place.chunk for place in places}
    order = sorted(range(len(chunks)), key=lambda number: (number not in with_place, -number))
    return sorted(order[: max(0, num_runs)])


# -- which places a question speaks of ----------------------------------------------------------------------------


def _places(chunks: Sequence[BlendChunk], question: str) -> list[_Place]:
    """The best place and its rivals, best first; empty where no word of the question points anywhere."""
    indices = [_index(chunk.pieces) for chunk in chunks]
    asked = _asked(indices, question)
    found = [place for number, index in enumerate(indices) for place in _scored(number, index, asked)]
    found.sort(key=lambda place: (-place.score, place.chunk, place.start))
    best: list[_Place] = []
    for place in found:
        if place.score < RIVAL_SHARE * found[0].score or len(best) == MAX_PLACES:
            break
        near = (b for b in best if b.chunk == place.chunk and abs(b.start - place.start) < PLACE_TOKENS)
        if not any(near):
            best.append(place)
    return best


def _asked(indices: Sequence[_Index], question: str) -> _Asked:
    """The words of the question that occur and point somewhere, the rarest first as far as matches are few enough."""
    emphasized = frozenset(word for name in names_in(question) for word in _words_of(name))
    total = sum(len(index.words) for index in indices)
    counts = Counter(
        {
            word: sum(len(index.ordinals.get(word, ())) for index in indices)
            for word in sorted(set(_only_words(question)))
        }
    )
    telling = sorted((n, word) for word, n in counts.items() if n and (word in emphasized or word not in _STOP))
    rare = [(n, word) for n, word in telling if n <= max(8, COMMON_SHARE * total)]
    weights: dict[str, float] = {}
    num_matches = 0
    for count, word in rare or [(n, word) for n, word in telling if word in emphasized]:
        num_matches += count
        if weights and num_matches > MAX_MATCHES:
            break
        weights[word] = math.log(1 + total / count) ** 2 * (EMPHASIS if word in emphasized else 1.0)
    return _Asked(
        weights=weights,
        emphasized=emphasized,
        follows=frozenset(pairwise(_only_words(question))),
        floor=math.log(1 + total / TELLING_COUNT) ** 2,
    )


def _scored(number: int, index: _Index, asked: _Asked) -> Iterator[_Place]:
    """A place for every match: all different words matched within PLACE_TOKENS from it on, each counted once."""
    matches = []
    for ordinal in sorted(o for word in asked.weights for o in index.ordinals.get(word, ())):
        word, before = index.words[ordinal], index.words[ordinal - 1] if ordinal else ""
        is_strong = (before, word) in asked.follows or before in DEFINING
        is_defined = word in asked.emphasized and ordinal in index.defined
        weight = asked.weights[word] * (EMPHASIS if is_strong else 1.0) * (EMPHASIS if is_defined else 1.0)
        matches.append((index.tokens[ordinal], word, weight))
    for at, (start, _, _) in enumerate(matches):
        best: dict[str, float] = {}
        stop = start + 1
        for token, word, weight in matches[at:]:
            if token >= start + PLACE_TOKENS:
                break
            best[word] = max(best.get(word, 0.0), weight)
            stop = token + 1
        score = sum(best.values())
        if score >= asked.floor or not asked.emphasized.isdisjoint(best):
            yield _Place(number, start, stop, score)


@lru_cache(maxsize=512)
def _index(pieces: tuple[bytes, ...]) -> _Index:
    """Words with the token in which each begins. Kept: the same chunks are asked about again and again."""
    ends = list(accumulate(len(piece) for piece in pieces))
    # Tokens may cut a character: decode them together, and count in bytes.
    text = b"".join(pieces).decode("utf-8", "surrogateescape")
    byte_at = range(len(text)) if text.isascii() else _byte_offsets(text)
    words: list[str] = []
    tokens: list[int] = []
    ordinals: defaultdict[str, list[int]] = defaultdict(list)
    defined = set[int]()
    names = {start for start, _ in given_values(text)}
    for word, start in _words(text):
        if start in names:
            defined.add(len(words))
        ordinals[word].append(len(words))
        words.append(word)
        tokens.append(bisect_right(ends, byte_at[start]))
    where = {word: tuple(places) for word, places in ordinals.items()}
    return _Index(tuple(words), tuple(tokens), where, frozenset(defined))


def _byte_offsets(text: str) -> list[int]:
    sizes = (len(char.encode("utf-8", "surrogateescape")) for char in text)
    return list(accumulate(sizes, initial=0))


def _words(text: str) -> Iterator[tuple[str, int]]:
    """(word, first character) in lower case. Scripts without spaces come as pairs of characters."""
    for match in WORD.finditer(text):
        for offset, word in enumerate(_words_of(match.group())):
            yield word, match.start() + offset


def _only_words(text: str) -> list[str]:
    return [word for word, _ in _words(text)]


def _words_of(run: str) -> list[str]:
    """A run of word characters as search words."""
    if len(run) > 2 and not run.isascii() and _is_unspaced(run):
        run = run.lower()
        return [run[i : i + 2] for i in range(len(run) - 1)]
    return [run.lower()]


def _is_unspaced(run: str) -> bool:
    """Whether a run is of a script that writes no spaces: Thai … Khmer, kana, CJK."""
    return any("\u0e00" <= char <= "\u0eff" or "\u3040" <= char <= "\u9fff" for char in run)

"""Finds texts that are known already (chunks) inside of a long one, in about linear time. Knows no tokens.

Every window of a message is hashed once (polynomial, modulo 2^64). Known texts are looked up by the hash of their first
window, held against the hashes of all their windows, and what is chosen is verified by SHA-256. No text is kept.
"""

from __future__ import annotations

import bisect
import hashlib
import secrets
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MIN_KNOWN_CHARS = 200
"""Shorter texts stand in messages by chance, and computing them again costs next to nothing."""

_WINDOW_CHARS = 128
_DOUBLINGS = 7
"""A window is 2^7 characters: each step makes hashes of twice the length out of the last ones."""
_FILTER_BITS = 20
"""Of a hash, to index the table of first windows: 1 MiB, and one false hit in 1,000 at 1,000 texts."""
_BLOCK_CHARS = 1 << 18
"""Hashed at once: what a block needs of memory stays in a processor's cache."""
_MAX_PAIRS = 1 << 16
"""Windows compared at once: 512 KiB of hashes."""

_Hashes = npt.NDArray[np.uint64]
_Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class KnownSpan:
    """Characters `start` to `stop` of a message are exactly the text known as `chunk_id`."""

    chunk_id: str
    start: int
    stop: int


@dataclass(frozen=True)
class _Known:
    """One text: hashes of windows that cover all of it, the last one first (files begin alike more than they end).

    `number` counts the texts that were ever added.
    """

    chunk_id: str
    number: int
    num_chars: int
    offsets: _Places
    hashes: _Hashes
    digest: bytes


class KnownTexts:
    """An index of texts of at least `MIN_KNOWN_CHARS` characters. Safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._base = np.uint64(secrets.randbits(63) * 2 + 1)  # nobody outside can make texts that collide
        self._by_start: dict[int, list[_Known]] = {}
        self._starts: dict[str, int] = {}
        self._num_added = 0
        self._filter = np.zeros(1 << _FILTER_BITS, dtype=np.bool_)

    def __len__(self) -> int:
        return len(self._starts)

    def __contains__(self, chunk_id: object) -> bool:
        return chunk_id in self._starts

    def add(self, chunk_id: str, text: str) -> bool:
        """Makes `text` known, in place of what was known by this id. False where it is too short to be looked for."""
        if len(text) < MIN_KNOWN_CHARS:
            self.remove(chunk_id)
            return False
        hashes = self._hashes(text)
        last = len(text) - _WINDOW_CHARS
        offsets = np.array([last, *range(0, last, _WINDOW_CHARS)], dtype=np.int64)
        start, digest = int(hashes[0]), _digest(text)
        with self._lock:
            self._remove(chunk_id)
            self._num_added += 1
            known = _Known(chunk_id, self._num_added, len(text), offsets, hashes[offsets], digest)
            bucket = self._by_start.setdefault(start, [])
            bisect.insort(bucket, known, key=lambda other: -other.num_chars)
            self._starts[chunk_id] = start
            self._filter[start >> (64 - _FILTER_BITS)] = True
        return True

    def remove(self, chunk_id: str) -> None:
        """Forgets a text. Nothing happens where it is not known."""
        with self._lock:
            self._remove(chunk_id)

    def find(self, text: str) -> tuple[KnownSpan, ...]:
        """Where known texts stand in `text`, in order, without overlaps.

        The longest are chosen first, of equally long ones the one added first, and each from the left.
        """
        if len(text) < MIN_KNOWN_CHARS or not self._starts:
            return ()
        hashes = self._hashes(text)
        taken = _Taken()
        with self._lock:
            hits = self._hits(hashes)
            candidates = [
                (known, places) for start, places in hits.items() for known in self._alive(start, places, hashes)
            ]
        candidates.sort(key=lambda pair: (-pair[0].num_chars, pair[0].number))
        spans: list[KnownSpan] = []
        for known, places in candidates:
            for place in taken.choose(known.num_chars, _matches(known, places, hashes)):
                stop = place + known.num_chars
                if _digest(text[place:stop]) == known.digest:
                    taken.take(place, stop)
                    spans.append(KnownSpan(known.chunk_id, place, stop))
        return tuple(sorted(spans, key=lambda span: span.start))

    # -- inside -------------------------------------------------------------------------------------------------

    def _remove(self, chunk_id: str) -> None:
        start = self._starts.pop(chunk_id, None)
        if start is None:
            return
        bucket = [known for known in self._by_start[start] if known.chunk_id != chunk_id]
        if bucket:
            self._by_start[start] = bucket
        else:
            del self._by_start[start]  # its place in the filter stays: a false hit is a miss a little later

    def _hits(self, hashes: _Hashes) -> dict[int, _Places]:
        """Where a known text may begin, by the hash of its first window."""
        places = np.flatnonzero(self._filter[hashes >> np.uint64(64 - _FILTER_BITS)])
        found: dict[int, list[int]] = {}
        for place, start in zip(places.tolist(), hashes[places].tolist(), strict=True):
            if start in self._by_start:
                found.setdefault(start, []).append(place)
        return {start: np.array(places, dtype=np.int64) for start, places in found.items()}

    def _alive(self, start: int, places: _Places, hashes: _Hashes) -> Iterator[_Known]:
        """Texts of a bucket whose last window stands where it should, for any place. Files with one licence text on
        top share a bucket, so few places are held against all of them at once."""
        bucket = self._by_start[start]
        if len(bucket) <= len(places):
            yield from bucket
            return
        lasts = np.array([known.offsets[0] for known in bucket], dtype=np.int64)
        ends = np.array([known.hashes[0] for known in bucket], dtype=np.uint64)
        alive = np.zeros(len(bucket), dtype=np.bool_)
        for place in places.tolist():
            at = np.minimum(lasts + place, len(hashes) - 1)
            alive |= (hashes[at] == ends) & (lasts + place < len(hashes))
        yield from (bucket[number] for number in np.flatnonzero(alive).tolist())

    def _hashes(self, text: str) -> _Hashes:
        """The hash of every window of the text."""
        chars = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        hashes = np.empty(len(chars) - _WINDOW_CHARS + 1, dtype=np.uint64)
        for start in range(0, len(hashes), _BLOCK_CHARS):
            # One is added: runs of NUL characters of different lengths must differ.
            part = chars[start : start + _BLOCK_CHARS + _WINDOW_CHARS - 1].astype(np.uint64) + np.uint64(1)
            power, width = self._base, 1
            for _ in range(_DOUBLINGS):
                part = part[:-width] * power + part[width:]
                with np.errstate(over="ignore"):
                    power, width = power * power, width * 2
            hashes[start : start + _BLOCK_CHARS] = part
        return hashes


class _Taken:
    """Spans that are chosen, in order."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []

    def take(self, start: int, stop: int) -> None:
        at = bisect.bisect(self._starts, start)
        self._starts.insert(at, start)
        self._stops.insert(at, stop)

    def choose(self, num_chars: int, places: _Places) -> Iterator[int]:
        """Free places from the left; a place that is taken in the meantime frees none that it overlaps."""
        at = 0
        while at < len(places):
            place = int(places[at])
            before = bisect.bisect_right(self._starts, place + num_chars - 1) - 1
            if before < 0 or self._stops[before] <= place:
                yield place
                before = bisect.bisect_right(self._starts, place + num_chars - 1) - 1
                if before < 0 or self._stops[before] <= place:
                    at += 1
                    continue
            at = int(np.searchsorted(places, self._stops[before]))


def _matches(known: _Known, places: _Places, hashes: _Hashes) -> _Places:
    """The places at which all windows of a text stand."""
    places = places[places <= len(hashes) - 1 - known.offsets[0]]
    at = 0
    while len(places) and at < len(known.offsets):
        size = max(1, _MAX_PAIRS // len(places))
        offsets = known.offsets[at : at + size]
        found = hashes[places[:, None] + offsets[None, :]] == known.hashes[at : at + size]
        places, at = places[found.all(axis=1)], at + size
    return places


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()

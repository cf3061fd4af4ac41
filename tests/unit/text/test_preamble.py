"""The preamble decides what every chunk's own entry means: it may not change unnoticed."""

from __future__ import annotations

import hashlib

from kvloom.text.preamble import MAX_TOKENS, MIN_CONTEXT, PREAMBLE, alone_prefix
from kvloom.types import ENTRY_KEY_VERSION


def words(text: str) -> tuple[int, ...]:
    return tuple(range(len(text)))


def test_a_changed_preamble_needs_another_key_version() -> None:
    pinned = {2: "2a14b04d29e50813"}
    assert pinned[ENTRY_KEY_VERSION] == hashlib.sha256(PREAMBLE.encode()).hexdigest()[:16]


def test_the_prefix_is_the_sink_and_a_bounded_preamble() -> None:
    assert alone_prefix(7, MIN_CONTEXT, words) == (7, *range(MAX_TOKENS))


def test_where_there_is_little_room_the_prefix_is_the_sink_alone() -> None:
    assert alone_prefix(7, MIN_CONTEXT - 1, words) == (7,)

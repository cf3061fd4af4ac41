"""Packing turns into pieces: nothing is skipped, nothing is over the limit, long turns are cut in parts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.reduce.fit import parts
from kvloom.reduce.spans import SpanTurn, opening, pieces, written
from tests.unit.reduce.counts import COUNTS, by_words

TEXTS = st.text(alphabet="ab c.\n日é", max_size=200)


def turn(number: int, user: str, answer: str) -> SpanTurn:
    return SpanTurn(f"t{number}", user, answer, by_words(user + answer))


@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=8), st.integers(64, 200), st.sampled_from(sorted(COUNTS)))
def test_every_turn_stands_whole_in_the_pieces_in_order(said: list[tuple[str, str]], limit: int, count: str) -> None:
    counting = COUNTS[count]
    turns = [turn(number, *one) for number, one in enumerate(said)]
    found = pieces(turns, limit, counting)
    for one in turns:
        own = [part for piece in found for part in piece.parts if part.ref == one.ref]
        assert "".join(part.text for part in own) == written(one)
        assert [part.is_continued for part in own] == [False] + [True] * (len(own) - 1)
    refs = [part.ref for piece in found for part in piece.parts]
    assert refs == sorted(refs)
    for piece in found:
        assert counting(piece.text) <= limit
        assert all(part.text in piece.text for part in piece.parts)


def test_there_are_no_more_pieces_than_needed_and_they_are_of_about_equal_size() -> None:
    turns = [turn(number, "word " * 20, "word " * 20) for number in range(22)]
    found = pieces(turns, 1000, by_words)
    assert len(found) == 2
    sizes = [by_words(piece.text) for piece in found]
    assert max(sizes) < 1.3 * min(sizes)


@given(TEXTS, st.integers(1, 50), st.sampled_from(sorted(COUNTS)))
def test_parts_joined_are_the_text_and_each_is_within_the_limit(text: str, limit: int, count: str) -> None:
    counting = COUNTS[count]
    found = list(parts(text, limit, counting))
    assert "".join(found) == text
    assert all(counting(part) <= limit or len(part) <= 2 for part in found)


def test_parts_end_where_the_text_has_an_end() -> None:
    text = "A first sentence of some words. Another one of them. " * 20
    found = list(parts(text, 25, by_words))
    assert all(part.rstrip().endswith(".") for part in found)
    lines = "".join(f"line {number} has words\n" for number in range(50))
    assert all(part.endswith("\n") for part in parts(lines, 30, by_words))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("My name is Ann. I live in Oslo.", "My name is Ann."),
        ("Use version 3.5 of it. Then wait.", "Use version 3.5 of it."),
        ("これは文です。次の文です。", "これは文です。"),
        ("no end\nat all", "no end at all"),
        ("", ""),
        (" \n ", ""),
        ("a" * 900, "a" * 300),
    ],
)
def test_the_opening_of_a_text_is_its_first_sentence(text: str, expected: str) -> None:
    assert opening(text) == expected

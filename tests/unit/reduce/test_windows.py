"""Windows over a text: nothing is left out, nothing is over the size, each goes on where the one before ended."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.errors import CancelledError, UsageError
from kvloom.reduce.boundaries import MAX_CLUSTER, is_boundary
from kvloom.reduce.summarize import Watch
from kvloom.reduce.windows import MAX_OVERLAP, Window, windows
from tests.unit.reduce.counts import COUNTS, by_bytes, by_words

TEXTS = st.text(alphabet="ab cdef.\n日é🙂", max_size=400)
PROSE = "".join(f"Sentence {number} says that {number * 7} is a number. " for number in range(60))


def without_overlaps(found: tuple[Window, ...]) -> str:
    joined, covered = "", 0
    for window in found:
        joined += window.text[covered - window.start :]
        covered = window.stop
    return joined


@given(TEXTS, st.integers(1, 120), st.floats(0, MAX_OVERLAP), st.sampled_from(sorted(COUNTS)))
def test_joined_without_the_overlaps_windows_are_the_text(text: str, size: int, overlap: float, count: str) -> None:
    found = windows(text, size, overlap, COUNTS[count])
    assert without_overlaps(found) == text
    assert all(window.text == text[window.start : window.stop] for window in found)
    for before, after in itertools.pairwise(found):
        assert before.start < after.start <= before.stop < after.stop


@given(TEXTS, st.integers(1, 120), st.floats(0, MAX_OVERLAP))
def test_every_token_position_is_in_some_window(text: str, size: int, overlap: float) -> None:
    found = windows(text, size, overlap, by_bytes)
    place, starts = 0, []
    for character in text:  # by bytes, a character's tokens begin where it does
        starts.append(place)
        place += len(character.encode())
    starts.append(place)
    seen = {token for window in found for token in range(starts[window.start], starts[window.stop])}
    assert seen == set(range(by_bytes(text)))


@given(TEXTS, st.integers(4, 120), st.floats(0, MAX_OVERLAP), st.sampled_from(sorted(COUNTS)))
def test_no_window_is_over_its_size_but_for_one_character(text: str, size: int, overlap: float, count: str) -> None:
    for window in windows(text, size, overlap, COUNTS[count]):
        assert window.num_tokens == COUNTS[count](window.text)
        assert window.num_tokens <= size or len(window.text) <= MAX_CLUSTER
        assert is_boundary(text, window.start)
        assert is_boundary(text, window.stop)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
def test_neighbours_share_about_what_was_asked_for_and_begin_at_a_word(overlap: float) -> None:
    found = windows(PROSE, 100, overlap, by_words)
    assert len(found) >= int((by_words(PROSE) - 100) / (100 * (1 - overlap))) + 1
    for before, after in itertools.pairwise(found):
        shared = by_words(PROSE[after.start : before.stop])
        assert shared <= overlap * before.num_tokens
        assert shared >= 0.6 * overlap * before.num_tokens - 2
        assert PROSE[after.start - 1].isspace() or PROSE[after.start].isspace()


def test_a_window_ends_with_a_sentence_where_one_ends_nearby() -> None:
    for window in windows(PROSE, 60, 0.0, by_words):
        assert window.text.rstrip().endswith(".")


def test_a_text_that_fits_is_one_window_and_no_text_is_none() -> None:
    [window] = windows("one\ntwo\n", 10, 0.5, by_words)
    assert (window.text, window.start, window.stop, window.first_line, window.last_line) == ("one\ntwo\n", 0, 8, 1, 2)
    assert windows("", 10, 0.5, by_words) == ()


def test_lines_are_those_of_the_text() -> None:
    text = "".join(f"line {number} of a text\n" for number in range(1, 101))
    found = windows(text, 40, 0.5, by_words)
    lines = text.splitlines()
    assert (found[0].first_line, found[-1].last_line) == (1, 100)
    for window in found:
        shown = window.text.splitlines()
        assert lines[window.first_line - 1].endswith(shown[0])
        assert lines[window.last_line - 1].startswith(shown[-1])
        assert window.last_line - window.first_line + 1 == len(shown)


def test_an_overlap_of_one_is_refused_with_the_reason() -> None:
    with pytest.raises(UsageError, match=r"the text never ends; give 0 to 0\.75"):
        windows(PROSE, 100, 1, by_words)


@pytest.mark.parametrize("overlap", [-0.1, -1, 0.76, 1.5, 100, math.nan, math.inf])
def test_an_overlap_that_is_no_share_is_refused(overlap: float) -> None:
    with pytest.raises(UsageError, match=r"from 0 to 0\.75"):
        windows(PROSE, 100, overlap, by_words)


@pytest.mark.parametrize("size", [0, -5])
def test_a_window_that_holds_nothing_is_refused(size: int) -> None:
    with pytest.raises(UsageError, match="1 or more"):
        windows(PROSE, size, 0, by_words)


def test_a_long_text_is_cut_with_few_counts_for_each_window() -> None:
    num_counted = 0

    def count(text: str) -> int:
        nonlocal num_counted
        num_counted += len(text)
        return by_words(text)

    text = PROSE * 20
    found = windows(text, 200, 0.5, count)
    read = sum(len(window.text) for window in found)
    assert num_counted - len(text) < 20 * read


def test_no_text_is_counted_twice_and_none_that_is_much_longer_than_a_window() -> None:
    counted: list[str] = []

    def count(text: str) -> int:
        counted.append(text)
        return by_words(text)

    text = PROSE * 100
    found = windows(text, 200, 0.5, count)
    assert max(map(len, counted)) <= 200 * 64 < len(text)
    assert len(counted) < 5.5 * len(found)


def test_where_tokens_grow_longer_the_end_is_looked_for_nearby() -> None:
    longest_counted = 0

    def count(text: str) -> int:  # a run of spaces is one token for each hundred
        nonlocal longest_counted
        longest_counted = max(longest_counted, len(text))
        return text.count("x") + text.count(" ") // 100

    windows("x" * 20_000 + " " * 1_000_000, 100, 0.0, count)
    assert longest_counted < 50_000


def test_laying_windows_is_watched_and_ends_at_the_next_window_once_it_is_cancelled() -> None:
    steps: list[tuple[int, int]] = []
    found = windows(PROSE, 60, 0.5, by_words, Watch(lambda done, total: steps.append((done, total))))
    assert steps == [(done, len(PROSE)) for done in (0, *(window.stop for window in found))]
    looks = iter((False, True))
    with pytest.raises(CancelledError, match=f"over {found[0].stop:,} of {len(PROSE):,} characters"):
        windows(PROSE, 60, 0.5, by_words, Watch(is_cancelled=lambda: next(looks)))


@pytest.mark.parametrize("given", [b"bytes", None, ["a", "b"]])
def test_what_is_no_text_is_refused_with_words(given: Any) -> None:
    with pytest.raises(UsageError, match=f"one text, a str; got {type(given).__name__}"):
        windows(given, 10, 0, by_words)

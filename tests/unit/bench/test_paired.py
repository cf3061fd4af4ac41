"""Shares of paired answers and their lower bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.bench.paired import kept, ratio, ratio_low, wilson_low

PAIRS = st.lists(st.tuples(st.booleans(), st.booleans()), max_size=30)


@pytest.mark.parametrize(
    ("num_right", "number", "low"),
    [(0, 0, 0.0), (0, 10, 0.0), (10, 10, 0.7225), (95, 100, 0.8882), (194, 200, 0.9361)],
)
def test_wilsons_bound_is_the_textbooks(num_right: int, number: int, low: float) -> None:
    assert wilson_low(num_right, number) == pytest.approx(low, abs=2e-4)


def test_what_the_peer_had_wrong_does_not_count_as_kept() -> None:
    ours, theirs = [True, True, False, True], [True, False, True, True]
    assert kept(ours, theirs) == (2, 3)
    assert ratio(ours, theirs) == 1.0


def test_equal_answers_have_a_ratio_of_one_whatever_is_drawn() -> None:
    same = [True] * 30 + [False] * 10
    assert ratio_low(same, same) == 1.0


def test_a_peer_without_right_answers_gives_no_ratio() -> None:
    assert ratio([True], [False]) == ratio_low([True], [False]) == ratio_low([], []) == 0.0


@given(PAIRS)
def test_the_bound_is_not_above_what_was_seen_and_the_same_every_time(pairs: list[tuple[bool, bool]]) -> None:
    ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    both, number = kept(ours, theirs)
    assert 0 <= both <= number
    assert wilson_low(both, number) <= (both / number if number else 0.0) + 1e-9
    assert ratio_low(ours, theirs) == ratio_low(ours, theirs)

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.errors import UsageError
from kvloom.memory.guard import Crossing, Guard, Level, Thresholds

TOTAL = 1000
USED = st.integers(0, TOTAL)


@st.composite
def thresholds(draw: st.DrawFn) -> Thresholds:
    shares = sorted(draw(st.lists(st.integers(1, 100), min_size=3, max_size=3, unique=True)))
    soft, hard, critical = (share / 100 for share in shares)
    return Thresholds(soft, hard, critical, draw(st.floats(0, soft, exclude_max=True)))


def levels(*used: int) -> list[Level]:
    """The level after each reading of a fresh guard with the default thresholds."""
    guard = Guard()
    found = []
    for size in used:
        guard.observe(size, TOTAL)
        found.append(guard.level)
    return found


def test_levels_are_ordered() -> None:
    mixed = [Level.HARD, Level.NORMAL, Level.CRITICAL, Level.SOFT]
    assert sorted(mixed) == [Level.NORMAL, Level.SOFT, Level.HARD, Level.CRITICAL]
    assert Level.HARD >= Level.SOFT


def test_each_threshold_raises_the_level_and_one_reading_may_raise_it_by_several() -> None:
    assert levels(799, 800, 899, 900, 950) == [Level.NORMAL, Level.SOFT, Level.SOFT, Level.HARD, Level.CRITICAL]
    assert levels(0, 1000) == [Level.NORMAL, Level.CRITICAL]


def test_a_level_is_left_only_well_below_its_threshold() -> None:
    assert levels(950, 901, 900, 899, 851) == [Level.CRITICAL] * 3 + [Level.HARD] * 2
    assert levels(900, 849, 750, 749) == [Level.HARD, Level.SOFT, Level.SOFT, Level.NORMAL]
    assert levels(1000, 0) == [Level.CRITICAL, Level.NORMAL]


def test_a_crossing_tells_what_changed() -> None:
    guard = Guard()
    assert guard.observe(500, TOTAL) is None
    up = guard.observe(920, TOTAL)
    assert up == Crossing(Level.NORMAL, Level.HARD, 920, TOTAL)
    assert up is not None
    assert up.is_rise
    assert up.share == 0.92
    down = guard.observe(100, TOTAL)
    assert down is not None
    assert (down.before, down.after, down.is_rise) == (Level.HARD, Level.NORMAL, False)


@given(limits=thresholds(), used=st.lists(USED, max_size=60))
def test_a_crossing_is_reported_exactly_when_the_level_changes(limits: Thresholds, used: list[int]) -> None:
    guard, before = Guard(limits), Level.NORMAL
    crossings: list[Crossing] = []
    for size in used:
        crossing = guard.observe(size, TOTAL)
        assert (crossing is not None) == (guard.level is not before)
        if crossing is not None:
            assert (crossing.before, crossing.after) == (before, guard.level)
            crossings.append(crossing)
        before = guard.level
    assert all(first.after is second.before for first, second in pairwise(crossings))


@given(limits=thresholds(), used=st.lists(USED, min_size=1, max_size=60))
def test_the_level_is_never_below_what_the_last_reading_reached(limits: Thresholds, used: list[int]) -> None:
    guard = Guard(limits)
    for size in used:
        guard.observe(size, TOTAL)
        assert guard.level >= limits.reached(size / TOTAL)


@given(limits=thresholds(), data=st.data())
def test_a_memory_that_moves_within_the_band_around_a_threshold_crosses_it_once(
    limits: Thresholds, data: st.DataObject
) -> None:
    threshold = data.draw(st.sampled_from([limits.soft, limits.hard, limits.critical]))
    higher = min([limit for limit in (limits.hard, limits.critical) if limit > threshold], default=1.1)
    # Above every band's floor, below the next threshold.
    band = [size for size in range(TOTAL + 1) if threshold - limits.hysteresis <= size / TOTAL < higher]
    guard = Guard(limits)
    first = guard.observe(min(size for size in range(TOTAL + 1) if size / TOTAL >= threshold), TOTAL)
    assert first is not None
    for size in data.draw(st.lists(st.sampled_from(band), max_size=40)):
        assert guard.observe(size, TOTAL) is None


@given(used=USED, limits=thresholds())
def test_the_safe_limit_stays_below_soft_and_one_byte_more_does_not(used: int, limits: Thresholds) -> None:
    guard = Guard(limits)
    guard.observe(used, TOTAL)
    safe = guard.safe_limit_bytes()
    assert safe is not None
    assert safe >= 0
    assert guard.can_allocate(safe)
    assert not guard.can_allocate(safe + 1)
    if used / TOTAL < limits.soft:
        assert limits.reached((used + safe) / TOTAL) is Level.NORMAL
        assert limits.reached((used + safe + 1) / TOTAL) >= Level.SOFT
    else:
        assert safe == 0


def test_before_the_first_reading_nothing_is_known_and_nothing_forbidden() -> None:
    guard = Guard()
    assert guard.safe_limit_bytes() is None
    assert guard.can_allocate(10**15)
    assert (guard.level, guard.used_bytes, guard.total_bytes) == (Level.NORMAL, 0, 0)


@pytest.mark.parametrize(("used", "total"), [(0, 0), (5, 0), (-1, 100), (101, 100), (5, -100)])
def test_a_reading_that_cannot_be_true_changes_nothing(used: int, total: int) -> None:
    guard = Guard()
    guard.observe(850, TOTAL)
    assert guard.observe(used, total) is None
    assert (guard.level, guard.used_bytes, guard.total_bytes) == (Level.SOFT, 850, TOTAL)


@pytest.mark.parametrize(
    "values",
    [(0.9, 0.8, 0.95, 0.05), (0.8, 0.8, 0.95, 0.05), (0.8, 0.9, 1.01, 0.05), (0.0, 0.9, 0.95, 0.0),
     (0.8, 0.9, 0.95, -0.1), (0.8, 0.9, 0.95, 0.8)],
)  # fmt: skip
def test_thresholds_in_no_order_are_refused(values: tuple[float, float, float, float]) -> None:
    with pytest.raises(UsageError, match="guard's"):
        Thresholds(*values)

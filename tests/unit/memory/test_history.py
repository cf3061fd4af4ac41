from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.memory.history import MAX_POINTS, WINDOW_S, History
from tests.unit.memory.pictures import picture


def test_a_steady_growth_is_its_own_trend() -> None:
    history = History()
    for second in range(0, 60, 5):
        history.add(second, picture(1000 + 20 * second, 5000 - 10 * second, total=10_000))
    assert history.trend("0") == pytest.approx(20)
    assert history.trend("1") == pytest.approx(-10)
    latest = history.latest
    assert latest is not None
    assert latest.readings[0].used_bytes == 1000 + 20 * 55


@given(
    st.lists(
        st.tuples(st.floats(0, 60, allow_nan=False), st.integers(0, 10_000)),
        min_size=3,
        max_size=30,
        unique_by=lambda p: p[0],
    )
)
def test_the_trend_is_the_slope_of_the_least_squares_line(points: list[tuple[float, int]]) -> None:
    points.sort()
    times, sizes = np.array([time for time, _ in points]), np.array([size for _, size in points])
    if np.ptp(times) < 1:
        return
    history = History()
    for time, size in points:
        history.add(time, picture(size, total=10_000))
    assert history.trend("0") == pytest.approx(float(np.polyfit(times, sizes, 1)[0]), rel=1e-6, abs=1e-6)


def test_too_few_readings_have_no_trend() -> None:
    history = History()
    assert history.trend("0") is None
    assert history.latest is None
    for second in range(2):
        history.add(second, picture(second))
        assert history.trend("0") is None
    history.add(2, picture(2))
    assert history.trend("0") == pytest.approx(1)
    assert history.trend("of no device") is None


def test_readings_at_one_moment_have_no_trend() -> None:
    history = History()
    for size in range(5):
        history.add(7.0, picture(size))
    assert history.trend("0") is None


def test_old_readings_are_forgotten_and_the_history_stays_small() -> None:
    history = History()
    for second in range(100):
        history.add(second, picture(50, total=10_000))
    late = 100 + WINDOW_S
    for step in range(3 * MAX_POINTS):
        history.add(late + step / 10, picture(step, total=10_000))
    assert history.trend("0") == pytest.approx(10)


def test_a_time_that_goes_back_is_dropped() -> None:
    history = History()
    for second in (0.0, 10.0, 20.0):
        history.add(second, picture(int(second)))
    history.add(5.0, picture(99))
    assert history.trend("0") == pytest.approx(1)

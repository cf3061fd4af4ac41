"""How counts, sizes and times are written."""

from __future__ import annotations

import time

import pytest

from kvloom.cli import amounts


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (10 * 1024**2, "10.0 MiB"), (5 * 1024**4, "5120.0 GiB")],
)
def test_sizes_are_in_binary_units(num_bytes: int, text: str) -> None:
    assert amounts.size(num_bytes) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0042, "4.2 ms"), (0.2134, "0.213 s"), (12.34, "12.3 s"), (119.9, "119.9 s"), (125.0, "2 min 05 s")],
)
def test_times_keep_three_digits(value: float, text: str) -> None:
    assert amounts.seconds(value) == text


def test_positions_show_the_first_and_the_last() -> None:
    assert amounts.positions(30, 542) == "30–541"
    assert amounts.positions(7, 7) == "–"


def test_a_share_of_nothing_is_no_number() -> None:
    assert amounts.share(3, 4) == "75%"
    assert amounts.share(0, 0) == "–"


def test_ages_use_the_largest_unit() -> None:
    now = time.time()
    assert amounts.age(now) == "just now"
    assert amounts.age(now - 3 * 3600 - 5) == "3 h ago"
    assert amounts.age(now - 2 * 86_400 - 5) == "2 d ago"


def test_control_characters_cannot_steer_the_terminal() -> None:
    assert amounts.printable("a\x1b[31mb\x07\r\n\tc\x9b2J") == "a\ufffd[31mb\ufffd\ufffd\n\tc\ufffd2J"

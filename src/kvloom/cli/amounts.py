"""Writes counts, sizes and times as people read them. Knows nothing of what they count."""

from __future__ import annotations

import re
import time

SHORT_ID_DIGITS = 12
"""Hex digits of an id that are shown: 48 bits, no accidental twin in any home."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def tokens(count: int, *, is_estimate: bool = False) -> str:
    """`~` marks a number that nobody has counted."""
    return f"~{count:,}" if is_estimate else f"{count:,}"


def counted(count: int, what: str) -> str:
    """`1 document`, `2,000 documents`."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def size(num_bytes: int) -> str:
    """Binary units, three digits at most before the point."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def seconds(value: float) -> str:
    """Three significant digits: 4 ms, 0.213 s, 12.3 s, 2 min 05 s."""
    if value < 0.01:
        return f"{value * 1000:.1f} ms"
    if value < 1:
        return f"{value:.3f} s"
    if value < 120:
        return f"{value:.1f} s"
    return f"{int(value) // 60} min {int(value) % 60:02d} s"


def share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f}%" if whole else "–"


def age(then: float) -> str:
    """How long ago a moment was, in the largest unit that fits."""
    passed = max(0, int(time.time() - then))
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if passed >= length:
            return f"{passed // length} {unit} ago"
    return "just now"


def short_id(text: str) -> str:
    return text[:SHORT_ID_DIGITS]


def positions(start: int, stop: int) -> str:
    """First and last position, as a reader counts them."""
    return f"{start}–{stop - 1}" if stop > start else "–"


def printable(text: str) -> str:
    """Text that cannot steer a terminal: control characters but tab and line feed become U+FFFD."""
    return _CONTROL.sub("\ufffd", text)

"""Where a text may be cut without tearing a character that a reader sees. Knows no tokens.

A close approximation of Unicode's grapheme clusters (UAX 29) by the tables of the standard library: combining marks,
joined and modified emoji, flags, Hangul jamo and CR LF stay whole.
"""

from __future__ import annotations

import unicodedata

MAX_CLUSTER = 32
"""Code points. Longer heaps of marks on one letter are no writing; they are cut rather than walked through."""

_JOINER = "\u200d"
_MARKS = ("Mn", "Me", "Mc")
_VOICED = ("\uff9e", "\uff9f")
"""Half-width katakana's voicing marks: letters by their category, marks to a reader."""


def is_boundary(text: str, at: int) -> bool:
    """Whether `text` may be cut in front of its character `at`."""
    if at <= 0 or at >= len(text):
        return True
    before, after = text[at - 1], text[at]
    if before.isascii() and after.isascii():
        return not (before == "\r" and after == "\n")
    if unicodedata.category(before) in ("Cc", "Zl", "Zp"):
        return True
    if before == _JOINER or _extends(after):
        return False
    if _is_flag_letter(before) and _is_flag_letter(after):
        return _num_flag_letters_before(text, at) % 2 == 0
    return not _joins_as_hangul(before, after)


def boundary_before(text: str, at: int) -> int:
    """The last boundary at or before `at`; `at` itself within a heap of more than MAX_CLUSTER code points."""
    at = min(max(at, 0), len(text))
    for place in range(at, max(at - MAX_CLUSTER, -1), -1):
        if is_boundary(text, place):
            return place
    return at


def boundary_after(text: str, at: int) -> int:
    """The first boundary at or behind `at`; `at` itself within a heap of more than MAX_CLUSTER code points."""
    at = min(max(at, 0), len(text))
    for place in range(at, min(at + MAX_CLUSTER, len(text) + 1)):
        if is_boundary(text, place):
            return place
    return at


def _extends(character: str) -> bool:
    """Whether it belongs to the character before it."""
    code = ord(character)
    return (
        unicodedata.category(character) in _MARKS
        or character in _VOICED
        or 0x200C <= code <= 0x200D  # joiner and non-joiner
        or 0x1F3FB <= code <= 0x1F3FF  # skin tones
        or 0xE0020 <= code <= 0xE007F  # tags: the flags of regions
    )


def _is_flag_letter(character: str) -> bool:
    return 0x1F1E6 <= ord(character) <= 0x1F1FF


def _num_flag_letters_before(text: str, at: int) -> int:
    start = at
    while start > 0 and _is_flag_letter(text[start - 1]):
        start -= 1
    return at - start


def _joins_as_hangul(before: str, after: str) -> bool:
    """Two parts of one syllable: a leading jamo with what follows it, a vowel or a tail with what it ends."""
    a, b = ord(before), ord(after)
    is_lead = 0x1100 <= a <= 0x115F or 0xA960 <= a <= 0xA97C
    is_syllable = 0xAC00 <= a <= 0xD7A3
    is_vowel_or_tail = 0x1160 <= a <= 0x11FF or 0xD7B0 <= a <= 0xD7FB
    if 0x1160 <= b <= 0x11FF or 0xD7B0 <= b <= 0xD7FB:
        return is_lead or is_syllable or is_vowel_or_tail
    return is_lead and (0x1100 <= b <= 0x115F or 0xA960 <= b <= 0xA97C or 0xAC00 <= b <= 0xD7A3)

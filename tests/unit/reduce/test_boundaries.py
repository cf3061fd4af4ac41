"""No cut inside what a reader sees as one character."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.reduce.boundaries import MAX_CLUSTER, boundary_after, boundary_before, is_boundary


@pytest.mark.parametrize(
    "character",
    [
        "e\u0301",  # a letter and its accent
        "\r\n",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",  # a family, joined
        "\U0001f44d\U0001f3fd",  # a thumb with a skin tone
        "\u2764\ufe0f",  # a heart and its presentation
        "\U0001f1e9\U0001f1ea",  # a flag
        "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",  # a region's flag
        "\u1112\u1161\u11ab",  # one Hangul syllable in three parts
        "\uac00\u11a8",
        "\u0915\u093f",  # a Devanagari letter and its vowel
        "\uff76\uff9e",  # half-width katakana, voiced
    ],
)
def test_one_character_is_never_cut(character: str) -> None:
    text = f"a{character}b"
    assert [at for at in range(len(text) + 1) if is_boundary(text, at)] == [0, 1, 1 + len(character), len(text)]


@pytest.mark.parametrize("text", ["ab", "a b", "\n\n", "\n\r", "日本", "a\U0001f600", "\n\u0301", "가나", "ａｂ"])
def test_between_two_characters_a_text_may_be_cut(text: str) -> None:
    assert is_boundary(text, 1)


def test_flags_in_a_row_are_cut_between_two_of_them() -> None:
    text = "\U0001f1e9\U0001f1ea" * 3
    assert [at for at in range(7) if is_boundary(text, at)] == [0, 2, 4, 6]


@given(st.text(max_size=30), st.integers(-2, 32))
def test_the_nearest_boundaries_enclose_a_place(text: str, at: int) -> None:
    inside = min(max(at, 0), len(text))
    before, after = boundary_before(text, at), boundary_after(text, at)
    assert 0 <= before <= inside <= after <= len(text)
    assert is_boundary(text, before)
    assert is_boundary(text, after)
    assert not any(is_boundary(text, place) for place in range(before + 1, after) if place != inside)


def test_a_heap_of_marks_is_cut_rather_than_walked_through() -> None:
    text = "a" + "\u0301" * 1000
    assert boundary_before(text, 500) == 500
    assert boundary_after(text, 500) == 500
    assert boundary_before(text, MAX_CLUSTER - 1) == 0

"""How texts are cut into words that a search compares."""

from __future__ import annotations

import pytest

from kvloom.text.words import spaced, word_run, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("parseHttpHeader", ("parse", "http", "header")),
        ("snake_case_name", ("snake", "case", "name")),
        ("花蜜 honey", ("花", "蜜", "honey")),
        ("ไทย", ("ไ", "ท", "ย")),
        ("Größe, 12 x 12!", ("größe", "12", "x")),
        ("", ()),
        ("?! …", ()),
    ],
)
def test_words_end_where_no_space_does(text: str, expected: tuple[str, ...]) -> None:
    assert words(text) == expected


def test_a_run_keeps_order_and_repetition() -> None:
    assert word_run("to be or not TO be") == ("to", "be", "or", "not", "to", "be")


def test_plain_text_is_left_as_it_is() -> None:
    assert spaced("plain words, and Names") == "plain words, and Names"

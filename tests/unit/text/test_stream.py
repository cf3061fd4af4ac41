"""Streaming: whatever way a reply comes in, the deltas make the same text."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvloom.errors import UsageError
from kvloom.text.stream import TextStream
from tests.unit.text.vocabularies import LexiconVocabulary

VOCABULARY = LexiconVocabulary()


def tokens_of(text: str) -> list[int]:
    return list(text.encode())


def stream(text: str, stop: tuple[str, ...] = ()) -> tuple[TextStream, list[str]]:
    """Byte by byte: one token for each."""
    out = TextStream(VOCABULARY, stop)
    deltas = [out.push(token) for token in tokens_of(text)]
    return out, [*deltas, out.finish()]


@given(text=st.text(st.characters(codec="utf-8")))
def test_deltas_join_to_the_text_and_never_hold_half_a_character(text: str) -> None:
    out, deltas = stream(text)
    assert "".join(deltas) == text == out.text
    assert "\ufffd" not in "".join(deltas) or "\ufffd" in text
    assert out.kept_tokens() == tuple(tokens_of(text))


@given(
    text=st.text("ab<é", max_size=40),
    stop=st.lists(st.text("ab<é", min_size=1, max_size=4), min_size=1, max_size=3, unique=True),
)
@example(text="<a<", stop=["a", "<a<"])
def test_text_ends_before_the_first_whole_stop_string_and_nothing_of_it_is_ever_given(
    text: str, stop: list[str]
) -> None:
    out, deltas = stream(text, tuple(stop))
    places = [(text.find(word) + len(word), text.find(word)) for word in stop if word in text]
    expected = text[: min(places)[1]] if places else text
    assert "".join(deltas) == expected
    assert bool(out.stopped_by) == bool(places)
    assert bytes(out.kept_tokens()).decode() == expected


def test_text_that_cannot_become_a_stop_string_is_given_at_once() -> None:
    out = TextStream(VOCABULARY, ("END",))
    assert [out.push(token) for token in tokens_of("xENx")] == ["x", "", "", "ENx"]


def test_what_was_held_back_comes_at_the_end() -> None:
    _, deltas = stream("xEN", ("END",))
    assert deltas == ["x", "", "", "EN"]


def test_a_token_that_spans_the_stop_string_is_not_kept() -> None:
    out = TextStream(VOCABULARY, ("e\n",))
    tokens = VOCABULARY.tokenize(b"file\nuser", parse_special=False)
    for token in tokens:
        out.push(token)
    assert out.text == "fil"
    assert out.kept_tokens() == ()
    assert out.push(tokens[0]) == ""


def test_control_tokens_are_silent_unless_they_are_shown() -> None:
    think = VOCABULARY.special("<think>")
    assert TextStream(VOCABULARY).push(think) == ""
    assert TextStream(VOCABULARY, shown={think}).push(think) == "<think>"


def test_half_a_character_at_the_end_is_marked() -> None:
    out = TextStream(VOCABULARY)
    assert out.push("é".encode()[0]) == ""
    assert out.finish() == "\ufffd"


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(UsageError, match="must not be empty"):
        TextStream(VOCABULARY, ("",))

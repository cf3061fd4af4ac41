"""Counts and estimates, and the cache under them."""

from __future__ import annotations

import pytest

from kvloom.text.counter import TokenCounter, estimate_tokens
from kvloom.text.tokenizer import PieceTokenizer
from tests.unit.text.vocabularies import LexiconVocabulary


class CountingVocabulary(LexiconVocabulary):
    """Remembers how often it was asked."""

    num_calls = 0

    def tokenize(self, text: bytes, *, parse_special: bool) -> list[int]:
        self.num_calls += 1
        return super().tokenize(text, parse_special=parse_special)


def test_with_a_vocabulary_counts_are_exact() -> None:
    vocabulary = LexiconVocabulary()
    count = TokenCounter(PieceTokenizer(vocabulary)).count("the user is in the file <|im_end|>")
    expected = vocabulary.tokenize(b"the user is in the file <|im_end|>", parse_special=False)
    assert (count.num_tokens, count.is_estimate) == (len(expected), False)


def test_a_long_text_is_tokenized_once() -> None:
    vocabulary = CountingVocabulary()
    counter = TokenCounter(PieceTokenizer(vocabulary))
    text = "the file " * 100
    assert counter.count(text) == counter.count(text)
    assert vocabulary.num_calls == 1


def test_special_and_plain_readings_of_one_text_are_cached_apart() -> None:
    tokenizer = PieceTokenizer(LexiconVocabulary())
    text = "<|im_end|>" * 100
    assert len(tokenizer.template(text)) == 100
    assert len(tokenizer.content(text)) > 100
    assert len(tokenizer.template(text)) == 100


@pytest.mark.parametrize(
    ("text", "num_tokens"),
    [
        ("", 0),
        ("x", 1),
        ("Four characters make a token of English prose, or so they say. ", 16),
        ("def f(a, b):\n    return {a: b[0]}\n", 11),
        ("日本語の文章です", 8),
        ("한국어", 3),
    ],
)
def test_without_one_they_are_estimates_and_say_so(text: str, num_tokens: int) -> None:
    count = TokenCounter().count(text)
    assert count.is_estimate
    assert count.num_tokens == pytest.approx(num_tokens, abs=1)


def test_estimates_learn_from_exact_counts() -> None:
    counter = TokenCounter()
    text = "some words of plain prose here " * 20
    exact = round(estimate_tokens(text) * 1.5)
    for _ in range(12):
        counter.learn(text, exact)
    assert counter.count(text).num_tokens == pytest.approx(exact, rel=0.1)


def test_sentencepiece_text_gets_no_space_of_its_own() -> None:
    tokenizer = PieceTokenizer(LexiconVocabulary(is_spm=True))
    for text in ("user", "\nuser", "\n\nuser", " user", "<|im_end|>"):
        assert tokenizer.text(tokenizer.content(text)) == text

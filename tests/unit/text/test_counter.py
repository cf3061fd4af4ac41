"""Counts and estimates, and the cache under them."""

from __future__ import annotations

import pytest

from kvloom.errors import EngineStateError
from kvloom.text.counter import TokenCounter
from kvloom.text.estimate import Estimator
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
        ("Four characters make a token of English prose, or so they say. ", 14),
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
    exact = round(counter.count(text).num_tokens * 1.5)
    for _ in range(12):
        counter.learn(text, exact)
    assert counter.count(text).num_tokens == pytest.approx(exact, rel=0.1)


def test_a_function_that_counts_elsewhere_is_asked_once_for_a_text() -> None:
    asked: list[str] = []

    def endpoint(text: str) -> int:
        asked.append(text)
        return len(text)

    counter = TokenCounter(endpoint)
    assert [counter.count(text).num_tokens for text in ("one", "two!", "one", "one")] == [3, 4, 3, 3]
    assert asked == ["one", "two!"]
    assert not counter.count("one").is_estimate
    assert counter.count("") == counter.count("")
    assert asked == ["one", "two!"]


def test_the_cache_is_bounded_and_keeps_what_was_used_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvloom.text.counter._MAX_CACHED_COUNTS", 3)
    asked: list[str] = []

    def endpoint(text: str) -> int:
        asked.append(text)
        return 1

    counter = TokenCounter(endpoint)
    for text in ("a", "b", "c", "a", "d", "a", "b"):
        counter.count(text)
    assert asked == ["a", "b", "c", "d", "b"]


def test_where_the_endpoint_fails_an_estimate_stands_in_that_has_learned_from_it() -> None:
    is_down = False

    def endpoint(text: str) -> int:
        if is_down:
            raise EngineStateError("the server is away")
        return len(text)

    estimator = Estimator()
    counter = TokenCounter(endpoint, estimator)
    text = "some words of plain prose here and there "
    for number in range(1, 9):
        assert not counter.count(text * number).is_estimate
    is_down = True
    count = counter.count(text * 20)
    assert count.is_estimate
    assert count.num_tokens == pytest.approx(len(text) * 20, rel=0.05)
    assert not counter.count(text).is_estimate
    assert counter.estimator is estimator


def test_sentencepiece_text_gets_no_space_of_its_own() -> None:
    tokenizer = PieceTokenizer(LexiconVocabulary(is_spm=True))
    for text in ("user", "\nuser", "\n\nuser", " user", "<|im_end|>"):
        assert tokenizer.text(tokenizer.content(text)) == text

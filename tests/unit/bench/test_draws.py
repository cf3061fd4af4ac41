"""Draws: the answer stands in the document that the question is about, and in no other."""

from __future__ import annotations

import re

import pytest

from kvloom.bench.draws import SCHEDULE, Draw, Kind, draw


def count(text: str) -> int:
    return len(re.findall(r"\w+|[^\w\s]", text))


@pytest.fixture(scope="module")
def draws() -> list[Draw]:
    return [draw(seed, 4, 192, count) for seed in range(len(SCHEDULE) * 2)]


def test_the_answer_is_read_off_the_document_that_is_asked_about(draws: list[Draw]) -> None:
    for drawn in draws:
        text = drawn.documents[drawn.target][1]
        if drawn.kind is Kind.CONTINUE:
            assert drawn.answer.removeprefix("```python\n") in text
        elif drawn.kind is Kind.SIGNATURE:
            signature = drawn.answer.removeprefix("```python\n").removesuffix("\n```")
            assert signature in " ".join(text.split())
        else:
            match = re.fullmatch(r"The default value of the parameter `(\w+)` of `(\w+)` is `(.+)`\.", drawn.answer)
            assert match is not None
            assert f"def {match.group(2)}(" in text
            assert match.group(1) in text


def test_the_function_that_is_asked_about_stands_in_one_document_only(draws: list[Draw]) -> None:
    asked = [drawn for drawn in draws if drawn.kind is not Kind.CONTINUE]
    assert asked
    for drawn in asked:
        name = re.findall(r"`(\w+)`", drawn.question)[-1 if drawn.kind is Kind.DEFAULT else 0]
        holding = [number for number, (_, text) in enumerate(drawn.documents) if f"def {name}(" in text]
        assert holding == [drawn.target]


def test_every_document_has_about_the_wanted_size(draws: list[Draw]) -> None:
    assert all(144 <= count(text) <= 192 for drawn in draws for _, text in drawn.documents)
    assert all(len({name for name, _ in drawn.documents}) == 4 for drawn in draws)


def test_a_seed_always_gives_the_same_draw(draws: list[Draw]) -> None:
    assert draw(3, 4, 192, count) == draws[3]
    assert len({drawn.question for drawn in draws}) == len(draws)

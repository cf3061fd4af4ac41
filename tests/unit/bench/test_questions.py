"""Questions by rule: real places, answers that only the place gives, checks that an echo does not pass."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.bench.corpus import Text, corpus, reference, texts
from kvloom.bench.questions import (
    MAX_OF_DOCUMENT,
    MAX_SAME_ANSWERS,
    Kind,
    Question,
    all_questions,
    normal,
    questions,
)
from kvloom.errors import UsageError
from kvloom.text.counter import estimate_tokens

CODE = '''"""A file."""
from base import Thing

LIMIT = 1_048_576
MODE = "careful"
TABLE = {"alpha": "first letter", "beta": 77}


def open_door(name, *, timeout=0x1F, mode="gently"):
    """Opens it."""
    if not name:
        raise DoorError("no name")
    return name
'''
REFERENCE = """Doors
*****

door.open(name, /)

   Opens the door.

   New in version 3.8.

door.close()

   Closes it.
"""


def count(text: str) -> int:
    return round(estimate_tokens(text))


def by_kind(*sources: Text) -> dict[Kind, list[Question]]:
    found: dict[Kind, list[Question]] = {kind: [] for kind in Kind}
    for question in all_questions(sources):
        found[question.kind].append(question)
    return found


@pytest.fixture(scope="module")
def asked() -> list[Question]:
    return questions(texts(), 240)


def test_the_texts_are_fifty_windows_long_and_have_names_of_their_own() -> None:
    found = texts()
    assert sum(count(text.text) for text in found) > 50 * 4096
    assert max(Counter(text.name for text in found).values()) == 1
    assert {text.is_code for text in found} == {True, False}
    assert found == texts()


def test_a_corpus_is_no_longer_than_it_has_to_be() -> None:
    found = corpus(count, 60_000)
    assert sum(count(text.text) for text in found[:-1]) < 60_000 <= sum(count(text.text) for text in found)
    assert found == texts()[: len(found)]


def test_more_text_than_the_library_has_is_refused_with_numbers() -> None:
    with pytest.raises(UsageError, match=r"of the 1,000,000,000"):
        corpus(count, 1_000_000_000)


def test_no_topic_of_the_reference_is_told_twice() -> None:
    found = reference()
    middles = [text.text[len(text.text) // 2 :][:300] for text in found]
    assert all(sum(middle in other.text for other in found) == 1 for middle in middles)


def test_every_kind_is_made_of_its_place() -> None:
    found = by_kind(Text("door.py", CODE), Text("door.rst", REFERENCE))
    made = {
        kind: [(q.text.partition(", ")[2], q.answer, q.first_line, q.last_line) for q in found[kind]] for kind in Kind
    }
    assert made[Kind.CONSTANT] == [
        ("what is the value of `LIMIT`?", "1048576", 4, 4),
        ("what is the value of `MODE`?", "careful", 5, 5),
    ]
    assert [(answer, first, last) for _, answer, first, last in made[Kind.DEFAULT]] == [("31", 9, 9), ("gently", 9, 9)]
    assert made[Kind.RAISED] == [("which exception does the function `open_door` raise?", "doorerror", 9, 12)]
    assert {answer for _, answer, _, _ in made[Kind.ENTRY]} == {"first letter", "77"}
    assert made[Kind.SINCE] == [("in which version of Python was `door.open` added?", "3.8", 4, 8)]


def test_what_a_file_says_twice_is_not_asked() -> None:
    twice = CODE.replace('MODE = "careful"', 'MODE = "careful"\nMODE = "careless"')
    assert [q.answer for q in by_kind(Text("door.py", twice))[Kind.CONSTANT]] == ["1048576"]


def test_the_place_of_every_question_holds_its_answer(asked: list[Question]) -> None:
    sources = {text.name: text for text in texts()}
    for question in asked:
        place = "\n".join(sources[question.document].lines[question.first_line - 1 : question.last_line])
        assert replace(question, rivals=()).answer in normal(place), question


def test_echoing_the_question_is_never_right(asked: list[Question]) -> None:
    for question in asked:
        assert not question.is_right(question.text)
        assert question.answer not in normal(question.text)
        assert question.is_right(question.answer)
        assert question.is_right(f"{question.text} It is `{question.answer}`.")


def test_saying_all_answers_one_after_the_other_is_seldom_right(asked: list[Question]) -> None:
    for kind in Kind:
        of_kind = [q for q in asked if q.kind is kind]
        everything = ", ".join(dict.fromkeys(q.answer for q in of_kind))
        # Whatever stands first is the answer, and the same answer is not asked for often.
        assert sum(q.is_right(everything) for q in of_kind) <= max(MAX_SAME_ANSWERS, len(of_kind) // 3), kind


def test_no_document_and_no_answer_is_asked_for_too_often(asked: list[Question]) -> None:
    assert max(Counter((q.kind, q.answer) for q in asked).values()) <= MAX_SAME_ANSWERS
    assert max(Counter((q.kind, q.document) for q in asked).values()) <= MAX_OF_DOCUMENT
    assert len({q.text for q in asked}) == len(asked)


def test_the_same_seed_draws_the_same_and_another_draws_others() -> None:
    sources = texts()[:20]
    assert questions(sources, 40) == questions(sources, 40)
    assert {q.text for q in questions(sources, 20, seed=2)} != {q.text for q in questions(sources, 20)}


def test_too_many_questions_are_refused_with_numbers() -> None:
    with pytest.raises(UsageError, match="the texts give 8 of the 50 questions"):
        questions([Text("door.py", CODE), Text("door.rst", REFERENCE)], 50)


@pytest.mark.parametrize(
    ("reply", "is_right"),
    [
        ("1048576", True),
        ("`LIMIT` is 1,048,576.", True),
        ("0x100000", True),
        ("1_048_576", True),
        ("1048576.0", True),
        ("1024, or 1048576", False),
        ("1,2", False),
        ("10485760", False),
        ("11048576", False),
        ("", False),
        ("I do not know.", False),
    ],
)
def test_numbers_are_compared_by_value_and_the_first_one_counts(reply: str, is_right: bool) -> None:
    question = Question(Kind.CONSTANT, "In door.py, what is the value of `LIMIT`?", "1048576", "door.py", 4, 4)
    assert question.is_right(reply) is is_right


@pytest.mark.parametrize(
    ("reply", "is_right"),
    [
        ("DoorError", True),
        ("doors.DoorError", True),
        ('It raises "DoorError"!', True),
        ("ValueError", False),
        ("ValueError or DoorError", False),
        ("DoorError, not ValueError", True),
        ("DoorErrors", False),
        ("NoDoorError", False),
    ],
)
def test_names_are_compared_as_whole_words_and_a_rival_before_them_is_wrong(reply: str, is_right: bool) -> None:
    asked = "In door.py, which exception does the function `open_door` raise?"
    assert Question(Kind.RAISED, asked, "doorerror", "door.py", 9, 12, ("valueerror",)).is_right(reply) is is_right


def test_a_place_is_covered_only_as_a_whole() -> None:
    question = Question(Kind.RAISED, "?", "x", "door.py", 9, 12)
    assert question.is_covered("door.py", 9, 12)
    assert question.is_covered("door.py", 1, 40)
    assert not question.is_covered("door.py", 10, 40)
    assert not question.is_covered("door.py", 1, 11)
    assert not question.is_covered("gate.py", 9, 12)


@given(st.integers(-(10**12), 10**12))
def test_a_number_has_one_spelling(value: int) -> None:
    spellings = {f"{value}", f"{value:_}", f"{value:,}"} | ({hex(value), f"{value}.0"} if value >= 0 else set())
    assert {normal(spelling) for spelling in spellings} == {str(value)}


@given(st.text(max_size=80))
def test_any_reply_can_be_checked_and_normalising_twice_changes_nothing(reply: str) -> None:
    assert normal(normal(reply)) == normal(reply)
    Question(Kind.DEFAULT, "?", "31", "door.py", 9, 9, ("7",)).is_right(reply)

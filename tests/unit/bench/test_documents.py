"""Documents and questions: real, of the wanted size, the same every time."""

from __future__ import annotations

import re

import pytest

from kvloom.bench.documents import Questions, documents, stdlib_files
from kvloom.errors import UsageError


def count(text: str) -> int:
    """Words and signs: a stand-in for a tokenizer that needs no model."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def test_documents_are_whole_lines_of_real_files_just_below_the_wanted_size() -> None:
    found = documents(count, 8, 768)
    sources = {path.stem: path.read_text(encoding="utf-8") for path in stdlib_files()}
    assert len({doc.name for doc in found}) == 8
    for doc in found:
        assert doc.text in sources[doc.name.rpartition("-")[0]]
        assert doc.text.endswith("\n")
        assert 700 < doc.num_tokens == count(doc.text) <= 768


def test_another_start_gives_other_texts() -> None:
    first = {doc.text for doc in documents(count, 8, 256)}
    later = {doc.text for doc in documents(count, 8, 256, start=1)}
    assert not first & later


def test_documents_are_the_same_every_time() -> None:
    assert documents(count, 5, 300) == documents(count, 5, 300)


def test_more_documents_than_the_library_holds_are_refused_with_numbers() -> None:
    with pytest.raises(UsageError, match="of the 3 documents of 10000000 tokens"):
        documents(count, 3, 10_000_000)


def test_questions_have_exactly_the_wanted_size_and_are_never_the_same() -> None:
    questions = Questions(count, 32, seed=1)
    asked = [questions.next() for _ in range(50)]
    assert {count(text) for text in asked} == {32}
    assert len(set(asked)) == 50
    again = Questions(count, 32, seed=1)
    assert [again.next() for _ in range(50)] == asked

"""Passages: whole, small, with lines and headings that are right, and stable under edits."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.index.passages import PASSAGE_SIZES, Passage, passages
from kvloom.read.document import DocumentKind
from kvloom.text.splitter import SplitSizes
from tests.unit.index.texts import prose

SMALL = SplitSizes(whole_tokens=16, least_tokens=4)


def headed(text: str, kind: DocumentKind) -> dict[str, str]:
    """The heading over each passage, by the passage's last word; cut so small that every heading has one."""
    return {p.text.split()[-1]: p.heading for p in passages(text, kind, SMALL) if p.text.split()}


@given(st.text(alphabet="ab \n\r\t\f#文é,;", max_size=2_000), st.sampled_from(DocumentKind))
def test_joined_they_are_the_text_and_their_lines_are_where_they_stand(text: str, kind: DocumentKind) -> None:
    found = passages(text, kind, SMALL)
    assert "".join(p.text for p in found) == text
    start = 0
    for p in found:
        before, through = text[:start], text[: start + len(p.text)]
        assert p.first_line == 1 + len(re.findall(r"\r\n|\r(?!\n)|(?<!\r)\n", _whole(before, text)))
        assert p.first_line <= p.last_line <= 1 + len(re.findall(r"\r\n|\r|\n", through))
        start += len(p.text)


def _whole(before: str, text: str) -> str:
    """What stands before a place, without half of a line's end."""
    return before[:-1] if before.endswith("\r") and text[len(before) :].startswith("\n") else before


def test_a_passage_cites_its_first_and_last_line() -> None:
    text = "".join(f"# Part {n}\n\n{'word ' * 12}\n" for n in range(1, 5))
    found = passages(text, DocumentKind.MARKDOWN, SMALL)
    lines = text.splitlines(keepends=True)
    assert len(found) > 1
    for p in found:
        assert "".join(lines[p.first_line - 1 : p.last_line]) == p.text


def test_passages_of_a_long_text_are_near_the_target() -> None:
    found = passages(prose(400_000))
    sizes = [len(p.text) / 4 for p in found]
    assert max(sizes) <= PASSAGE_SIZES.whole_tokens
    assert 360 <= sum(sizes) / len(sizes) <= 660


def _num_new(before: tuple[Passage, ...], after: tuple[Passage, ...]) -> int:
    return sum((Counter(p.text for p in after) - Counter(p.text for p in before)).values())


@pytest.mark.parametrize("seed", range(2))
def test_an_edit_of_one_paragraph_in_a_megabyte_changes_at_most_two_passages(seed: int) -> None:
    text = prose(1_000_000, seed=seed)
    paragraphs = text.split("\n\n")
    draw = random.Random(seed)
    before = passages(text, DocumentKind.MARKDOWN)
    for _ in range(4):
        edited = list(paragraphs)
        number = draw.choice([n for n, paragraph in enumerate(paragraphs) if len(paragraph) > 200])
        words = edited[number].split()
        words[draw.randrange(len(words))] = "edited"
        edited[number] = " ".join(words)
        assert 1 <= _num_new(before, passages("\n\n".join(edited), DocumentKind.MARKDOWN)) <= 2


def test_markdown_headings_are_the_way_to_a_passage() -> None:
    text = (
        "preface preface preface preface preface preface one\n\n"
        "# Bees\n\nsome words about all of them and their two\n\n"
        "## Food ##\n\nnectar and pollen are what they live on three\n\n"
        "```\n# no heading but a comment in some code four\n```\n\n"
        "Homes\n=====\n\nhives and hollow trees and holes in walls five\n"
    )
    found = headed(text, DocumentKind.MARKDOWN)
    assert found["one"] == ""
    assert found["two"] == "Bees"
    assert found["three"] == "Bees › Food"
    assert found["five"] == "Homes"
    assert not any("comment" in heading for heading in found.values())


def test_definitions_are_the_way_in_code() -> None:
    text = (
        "import one\n\n\nclass Bee:\n    wings = 4\n    legs = 6\n    name = 'a bee of some kind' # two\n\n"
        "    def fly(self, far):\n        return self.wings * far * 3 * 4 * 5 * 6 # three\n\n\n"
        "async def hive(of):\n    return [Bee() for _ in range(of * 1000 * 1000)] # four\n"
    )
    found = headed(text, DocumentKind.CODE)
    assert found["three"] == "class Bee › def fly"
    assert found["four"] == "def hive"


def test_chapters_and_underlines_are_headings_of_prose() -> None:
    text = (
        "Title page of the book\n\nCHAPTER I. Loomings\n\nCall me by some name that is long enough for this one\n\n"
        "Usage\n-----\n\nIt is used by using it, and by nothing else at all two\n"
    )
    found = headed(text, DocumentKind.PROSE)
    assert found["one"] == "CHAPTER I. Loomings"
    assert found["two"].endswith("Usage")


def test_a_passage_over_several_pages_of_a_pdf_says_them_all() -> None:
    text = "\n\f".join(f"On page {number}." for number in range(1, 4)) + "\n\f\n\f"
    assert [one.heading for one in passages(text, DocumentKind.PDF)] == ["pages 1-3"]


def test_a_pdf_says_its_page() -> None:
    text = "\n\f".join(f"{'words of this page ' * 4}{number}" for number in ("one", "two", "three"))
    assert set(headed(text, DocumentKind.PDF).values()) == {"page 1", "page 2", "page 3"}


def test_headings_have_an_end() -> None:
    (found,) = passages(f"# {'long ' * 1000}\n\ntext", DocumentKind.MARKDOWN, SplitSizes(10_000, 100))
    assert len(found.heading) <= 120

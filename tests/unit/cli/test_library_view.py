"""How the sources of a reply are cited: so that somebody who opens the file finds them."""

from __future__ import annotations

import pytest

from kvloom.cli.library_view import cited, place, sources_line
from kvloom.session.values import Source
from kvloom.types import ChunkId, TierName


def source(document: str, heading: str) -> Source:
    return Source(
        "town", document, 12, 30, heading, ChunkId("ab" * 32), "name", 1.0, 1.0, ("bell",), 100, TierName.NONE
    )


@pytest.mark.parametrize(
    ("document", "heading", "shown"),
    [
        ("book.md", "page 62", "book.md:12-30"),
        ("book.pdf", "page 62", "book.pdf p. 62"),
        ("Book.PDF", "pages 62-63", "Book.PDF pp. 62–63"),
        ("book.pdf", "", "book.pdf:12-30"),
        ("book.pdf", "page of the bells", "book.pdf:12-30"),
    ],
)
def test_a_passage_of_a_pdf_is_cited_by_its_pages(document: str, heading: str, shown: str) -> None:
    assert place(source(document, heading)) == cited(source(document, heading)) == shown


def test_a_passage_of_html_is_cited_with_its_heading() -> None:
    assert cited(source("book.html", "Town › Bells")) == 'book.html:12-30 "Town › Bells"'
    assert cited(source("book.html", "")) == "book.html:12-30"


def test_the_line_below_a_reply_names_them() -> None:
    line = sources_line([source("book.pdf", "page 2"), source("book.md", "Bells")])
    assert line == "sources: book.pdf p. 2 (abababababab), book.md:12-30 (abababababab)"

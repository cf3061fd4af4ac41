"""Text out of PDF files, and the words for those that give none."""

from __future__ import annotations

import io
import random

import pytest
from pypdf import PdfReader, PdfWriter

from kvloom.errors import ContentError
from kvloom.read.document import DocumentKind, ReadLimits
from kvloom.read.pdf import PAGE_BREAK, read_pdf
from tests.unit.read.pdf_files import pdf_of, tex_pdf_of

LIMITS = ReadLimits()


def locked(password: str) -> bytes:
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf_of([["secret words"]]))))
    writer.encrypt(user_password=password, owner_password="owner", algorithm="RC4-128")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def test_pages_come_in_order_with_a_break_between() -> None:
    extract = read_pdf(pdf_of([["The first page", "has two lines"], ["The second page"]]), "a.pdf", LIMITS)
    assert extract.kind is DocumentKind.PDF
    first, second = extract.text.split(PAGE_BREAK)
    assert first.splitlines() == ["The first page", "has two lines"]
    assert second == "The second page"
    assert extract.note == ""


def test_gaps_between_words_are_spaces_and_gaps_inside_of_them_are_none() -> None:
    lines: list[list[str | int]] = [
        ["The", 200, "bell", 230, "in", 250, "the", 180, "T", -80, "o", 120, "w", 40, "er"],
        ["rings", 200, "A", 110, "V", 60, "E", 333, "twice"],
    ]
    extract = read_pdf(tex_pdf_of(lines), "a.pdf", LIMITS)
    assert extract.text.splitlines() == ["The bell in the Tower", "rings AVE twice"]
    assert extract.note == ""


def test_lines_whose_words_run_into_each_other_are_told() -> None:
    glued, whole, other = "Keepersringthebells" * 4, "The keepers ring all of the bells " * 3, "0123456789" * 9
    extract = read_pdf(pdf_of([[glued, whole, whole], [glued, other, "short"]]), "a.pdf", LIMITS)
    assert extract.note.startswith("its words run into each other: 2 of 5 long lines have hardly a space")
    assert read_pdf(pdf_of([[glued, *[whole] * 9, other]]), "a.pdf", LIMITS).note == ""


def test_pages_without_text_are_said_to_be_scanned() -> None:
    writer = PdfWriter()
    for _ in range(3):
        writer.add_blank_page(100, 100)
    out = io.BytesIO()
    writer.write(out)
    with pytest.raises(ContentError, match=r"scan\.pdf has 3 pages and no text, .*ocrmypdf"):
        read_pdf(out.getvalue(), "scan.pdf", LIMITS)


def test_one_locked_by_a_password_is_refused() -> None:
    with pytest.raises(ContentError, match=r"locked .*qpdf --decrypt"):
        read_pdf(locked("pass"), "a.pdf", LIMITS)


def test_one_locked_for_printing_only_is_read() -> None:
    assert "secret words" in read_pdf(locked(""), "a.pdf", LIMITS).text


def test_more_pages_than_the_limit_are_refused() -> None:
    with pytest.raises(ContentError, match=r"has 3 pages, the limit is 2"):
        read_pdf(pdf_of([["one"], ["two"], ["three"]]), "a.pdf", ReadLimits(max_pdf_pages=2))


def test_more_text_than_the_limit_is_refused() -> None:
    with pytest.raises(ContentError, match=r"over 10 characters"):
        read_pdf(pdf_of([["one and two and three"]]), "a.pdf", ReadLimits(max_text_chars=10))


@pytest.mark.parametrize("seed", range(40))
def test_damaged_bytes_are_text_or_words_and_never_a_traceback(seed: int) -> None:
    draw = random.Random(seed)
    data = bytearray(pdf_of([["The first page"], ["The second page"]]))
    for _ in range(draw.choice([1, 5, 40])):
        data[draw.randrange(8, len(data))] = draw.randrange(256)
    if seed % 3 == 0:
        del data[draw.randrange(8, len(data)) :]
    try:
        extract = read_pdf(bytes(data), "a.pdf", LIMITS)
    except ContentError:
        return
    assert extract.text
    extract.text.encode()

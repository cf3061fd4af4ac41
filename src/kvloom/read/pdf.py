"""Takes the text out of a PDF with pypdf, page by page. Knows no letter recognition: a scanned page has no text."""

from __future__ import annotations

import io
import logging
import struct
import zlib
from functools import cache
from typing import Any

from kvloom.errors import ContentError
from kvloom.read.document import DocumentKind, Extract, ReadLimits

PAGE_BREAK = "\f"
"""Stands before every page but the first, as `pdftotext` writes it."""

_BROKEN = (
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    OSError,
    AssertionError,
    zlib.error,
    struct.error,
)
"""What pypdf lets through, beside its own errors, where a file is damaged."""

_MOST_GAP = 165.0
"""Thousandths of the font's size: a wider gap stands between words. The spaces of fonts are 250 to 350 wide, set text
shrinks them to 200; letters are kerned by up to 120."""

_LONG_LINE = 60
_LETTERS_PER_SPACE = 14
_MOST_GLUED = 0.1
"""Of the long lines: of manuals with their spaces under 1 % look so, of Python's and C's sources 1 and 2 %."""


def read_pdf(data: bytes, name: str, limits: ReadLimits) -> Extract:
    """The text of a PDF's pages. Raises ContentError for a damaged or locked one and for one without text."""
    from pypdf import PdfReader
    from pypdf.errors import DependencyError, PyPdfError

    # It tells of every small fault of a file; a reader of documents can do nothing about them.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    _bound_gaps()
    try:
        reader = PdfReader(io.BytesIO(data), strict=False)
        if reader.is_encrypted and not reader.decrypt(""):
            raise ContentError(f"{name} is locked by a password: save it without one (qpdf --decrypt), and read that")
        num_pages = len(reader.pages)
    except DependencyError as exc:
        raise ContentError(f"{name} is locked: save it without a password (qpdf --decrypt), and read that") from exc
    except (PyPdfError, *_BROKEN) as exc:
        raise ContentError(f"{name} is a damaged PDF ({_reason(exc)}): print it anew to a PDF, and read that") from exc
    if num_pages > limits.max_pdf_pages:
        raise ContentError(f"{name} has {num_pages:,} pages, the limit is {limits.max_pdf_pages:,}: split it")
    pages: list[str] = []
    num_chars, num_failed = 0, 0
    for number in range(num_pages):
        try:
            page = _clean(reader.pages[number].extract_text())
        except (PyPdfError, DependencyError, *_BROKEN):
            page, num_failed = "", num_failed + 1
        pages.append(page)
        num_chars += len(page)
        if num_chars > limits.max_text_chars:
            raise ContentError(f"{name} holds over {limits.max_text_chars:,} characters of text: split it")
    if not num_chars:
        raise ContentError(_without_text(name, num_pages, num_failed))
    notes = [f"{num_failed} of {num_pages} pages could not be read"] if num_failed else []
    text = f"\n{PAGE_BREAK}".join(pages)
    return Extract(text, DocumentKind.PDF, "; ".join([*notes, *_glued(text)]))


@cache
def _bound_gaps() -> None:
    """Has pypdf take a gap of over `_MOST_GAP` for a space, once for the process.

    pypdf wants half of the width that the font has at the code of a space. Where the font has no space, as the subsets
    that TeX embeds, another letter stands there, and the words of a line run into each other: in two manuals set by TeX
    20 % and 53 % of the long lines had hardly a space, now 0.4 % and 1 %, and of 120,592 words 3 are other ones than
    those that PDFium finds. It offers no setting for that; one that is built otherwise stays as it is.
    """
    try:
        from pypdf._text_extraction._text_extractor import TextExtraction

        set_font = TextExtraction._handle_tf
        if not isinstance(TextExtraction()._space_width, float):
            return
    except (ImportError, AttributeError, TypeError):
        return

    def with_bound(self: Any, operands: Any) -> None:
        set_font(self, operands)
        self._space_width = min(self._space_width, _MOST_GAP)

    TextExtraction._handle_tf = with_bound  # type: ignore[method-assign]


def _glued(text: str) -> list[str]:
    """A note, where words run into each other. Only letters that have a case count: others may be written without
    spaces."""
    num_cased = [
        (sum(char.islower() or char.isupper() for char in line), line.count(" "))
        for line in text.splitlines()
        if len(line) > _LONG_LINE
    ]
    num_glued = sum(spaces * _LETTERS_PER_SPACE < cased for cased, spaces in num_cased)
    if num_glued <= _MOST_GLUED * len(num_cased):
        return []
    return [
        f"its words run into each other: {num_glued:,} of {len(num_cased):,} long lines have hardly a space "
        "(pdftotext IN.pdf OUT.txt may find them)"
    ]


def _without_text(name: str, num_pages: int, num_failed: int) -> str:
    if num_failed:
        return f"{name} is damaged: {num_failed} of its {num_pages} pages cannot be read, the rest is without text"
    return (
        f"{name} has {num_pages} page{'s' * (num_pages != 1)} and no text, as scanned ones have: "
        "let its letters be recognized first (ocrmypdf IN.pdf OUT.pdf), and read that"
    )


def _clean(text: str) -> str:
    """Broken fonts give NULs and halves of surrogate pairs; a page's own breaks are no pages."""
    text = text.replace("\x00", "").replace(PAGE_BREAK, "\n").rstrip()
    return text.encode(errors="replace").decode()


def _reason(exc: BaseException) -> str:
    return " ".join(str(exc).split())[:120] or type(exc).__name__

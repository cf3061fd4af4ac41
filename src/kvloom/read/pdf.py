"""Takes the text out of a PDF with pypdf, page by page. Knows no letter recognition: a scanned page has no text."""

from __future__ import annotations

import io
import logging
import struct
import zlib

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


def read_pdf(data: bytes, name: str, limits: ReadLimits) -> Extract:
    """The text of a PDF's pages. Raises ContentError for a damaged or locked one and for one without text."""
    from pypdf import PdfReader
    from pypdf.errors import DependencyError, PyPdfError

    # It tells of every small fault of a file; a reader of documents can do nothing about them.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
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
    note = f"{num_failed} of {num_pages} pages could not be read" if num_failed else ""
    return Extract(f"\n{PAGE_BREAK}".join(pages), DocumentKind.PDF, note)


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

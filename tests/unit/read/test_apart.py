"""Reading in a process of its own gives what reading here gives, and is given up when it takes too long."""

from __future__ import annotations

import time

import pytest

from kvloom.errors import CancelledError, ContentError
from kvloom.read import ReadLimits, extract
from kvloom.read.apart import extract_apart
from tests.unit.read.pdf_files import pdf_of

LIMITS = ReadLimits(max_html_tags=100_000)
SLOW = b"<a " * 40_000 + b"bell"
"""Minutes for Python's parser, which begins anew at each of them."""


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.pdf", pdf_of([["The bell", "of the chapel"], ["A second page"]])),
        ("a.html", "<h1>Glocke</h1><p>Läutet um <b>zwölf</b>.</p>".encode()),
        ("large.html", b"<p>The bell of the chapel. " * 20_000),
        ("a.txt", "Läutet.\n".encode()),
    ],
)
def test_it_gives_the_same_text(name: str, data: bytes) -> None:
    assert extract_apart(data, name, LIMITS, 30) == extract(data, name, LIMITS)


@pytest.mark.parametrize(("name", "data"), [("a.pdf", b"%PDF-1.7"), ("a.html", b"<p>"), ("a.html", b"<p>" * 9)])
def test_it_refuses_in_the_same_words(name: str, data: bytes) -> None:
    limits = ReadLimits(max_html_tags=8)
    with pytest.raises(ContentError) as here:
        extract(data, name, limits)
    with pytest.raises(ContentError) as apart:
        extract_apart(data, name, limits, 30)
    assert str(apart.value) == str(here.value)


def test_what_takes_too_long_is_given_up() -> None:
    began_s = time.monotonic()
    with pytest.raises(ContentError, match="within 1 s"):
        extract_apart(SLOW, "slow.html", LIMITS, 1)
    assert time.monotonic() - began_s < 10


def test_what_nobody_wants_any_more_is_given_up() -> None:
    with pytest.raises(CancelledError):
        extract_apart(SLOW, "slow.html", LIMITS, 60, lambda: True)

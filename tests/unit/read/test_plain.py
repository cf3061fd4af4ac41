"""Bytes of text files: which encodings are read, and which are refused with which words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.errors import ContentError
from kvloom.read.document import DocumentKind
from kvloom.read.plain import kind_of, read_plain

FRENCH = "Les élèves où ça a été dit, à l'école de la forêt. " * 20
RUSSIAN = "Москва - столица России. " * 20


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.md", DocumentKind.MARKDOWN),
        ("README.MARKDOWN", DocumentKind.MARKDOWN),
        ("a/b.py", DocumentKind.CODE),
        ("Makefile", DocumentKind.CODE),
        ("a.txt", DocumentKind.PROSE),
        ("LICENSE", DocumentKind.PROSE),
        ("book.rst", DocumentKind.PROSE),
    ],
)
def test_the_kind_goes_by_the_name(name: str, kind: DocumentKind) -> None:
    assert kind_of(name) is kind


def test_a_file_without_suffix_that_names_its_interpreter_is_code() -> None:
    assert read_plain(b"#!/bin/sh\nls\n", "run").kind is DocumentKind.CODE


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_unicode_is_read_exactly(encoding: str) -> None:
    text = "é 文 🎉\r\nsecond\n"
    assert read_plain(text.encode(encoding), "a.txt").text == text


@pytest.mark.parametrize("mark", [b"\xfe\xff", b"\x00\x00\xfe\xff"])
def test_the_other_order_of_bytes_is_told_by_its_mark(mark: bytes) -> None:
    name = "utf-16-be" if len(mark) == 2 else "utf-32-be"
    extract = read_plain(mark + "größer".encode(name), "a.txt")
    assert extract.text == "größer"
    assert extract.note == f"read as UTF-{16 if len(mark) == 2 else 32}"


def test_western_text_of_one_byte_a_letter_is_read_and_said() -> None:
    extract = read_plain(FRENCH.encode("cp1252"), "a.txt")
    assert extract.text == FRENCH
    assert extract.note == "read as Windows-1252"


@pytest.mark.parametrize("encoding", ["koi8-r", "cp1251", "iso-8859-5"])
def test_another_script_of_one_byte_a_letter_is_refused_and_not_misread(encoding: str) -> None:
    with pytest.raises(ContentError, match=r"a\.txt is not UTF-8, .*iconv"):
        read_plain(RUSSIAN.encode(encoding), "a.txt")


def test_a_few_broken_bytes_in_unicode_are_replaced_and_counted() -> None:
    extract = read_plain(FRENCH.encode() + b"\xff\xfe!" + FRENCH.encode(), "a.txt")
    assert extract.text == f"{FRENCH}\ufffd\ufffd!{FRENCH}"
    assert extract.note.startswith("2 broken bytes")


def test_one_broken_byte_in_a_long_ascii_log_is_replaced() -> None:
    extract = read_plain(b"line of a log\n" * 1000 + b"\x80\n", "a.log")
    assert extract.text.endswith("\ufffd\n")


@pytest.mark.parametrize("data", [b"", b" \n\t", b"a\x00b", b"\x89PNG\r\n\x1a\n123", b"\xff\xfea", b"\xff\xfe"])
def test_what_is_no_text_is_refused_with_its_name(data: bytes) -> None:
    with pytest.raises(ContentError, match=r"^a\.txt"):
        read_plain(data, "a.txt")


@given(st.binary(max_size=300))
def test_any_bytes_are_text_or_refused(data: bytes) -> None:
    try:
        text = read_plain(data, "a.txt").text
    except ContentError:
        return
    assert text.strip()
    assert "\x00" not in text
    text.encode()

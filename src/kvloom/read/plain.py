"""Text files: which kind they are by their suffix, and how their bytes are read as text. Knows no path on a disk."""

from __future__ import annotations

import re
from pathlib import PurePath

from kvloom.chunk.content import read_bytes
from kvloom.errors import ContentError
from kvloom.read.document import DocumentKind, Extract

_MARKDOWN = frozenset({".md", ".markdown", ".mdown", ".mkd", ".mdx", ".qmd"})
_CODE_SUFFIXES = (
    ".py .pyi .pyx .js .mjs .cjs .jsx .ts .tsx .java .kt .kts .scala .groovy .c .h .cc .cpp .cxx .hh .hpp .hxx .cu .cl "
    ".cs .fs .vb .go .rs .zig .nim .swift .m .mm .d .rb .php .pl .pm .lua .r .jl .hs .ml .mli .clj .cljs .ex .exs .erl "
    ".el .lisp .scm .sh .bash .zsh .fish .ps1 .bat .sql .proto .thrift .graphql .tf .cmake .mk .gradle .s .asm .v .sv "
    ".vhd .css .scss .less .vue .svelte .json .jsonl .yaml .yml .toml .ini .cfg .conf .xml .svg .tex .bib .dart .sol "
    ".ipynb .diff .patch"
)
_CODE = frozenset(_CODE_SUFFIXES.split())
_CODE_NAMES = frozenset({"makefile", "dockerfile", "rakefile", "gemfile", "justfile", "cmakelists.txt"})

_WIDE_MARKS = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
"""Byte order marks; the longer first, for one begins with the other."""
_HIGH_RUN = re.compile(rb"[\x80-\xff]{3,}")
_MAX_RUN_SHARE = 0.1
"""Of the bytes over 0x7f, those in runs of three and more: accents stand alone, other scripts write whole words so."""


def read_plain(data: bytes, name: str) -> Extract:
    """The text of a file's bytes. Raises ContentError, with what to do, for what is no text.

    UTF-8; UTF-16 and UTF-32 by their byte order marks; else Windows-1252 where the bytes look like it. Single broken
    bytes in UTF-8 are replaced. What was done stands in the note.
    """
    kind = kind_of(name, data)
    for mark, encoding in _WIDE_MARKS:
        if data.startswith(mark):
            return Extract(_wide(data, name, encoding), kind, f"read as {encoding.upper()}")
    try:
        return Extract(read_bytes(data, name=name, max_bytes=len(data)).text, kind)
    except ContentError as exc:
        if not isinstance(exc.__cause__, UnicodeDecodeError):
            raise
    return _mended(data, name, kind)


def kind_of(name: str, data: bytes = b"") -> DocumentKind:
    """By the suffix, or by what the first line says where there is none."""
    path = PurePath(name.lower())
    if path.suffix in _MARKDOWN:
        return DocumentKind.MARKDOWN
    if path.suffix in _CODE or path.name in _CODE_NAMES or data.startswith(b"#!"):
        return DocumentKind.CODE
    return DocumentKind.PROSE


def _wide(data: bytes, name: str, encoding: str) -> str:
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as exc:
        raise ContentError(
            f"{name} begins as {encoding.upper()} and is broken at byte {exc.start}: save it as UTF-8"
        ) from exc
    # Through the same checks as any other text: nothing empty, no NUL.
    return read_bytes(text.encode(errors="replace"), name=name, max_bytes=2 * len(data)).text


def _mended(data: bytes, name: str, kind: DocumentKind) -> Extract:
    """Bytes that are not UTF-8 throughout: broken in few places, or of an older encoding."""
    text = data.decode(errors="replace")
    num_broken = text.count("\ufffd") - data.count("\ufffd".encode())
    num_letters = sum(1 for c in text if c > "\x7f") - text.count("\ufffd")
    if num_letters >= num_broken or num_broken <= max(1, len(data) // 10_000):
        content = read_bytes(data, name=name, max_bytes=len(data), repair=True)
        return Extract(content.text, kind, f"{num_broken:,} broken bytes of UTF-8 stand as \ufffd")
    num_high = sum(byte > 0x7F for byte in data)
    try:
        num_in_runs = sum(len(run) for run in _HIGH_RUN.findall(data))
        if num_in_runs > _MAX_RUN_SHARE * num_high:
            raise UnicodeError(f"{num_in_runs:,} of {num_high:,} bytes over 0x7f stand in runs")
        text = data.decode("cp1252")
    except UnicodeError as exc:
        raise ContentError(
            f"{name} is not UTF-8, and which older encoding it is in cannot be told: convert it "
            "(iconv -f SHIFT-JIS -t UTF-8, or whichever it is)"
        ) from exc
    return Extract(read_bytes(text.encode(), name=name, max_bytes=3 * len(data)).text, kind, "read as Windows-1252")

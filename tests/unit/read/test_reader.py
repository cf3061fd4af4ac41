"""Files into documents, end to end: kinds, limits, files that change or go, what is known already."""

from __future__ import annotations

import hashlib
import os
import tracemalloc
from pathlib import Path

import pytest

from kvloom.errors import UsageError
from kvloom.read import Document, DocumentKind, FoundFile, ReadLimits, Skipped, SkipReason, Unchanged, num_files, read
from tests.unit.read.pdf_files import pdf_of


def one(path: Path, limits: ReadLimits | None = None) -> Document | Skipped:
    (item,) = read([path], limits)
    assert not isinstance(item, Unchanged)
    return item


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_a_document_carries_text_digest_and_what_the_file_looked_like(tmp_path: Path) -> None:
    path = write(tmp_path / "a.md", b"# Title\n\nwords\n")
    document = one(path)
    assert isinstance(document, Document)
    assert document.text == "# Title\n\nwords\n"
    assert document.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert document.kind is DocumentKind.MARKDOWN
    assert (document.size_bytes, document.mtime_ns) == (15, path.stat().st_mtime_ns)
    assert document.path.is_absolute()


def test_each_kind_has_its_reader(tmp_path: Path) -> None:
    write(tmp_path / "t/a.html", b"<p>in html</p>")
    write(tmp_path / "t/b.pdf", pdf_of([["in pdf"]]))
    write(tmp_path / "t/c.py", b"x = 1\n")
    write(tmp_path / "t/d", pdf_of([["no suffix"]]))
    write(tmp_path / "t/e", b"<!DOCTYPE html><p>page</p>")
    kinds = {item.name: item.kind for item in read([tmp_path / "t"]) if isinstance(item, Document)}
    assert kinds == {
        "t/a.html": DocumentKind.HTML,
        "t/b.pdf": DocumentKind.PDF,
        "t/c.py": DocumentKind.CODE,
        "t/d": DocumentKind.PDF,
        "t/e": DocumentKind.HTML,
    }


def test_a_log_of_a_gigabyte_is_refused_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.log"
    with path.open("wb") as file:
        file.truncate(1_000_000_000)
    tracemalloc.start()
    try:
        item = one(path)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(item, Skipped)
    assert item.reason is SkipReason.TOO_LARGE
    assert (
        "1,000,000,000 bytes, the limit for one file is 268,435,456: split it, or raise recall.max_file_bytes"
        in item.why
    )
    assert peak_bytes < 1_000_000


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.bin", b"\x00\x01\x02", SkipReason.NOT_TEXT),
        ("a.png", b"\x89PNG\r\n\x1a\n....", SkipReason.NOT_TEXT),
        ("a.html", b"\x00\x01\x02binary", SkipReason.NOT_TEXT),
        ("a.pdf", b"\x89PNG\r\n\x1a\n....", SkipReason.NOT_TEXT),
        ("a.pdf", b"%PDF-1.7 nothing behind", SkipReason.NOT_TEXT),
        ("a.txt", b"", SkipReason.EMPTY),
        ("a.pdf", b"", SkipReason.EMPTY),
        ("a.html", b"", SkipReason.EMPTY),
        ("a.txt", b"\n\n", SkipReason.EMPTY),
    ],
)
def test_what_is_no_text_is_skipped_with_words_that_follow_its_name(
    tmp_path: Path, name: str, data: bytes, reason: SkipReason
) -> None:
    item = one(write(tmp_path / name, data))
    assert isinstance(item, Skipped)
    assert item.reason is reason
    assert item.why and str(tmp_path) not in item.why
    assert not item.why.startswith(name)


def test_a_file_that_vanishes_between_finding_and_reading_is_skipped(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        write(tmp_path / "t" / name, b"words")

    def known(found: FoundFile) -> None:
        if found.path.name == "a.txt":
            found.path.unlink()

    gone, kept = read([tmp_path / "t"], known=known)
    assert isinstance(gone, Skipped)
    assert gone.reason is SkipReason.GONE
    assert isinstance(kept, Document)


def test_a_file_that_never_rests_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.log", b"0")
    real_fstat = os.fstat

    def fstat(handle: int) -> os.stat_result:
        with path.open("ab") as file:
            file.write(b"+")
        return real_fstat(handle)

    monkeypatch.setattr(os, "fstat", fstat)
    item = one(path)
    assert isinstance(item, Skipped)
    assert item.reason is SkipReason.CHANGING
    assert "changes while it is read" in item.why


def test_a_folder_of_all_sorts_gives_something_for_every_file(tmp_path: Path) -> None:
    write(tmp_path / "t/a.txt", "größer\n".encode("cp1252"))
    write(tmp_path / "t/b.txt", "größer\n".encode())
    write(tmp_path / "t/c.txt", "größer\n".encode("utf-16"))
    write(tmp_path / "t/d.bin", b"\x00")
    items = list(read([tmp_path / "t"]))
    assert [item.text for item in items if isinstance(item, Document)] == ["größer\n"] * 3
    assert [item.name for item in items if isinstance(item, Skipped)] == ["t/d.bin"]
    assert num_files([tmp_path / "t"]) == 4


def test_known_files_are_not_opened(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"words")
    asked: list[FoundFile] = []

    def known(found: FoundFile) -> Unchanged:
        asked.append(found)
        path.unlink()
        return Unchanged(found.name, found.path)

    mtime_ns = path.stat().st_mtime_ns
    (item,) = read([str(path)], known=known)
    assert isinstance(item, Unchanged)
    assert asked == [FoundFile("a.txt", item.path, 5, mtime_ns)]


def test_a_page_has_a_limit_of_its_own_also_where_only_its_first_bytes_tell(tmp_path: Path) -> None:
    limits = ReadLimits(max_html_bytes=20)
    for name in ("page.html", "page", "page.txt"):
        (tmp_path / name).write_text("<html><p>" + "word " * 10)
        item = one(tmp_path / name, limits)
        assert isinstance(item, Skipped) == (name != "page.txt")
        if isinstance(item, Skipped):
            assert item.why.endswith("is 20: split it")


def test_a_limit_under_one_is_refused() -> None:
    with pytest.raises(UsageError, match="max_pdf_pages is 0"):
        ReadLimits(max_pdf_pages=0)

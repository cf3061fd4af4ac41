"""What may become a chunk, and what is refused with which words."""

from __future__ import annotations

import gzip
import hashlib
import os
import socket
import subprocess
from pathlib import Path

import pytest

from kvloom.chunk.content import Content, Encoding, read_file, read_text
from kvloom.errors import ContentError


def write(folder: Path, data: bytes, name: str = "file.txt") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "data", [b"plain\n", b"windows\r\nlines\r\n", "é 文 🎉".encode(), b"\xef\xbb\xbfwith a mark\n", b"no end"]
)
def test_the_id_is_what_sha256sum_prints(tmp_path: Path, data: bytes) -> None:
    path = write(tmp_path, data)
    printed = subprocess.run(["sha256sum", path], capture_output=True, check=True, text=True).stdout
    content = read_file(path)
    assert content.id == printed.split()[0]
    assert content.data == data


def test_text_is_the_bytes_without_a_byte_order_mark_and_with_its_line_ends(tmp_path: Path) -> None:
    content = read_file(write(tmp_path, b"\xef\xbb\xbfa\r\nb\n"))
    assert content.text == "a\r\nb\n"
    assert content.encoding is Encoding.UTF8_BOM


def test_the_source_is_remembered_for_finding_changes(tmp_path: Path) -> None:
    path = write(tmp_path, b"abc")
    source = read_file(path).source
    assert source is not None
    assert (source.path, source.size_bytes, source.mtime_ns) == (path.absolute(), 3, path.stat().st_mtime_ns)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b" \n\t\n", "only white space"),
        (b"ab\x00cd", "a NUL byte at 2"),
        (b"\x89PNG\r\n\x1a\n1234", "PNG image.*not supported"),
        (b"\xff\xd8\xff\xe0", "JPEG image.*not supported"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "WebP"),
        (b"%PDF-1.7 text", "PDF.*pdftotext"),
        (b"PK\x03\x04rest", "zip archive"),
        (gzip.compress(b"abc", mtime=0), "gunzip"),
        (b"\x7fELF\x02\x01", "a program"),
        ("wide".encode("utf-16"), "UTF-16.*iconv"),
        (b"GGUF\x03\x00\x00\x00", "GGUF"),
        (b"SQLite format 3\x00", "SQLite"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_refused_with_what_to_do(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(ContentError, match=words):
        read_file(write(tmp_path, data))


def test_text_that_only_begins_like_a_format_is_text(tmp_path: Path) -> None:
    assert read_file(write(tmp_path, b"GGUF is a file format.\n")).text == "GGUF is a file format.\n"


def test_a_missing_file_a_directory_and_a_pipe_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ContentError, match="no such file"):
        read_file(tmp_path / "nothing.txt")
    with pytest.raises(ContentError, match="is a directory"):
        read_file(tmp_path)
    with pytest.raises(ContentError, match="no such file"):
        read_file(write(tmp_path, b"x") / "below")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ContentError, match="pipe"):
        read_file(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        with pytest.raises(ContentError, match="socket"):
            read_file(tmp_path / "s")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, b"secret")
    path.chmod(0)
    with pytest.raises(ContentError, match="permissions"):
        read_file(path)


def test_a_huge_file_is_refused_with_the_numbers_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.txt"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ContentError, match=r"1,099,511,627,776 bytes.*limit.*16,777,216"):
        read_file(path)


def test_a_file_that_says_it_is_empty_and_is_endless_does_not_fill_the_memory() -> None:
    with pytest.raises(ContentError):
        read_file(Path("/dev/zero"))


def test_invalid_utf8_is_refused_with_the_place_and_the_ways_on(tmp_path: Path) -> None:
    with pytest.raises(ContentError, match=r"not valid UTF-8 at byte 3 \(0xe9\).*iconv.*repaired"):
        read_file(write(tmp_path, b"caf\xe9 au lait"))


def test_a_repaired_text_is_content_of_its_own_so_that_one_text_has_one_id(tmp_path: Path) -> None:
    repaired = read_file(write(tmp_path, b"caf\xe9 au lait"), repair=True)
    assert repaired.encoding is Encoding.REPAIRED
    assert repaired.text == "caf\ufffd au lait"
    assert repaired.id == read_text("caf\ufffd au lait").id == hashlib.sha256(repaired.data).hexdigest()


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, b"old")
    real_fstat, calls = os.fstat, [0]

    def fstat(handle: int) -> os.stat_result:
        calls[0] += 1
        if calls[0] == 2:
            path.write_bytes(b"newer")
        return real_fstat(handle)

    monkeypatch.setattr(os, "fstat", fstat)
    assert read_file(path).data == b"newer"
    assert calls[0] == 4


def test_a_file_that_never_rests_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, b"0")
    real_fstat = os.fstat

    def fstat(handle: int) -> os.stat_result:
        with path.open("ab") as file:
            file.write(b"+")
        return real_fstat(handle)

    monkeypatch.setattr(os, "fstat", fstat)
    with pytest.raises(ContentError, match="changes while it is read"):
        read_file(path)


def test_text_given_directly_has_the_id_of_its_utf8_bytes() -> None:
    assert read_text("né").id == hashlib.sha256("né".encode()).hexdigest()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("a\ud800b", "character 1 .*surrogate"),
        ("a\x00", "NUL"),
        ("x" * 11, "11 bytes"),
    ],
)
def test_text_that_cannot_be_a_chunk_is_refused(text: str, words: str) -> None:
    with pytest.raises(ContentError, match=words):
        read_text(text, max_bytes=10)


def test_a_text_and_a_file_of_the_same_bytes_are_one_chunk(tmp_path: Path) -> None:
    from_file: Content = read_file(write(tmp_path, b"same\n"))
    assert from_file.id == read_text("same\n").id

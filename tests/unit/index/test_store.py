"""What an index keeps of documents: added, changed, moved, vanished, stopped half way."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kvloom.chunk.content import read_text
from kvloom.errors import StoreError
from kvloom.index import LibraryIndex, Progress
from kvloom.index.file import IndexFile
from kvloom.read import Document, FoundFile, Skipped, SkipReason, Unchanged, read, reader
from tests.unit.index.texts import document, prose


@pytest.fixture
def index(tmp_path: Path) -> Iterator[LibraryIndex]:
    with LibraryIndex.open(tmp_path / "libraries" / "books.sqlite3") as opened:
        yield opened


def names(index: LibraryIndex) -> list[str]:
    return [info.name for info in index.documents()]


def found_at(path: Path) -> FoundFile:
    """The file as a walk would find it now."""
    found = path.stat()
    return FoundFile(path.name, path, found.st_size, found.st_mtime_ns)


def old_file(path: Path, data: bytes) -> Path:
    """A file that was written long ago, so that its time tells of every later change."""
    path.write_bytes(data)
    os.utime(path, ns=(10**18, 10**18))
    return path


def matched(index: LibraryIndex) -> int:
    """Rows in the words' index that hold `marker`: what stays behind of a removed passage would be here."""
    rows = index._file.rows("SELECT count(*) FROM words WHERE words MATCH 'marker'")
    return int(rows[0][0])


def files_with(folder: Path, word: bytes) -> list[str]:
    return [path.name for path in folder.iterdir() if word in path.read_bytes()]


def test_a_document_is_kept_with_its_passages(index: LibraryIndex) -> None:
    text = prose(40_000)
    done = index.update([document("a.md", text)])
    (info,) = index.documents()
    stored = list(index.passages("a.md"))
    assert (done.num_added, done.num_passages_added, done.is_complete) == (1, len(stored), True)
    assert (info.name, info.size_bytes, info.num_passages) == ("a.md", len(text), len(stored))
    assert "".join(p.text for p in stored) == text
    assert index.num_passages == len(stored) > 10
    assert index.num_documents == 1


def test_a_passage_has_the_id_of_the_chunk_with_its_text(index: LibraryIndex) -> None:
    index.update([document("a.md", prose(5_000))])
    for stored in index.passages():
        assert stored.id == read_text(stored.text).id
        assert index.passage(stored.id) == stored
    assert index.passage(read_text("not there").id) is None


def test_passages_of_all_documents_come_in_order_however_many(index: LibraryIndex) -> None:
    texts = {f"{n}.md": prose(120_000, seed=n) for n in range(6)}
    index.update([document(name, text) for name, text in texts.items()])
    joined = dict.fromkeys(texts, "")
    for stored in index.passages():
        joined[stored.document] += stored.text
    assert joined == texts
    assert index.num_passages > 256


def test_an_unchanged_document_is_not_written_again(index: LibraryIndex) -> None:
    index.update([document("a.md", prose(5_000))])
    done = index.update([document("a.md", prose(5_000))])
    assert (done.num_unchanged, done.num_changed, done.num_passages_added) == (1, 0, 0)


def test_an_edit_writes_only_the_passages_it_touched(index: LibraryIndex) -> None:
    text = prose(200_000)
    index.update([document("a.md", text)])
    before = {stored.id: stored for stored in index.passages()}
    paragraphs = text.split("\n\n")
    number = next(n for n, part in enumerate(paragraphs) if n > 50 and len(part) > 200)
    paragraphs[number] += "\nA marker stands\non lines of\nits own."
    edited = "\n\n".join(paragraphs)
    done = index.update([document("a.md", edited)])
    stored = list(index.passages())
    assert "".join(p.text for p in stored) == edited
    assert done.num_changed == 1
    assert 1 <= done.num_passages_added <= 2
    assert done.num_passages_kept == len(stored) - done.num_passages_added
    assert sum(p.id not in before for p in stored) == done.num_passages_added
    assert stored[-1].last_line == edited.count("\n")
    assert index.num_passages == len(stored)
    assert matched(index) == 1


def test_a_removed_document_leaves_nothing_behind(index: LibraryIndex) -> None:
    index.update([document("a.md", "# Here\n\nA marker.\n"), document("b.md", "Another text.\n")])
    assert matched(index) == 1
    assert index.remove("a.md")
    assert not index.remove("a.md")
    assert matched(index) == 0
    assert names(index) == ["b.md"]
    assert index.num_passages == 1


def test_a_forgotten_passage_leaves_no_byte_in_the_files(index: LibraryIndex) -> None:
    index.update([document("a.md", prose(30_000)), document("b.md", "The passphrase is xylozebra.\n")])
    (found,) = index.search("xylozebra")
    assert index.forget(found.id) == 1
    assert index.forget(found.id) == 0
    assert index.passage(found.id) is None
    for path in index.path.parent.iterdir():
        assert b"xylozebra" not in path.read_bytes()
        assert b"xylozebr" not in path.read_bytes()


def test_forgetting_leaves_no_byte_of_what_an_edit_took_out_before(index: LibraryIndex) -> None:
    more = [document(f"{n}.md", f"Other text {n}.\n") for n in range(30)]
    index.update([document("b.md", "The passphrase is xylozebra.\n"), *more])
    (found,) = index.search("xylozebra")
    index.update([document("b.md", "Nothing here.\n")])
    assert index.forget(found.id) == 0
    assert files_with(index.path.parent, b"xylozebra") == []
    index.close()
    assert files_with(index.path.parent, b"xylozebra") == []


def test_forgetting_goes_on_where_a_crash_came_before_the_files_were_wiped(
    index: LibraryIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = [document(f"{n}.md", f"Other text {n}.\n") for n in range(30)]
    index.update([document("b.md", "The passphrase is xylozebra.\n"), *more])
    (found,) = index.search("xylozebra")

    def crash(self: IndexFile) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(IndexFile, "scrub", crash)
        with pytest.raises(KeyboardInterrupt):
            index.forget(found.id)
    with LibraryIndex.open(index.path) as again:
        assert again.forget(found.id) == 0
    assert files_with(index.path.parent, b"xylozebra") == []


def test_a_reader_that_keeps_removed_bytes_is_told_of_and_waited_for(
    index: LibraryIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvloom.sqlite_files.BUSY_TIMEOUT_S", 0.1)
    more = [document(f"{n}.md", f"Other text {n}.\n") for n in range(30)]
    index.update([document("b.md", "The passphrase is xylozebra.\n"), *more])
    (found,) = index.search("xylozebra")
    with LibraryIndex.open(index.path) as impatient:
        with closing(sqlite3.connect(index.path, isolation_level=None, check_same_thread=False)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM passages").fetchone()
            with pytest.raises(StoreError, match="its bytes are still in the file"):
                impatient.forget(found.id)
            assert impatient.search("xylozebra") == []
            timer = threading.Timer(0.2, reader.rollback)
            timer.start()
            index.forget(found.id)
            timer.join()
        assert files_with(index.path.parent, b"xylozebra") == []


def test_documents_whose_files_are_gone_leave_and_others_stay(index: LibraryIndex, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text(f"The text of {name}.\n")
    (tmp_path / "elsewhere.txt").write_text("Added for itself.\n")
    index.update(read([folder, tmp_path / "elsewhere.txt"]))
    (folder / "a.txt").unlink()
    done = index.update(read([folder], known=index.known))
    assert done.num_removed == 1
    assert names(index) == ["elsewhere.txt", "texts/b.txt"]


def test_documents_whose_folder_cannot_be_looked_at_stay(
    index: LibraryIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("The text of a.\n")
    index.update(read([tmp_path / "a.txt"]))
    look = os.lstat

    def refused(path: str | bytes | os.PathLike[str]) -> os.stat_result:
        if os.fsdecode(path).endswith("a.txt"):
            raise PermissionError(13, "Permission denied", path)
        return look(path)

    monkeypatch.setattr(os, "lstat", refused)
    assert index.update([]).num_removed == 0
    monkeypatch.undo()
    (tmp_path / "a.txt").unlink()
    assert index.update([]).num_removed == 1


def test_a_file_that_is_text_no_more_leaves_and_one_in_writing_stays(index: LibraryIndex) -> None:
    first = [document(name, f"The text of {name}.\n", Path("/tmp")) for name in ("a.md", "b.md")]
    index.update(first)
    index._file.execute("UPDATE documents SET path = ? WHERE name = 'b.md'", (os.fsencode(os.devnull),))
    done = index.update(
        [
            Skipped("a.md", "is binary", first[0].path, SkipReason.NOT_TEXT),
            Skipped("b.md", "changes while it is read", Path(os.devnull), SkipReason.CHANGING),
        ]
    )
    assert [item.name for item in done.skipped] == ["a.md", "b.md"]
    assert names(index) == ["b.md"]


def test_files_that_did_not_change_are_known_and_not_read(index: LibraryIndex, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("Some text.\n")
    os.utime(path, ns=(10**18, 10**18))
    index.update(read([path], known=index.known))
    (item,) = read([path], known=index.known)
    assert isinstance(item, Unchanged)
    assert index.update([item]).num_unchanged == 1
    path.write_text("Other text\n")
    (item,) = read([path], known=index.known)
    assert isinstance(item, Document)
    assert index.update([item]).num_changed == 1


def test_a_file_written_the_moment_it_is_read_is_read_once_more(
    index: LibraryIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("Some text.\n")
    written = path.stat().st_mtime_ns
    monkeypatch.setattr(time, "time_ns", lambda: written)
    index.update(read([path]))
    assert index.known(found_at(path)) is None


def test_a_file_that_gave_no_text_is_not_read_again_until_it_changes_or_a_day_has_gone(
    index: LibraryIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = old_file(tmp_path / "a.pdf", b"%PDF-1.4 and no page in it")
    (first,) = index.update(read([path], known=index.known)).skipped
    with monkeypatch.context() as patched:
        patched.setattr(reader, "read_raw", None)  # nothing is opened
        (again,) = index.update(read([path], known=index.known)).skipped
        assert again == first
        assert again.reason is SkipReason.NOT_TEXT
        assert path.name not in again.why
    now = time.time_ns()
    with monkeypatch.context() as patched:
        patched.setattr(time, "time_ns", lambda: now + 25 * 3600 * 10**9)
        assert index.known(found_at(path)) is None
    path.write_text("Now it is text, whatever its name says.\n")
    os.utime(path, ns=(2 * 10**18, 2 * 10**18))
    assert index.known(found_at(path)) is None
    assert index.update(read([path], known=index.known)).num_added == 1
    assert index._file.rows("SELECT * FROM skipped") == []


def test_what_took_too_long_is_tried_again_after_ten_minutes(
    index: LibraryIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = found_at(old_file(tmp_path / "a.pdf", b"%PDF"))
    slow = Skipped("a.pdf", "took too long \ud800", found.path, SkipReason.UNREADABLE, found.size_bytes, found.mtime_ns)
    now = time.time_ns()
    for at_min, is_known in ((0, False), (9, True), (11, False)):
        monkeypatch.setattr(time, "time_ns", lambda at_min=at_min: now + at_min * 60 * 10**9)
        assert (index.known(found) is not None) == is_known
        index.update([slow])
        again = index.known(found)
        assert isinstance(again, Skipped)
        assert (again.why, again.reason) == ("took too long ?", SkipReason.UNREADABLE)


def test_a_file_that_is_read_again_after_a_day_is_remembered_for_another(
    index: LibraryIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = old_file(tmp_path / "a.bin", b"\x00\x01")
    now = time.time_ns()
    for day in (0, 1.1, 2.2):
        monkeypatch.setattr(time, "time_ns", lambda day=day: now + int(day * 24 * 3600 * 10**9))
        assert index.known(found_at(path)) is None
        index.update(read([path], known=index.known))
        assert isinstance(index.known(found_at(path)), Skipped)


def test_a_file_written_the_moment_it_gave_no_text_is_read_again_and_then_remembered(
    index: LibraryIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"\x00\x01")
    found, written = found_at(path), path.stat().st_mtime_ns
    monkeypatch.setattr(time, "time_ns", lambda: written)
    index.update(read([path], known=index.known))
    assert index.known(found) is None
    monkeypatch.setattr(time, "time_ns", lambda: written + 10 * 10**9)
    assert index.known(found) is None
    index.update(read([path], known=index.known))
    assert isinstance(index.known(found), Skipped)


def test_a_purge_forgets_what_parsers_said(index: LibraryIndex, tmp_path: Path) -> None:
    index.update(
        [document("a.md", "Some text."), Skipped("b.pdf", "no 'secret'", tmp_path / "b", SkipReason.NOT_TEXT, 1, 2)]
    )
    (passage,) = index.passages()
    index.forget(passage.id)
    assert index._file.rows("SELECT * FROM skipped") == []
    assert files_with(index.path.parent, b"secret") == []


def test_what_was_said_of_files_is_forgotten_after_a_day(
    index: LibraryIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"\x00\x01")
    index.update(read([path], known=index.known))
    path.unlink()
    assert index._file.rows("SELECT reason FROM skipped") == [("not text",)]
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 25 * 3600 * 10**9)
    index.update([])
    assert index._file.rows("SELECT reason FROM skipped") == []


def test_documents_that_never_were_files_stay(index: LibraryIndex) -> None:
    index.update([document("sent.md", "Sent over the wire.")])
    assert index.update([]).num_removed == 0
    assert names(index) == ["sent.md"]


def test_documents_of_one_name_get_longer_names(index: LibraryIndex) -> None:
    index.update([document("a.md", f"Text of {folder}.", Path("/books") / folder) for folder in ("x", "y", "z/y")])
    assert names(index) == ["a.md", "y/a.md", "z/y/a.md"]
    index.update([document("a.md", "New text of y.", Path("/books/y"))])
    assert names(index) == ["a.md", "y/a.md", "z/y/a.md"]


def test_a_path_that_is_no_unicode_is_kept(index: LibraryIndex, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.txt")
    path.write_text("Some text.\n")
    index.update(read([path]))
    (info,) = index.documents()
    assert info.path == path
    assert info.name == "caf\ufffd.txt"


def test_blank_documents_and_blank_stretches_give_no_passages(index: LibraryIndex) -> None:
    index.update([document("a.md", "\n" * 20_000 + "words\n")])
    assert all(stored.text.strip() for stored in index.passages())
    assert index.num_passages >= 1


def test_roots_are_remembered(index: LibraryIndex, tmp_path: Path) -> None:
    index.add_root(tmp_path / "b")
    index.add_root(tmp_path / "a")
    index.add_root(str(tmp_path / "x" / ".." / "a"))
    real = Path(os.path.realpath(tmp_path))
    assert index.roots() == (real / "a", real / "b")
    assert index.remove_root(tmp_path / "b")
    assert not index.remove_root(tmp_path / "b")
    assert index.roots() == (real / "a",)


def test_progress_is_told_after_every_file(index: LibraryIndex) -> None:
    told: list[Progress] = []
    gone = Skipped("gone", "is not there", Path("/gone"), SkipReason.GONE)
    index.update([document("a.md", "One."), gone, document("b.md", prose(9_000))], told.append)
    assert [(p.name, p.num_files) for p in told] == [("a.md", 1), ("gone", 2), ("b.md", 3)]
    assert told[-1].num_passages == index.num_passages


def test_a_stopped_update_keeps_whole_documents_and_the_next_goes_on(index: LibraryIndex) -> None:
    documents = [document(f"{n}.md", prose(6_000, seed=n)) for n in range(5)]
    told: list[Progress] = []
    done = index.update(documents, told.append, lambda: len(told) >= 2)
    assert (done.is_complete, done.num_added) == (False, 2)
    assert len(names(index)) == 2
    again = index.update(documents)
    assert (again.is_complete, again.num_added, again.num_unchanged) == (True, 3, 2)


def test_stopping_inside_of_a_long_document_leaves_nothing_of_it(index: LibraryIndex) -> None:
    looks: list[int] = []

    def is_cancelled() -> bool:
        looks.append(1)
        return len(looks) == 4

    done = index.update([document("a.md", prose(800_000))], is_cancelled=is_cancelled)
    assert not done.is_complete
    assert index.num_documents == index.num_passages == 0
    assert index._file.rows("SELECT count(*) FROM passages") == [(0,)]


def test_the_index_answers_whoever_asks_from_inside_of_an_update(index: LibraryIndex) -> None:
    index.update([document("a.md", "A marker.")])
    found: list[int] = []

    def is_cancelled() -> bool:
        found.append(len(index.search("marker")))
        return False

    assert index.update([document("b.md", prose(5_000))], is_cancelled=is_cancelled).is_complete
    assert set(found) == {1}


def test_an_interrupt_undoes_the_document_at_hand_only(index: LibraryIndex) -> None:
    def readings() -> Iterator[Document]:
        yield document("a.md", prose(6_000))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index.update(readings())
    assert names(index) == ["a.md"]
    assert index.update([document("b.md", "Goes on.")]).num_added == 1


def test_a_second_process_or_thread_sees_what_was_written(index: LibraryIndex) -> None:
    with LibraryIndex.open(index.path) as other:
        index.update([document("a.md", "A marker.")])
        assert [found.document for found in other.search("marker")] == ["a.md"]
        other.update([document("b.md", "Two markers.")])
        assert {found.document for found in index.search("marker")} == {"a.md", "b.md"}

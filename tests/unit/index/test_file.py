"""The index's file: damaged, of another version, of another program, not to be written."""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from kvloom.errors import IndexDamagedError, StoreError, StoreReadOnlyError
from kvloom.index import LibraryIndex
from kvloom.index.file import FORMAT_VERSION
from kvloom.read import read
from tests.unit.index.texts import document, prose


def built(folder: Path) -> Path:
    path = folder / "books.sqlite3"
    with LibraryIndex.open(path) as index:
        index.update([document("a.md", prose(60_000))])
    return path


def test_an_index_is_read_by_its_owner_only(tmp_path: Path) -> None:
    path = built(tmp_path / "new")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_newer_version_is_left_alone_and_said(tmp_path: Path) -> None:
    path = built(tmp_path)
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {FORMAT_VERSION + 1}")
    connection.close()
    data = path.read_bytes()
    with pytest.raises(StoreError, match=rf"version {FORMAT_VERSION + 1}, this kvloom knows {FORMAT_VERSION}"):
        LibraryIndex.open(path)
    assert path.read_bytes() == data


def test_an_index_of_the_version_before_keeps_what_it_has(tmp_path: Path) -> None:
    path = built(tmp_path)
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE skipped")
    connection.execute("PRAGMA user_version = 1")
    connection.close()
    with LibraryIndex.open(path) as index:
        assert index.num_passages > 0
        assert index._file.rows("SELECT * FROM skipped") == []
        assert index._file.row("PRAGMA user_version") == (FORMAT_VERSION,)


def test_files_are_cut_anew_where_they_were_cut_by_another_version(tmp_path: Path) -> None:
    text, path = tmp_path / "a.md", tmp_path / "books.sqlite3"
    text.write_text(prose(5_000))
    os.utime(text, (0, 0))  # long settled
    with LibraryIndex.open(path) as index:
        index.update(read([text]))
        assert index.update(read([text], known=index.known)).num_unchanged == 1
        index.update([document("handed.md", "One.")])
        assert index.update([document("handed.md", "One.")]).num_unchanged == 1
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    with LibraryIndex.open(path) as index:
        assert index.num_passages > 0
        assert index.update(read([text], known=index.known)).num_changed == 1
        assert index.update([document("handed.md", "One.")]).num_changed == 1
        assert index.update(read([text], known=index.known)).num_unchanged == 1


def test_texts_are_taken_anew_out_of_pdf_and_html_where_another_version_took_them(tmp_path: Path) -> None:
    page, text, path = tmp_path / "a.html", tmp_path / "a.md", tmp_path / "books.sqlite3"
    page.write_text("<h1>Bells</h1><p>They ring.</p>")
    text.write_text("They ring.")
    for one in (page, text):
        os.utime(one, (0, 0))  # long settled
    with LibraryIndex.open(path) as index:
        index.update(read([page, text]))
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 3")
    connection.close()
    with LibraryIndex.open(path) as index:
        updated = index.update(read([page, text], known=index.known))
        assert (updated.num_changed, updated.num_unchanged) == (1, 1)


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite3"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    with pytest.raises(StoreError, match="of another program"):
        LibraryIndex.open(path)
    assert sqlite3.connect(path).execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]


def test_a_file_that_is_no_database_is_damaged_and_can_be_built_anew(tmp_path: Path) -> None:
    path = built(tmp_path)
    path.write_bytes(b"no database at all, but long enough for a header. " * 100)
    with pytest.raises(IndexDamagedError, match=r"is damaged .*: remove it and add the documents again"):
        LibraryIndex.open(path)
    LibraryIndex.delete(path)
    assert list(tmp_path.iterdir()) == []
    with LibraryIndex.open(path) as index:
        assert index.update([document("a.md", "Words again.")]).num_added == 1
    LibraryIndex.delete(path)
    LibraryIndex.delete(path)


def test_what_stands_beside_an_index_is_removed_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, gone = built(tmp_path), list[str]()
    unlink = Path.unlink

    def seen(file: Path, missing_ok: bool = False) -> None:
        gone.append(file.name)
        unlink(file, missing_ok)

    monkeypatch.setattr(Path, "unlink", seen)
    LibraryIndex.delete(path)
    assert gone[-1] == path.name and {f"{path.name}-wal", f"{path.name}-shm", f"{path.name}-journal"} == set(gone[:-1])


@pytest.mark.parametrize("seed", range(24))
def test_damage_anywhere_is_words_and_never_a_traceback(tmp_path: Path, seed: int) -> None:
    path = built(tmp_path)
    draw = random.Random(seed)
    data = bytearray(path.read_bytes())
    for _ in range(draw.choice([1, 20, 200])):
        at = draw.randrange(100, len(data) - 64)
        data[at : at + 64] = draw.randbytes(64)
    if seed % 4 == 0:
        del data[draw.randrange(4096, len(data)) :]
    path.write_bytes(data)
    try:
        with LibraryIndex.open(path) as index:
            index.search(prose(200))
            list(index.passages())
            index.update([document("a.md", prose(60_000, seed=9))])
            index.remove("a.md")
    except StoreError as exc:
        told = str(exc)
    else:
        told = str(path)
    assert str(path) in told
    LibraryIndex.delete(path)
    with LibraryIndex.open(path) as index:
        assert index.num_documents == 0


def test_a_text_that_is_not_what_was_stored_is_never_given_out(tmp_path: Path) -> None:
    path = built(tmp_path)
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE passages SET text = replace(text, 'a', 'e')")
    connection.close()
    with LibraryIndex.open(path) as index:
        with pytest.raises(IndexDamagedError, match="not what was stored"):
            list(index.passages())
        with pytest.raises(IndexDamagedError, match="not what was stored"):
            index.search(prose(200))


def test_a_folder_in_the_place_of_the_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "books.sqlite3").mkdir()
    with pytest.raises(StoreError, match=r"books\.sqlite3 cannot be opened"):
        LibraryIndex.open(tmp_path / "books.sqlite3")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anything")
def test_a_folder_that_may_not_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(StoreReadOnlyError):
        LibraryIndex.open(tmp_path / "closed" / "books.sqlite3")


def test_a_closed_index_says_so_and_closes_twice(tmp_path: Path) -> None:
    index = LibraryIndex.open(tmp_path / "books.sqlite3")
    index.close()
    index.close()
    with pytest.raises(StoreError, match="closed"):
        index.documents()


def test_whatever_is_asked_of_an_index_that_another_thread_closed_says_to_ask_again(tmp_path: Path) -> None:
    index = LibraryIndex.open(tmp_path / "books.sqlite3")
    index.update([document("a.md", "Bees fly.\n")])
    search = index._search
    index._file.close()
    calls: list[Callable[[], object]] = [
        index.documents,
        lambda: index.search("bees"),
        lambda: index.num_passages,
        lambda: index.remove("a.md"),
    ]
    for call in calls:
        with pytest.raises(StoreError, match=r"^the library was closed or deleted meanwhile: ask again$"):
            call()
    search.close()
    search.close()
    calls = [lambda: search._terms.of_question("bees"), lambda: search._terms.counts([("", "bees")], ["bees"])]
    for call in calls:
        with pytest.raises(StoreError, match=r"^the library was closed or deleted meanwhile: ask again$"):
            call()

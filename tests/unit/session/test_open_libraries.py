"""How many libraries stay open: those that somebody holds and a few others, for a loom and its tenants together."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from kvloom.index import LibraryIndex
from kvloom.session.home_libraries import HomeLibraries
from kvloom.session.libraries import Library
from kvloom.session.loom import Loom
from kvloom.session.open_libraries import MAX_IDLE
from tests.unit.session.fakes import fake_loom

NUM_LIBRARIES = 3 * MAX_IDLE
FACT = "The bell of the chapel weighs exactly four hundred stone.\n"


@pytest.fixture
def loom(tmp_path: Path) -> Iterator[Loom]:
    with fake_loom(tmp_path / "home", context=4096) as opened:
        for number in range(NUM_LIBRARIES):
            opened.library(f"lib{number}").add_texts({"bell.txt": f"{FACT}{number}\n", "same.txt": FACT})
        yield opened
    assert open_files(tmp_path) == set()


def open_files(folder: Path) -> set[Path]:
    """The databases of libraries that this process has open."""
    paths = (Path(one.path) for one in psutil.Process().open_files())
    return {
        path for path in paths if folder in path.parents and path.suffix == ".sqlite3" and "libraries" in path.parts
    }


def test_few_stay_open_whatever_was_touched(loom: Loom, tmp_path: Path) -> None:
    assert {file.stem for file in open_files(tmp_path)} == {
        f"lib{number}" for number in range(NUM_LIBRARIES - MAX_IDLE, NUM_LIBRARIES)
    }
    assert loom.library("lib0").search("bell")[0].text.startswith(FACT.strip())
    assert len(open_files(tmp_path)) == MAX_IDLE


def test_one_that_is_held_stays_open_and_is_the_same(loom: Loom, tmp_path: Path) -> None:
    held = loom.library("lib0")
    passages = loom.library("lib1").passages()
    first = next(passages)
    for number in range(2, NUM_LIBRARIES):
        loom.library(f"lib{number}").search("bell")
    assert loom.library("lib0") is held
    assert held.search("bell")
    assert first.id not in {one.id for one in passages}, "what is being read is not closed under its reader"
    assert len(open_files(tmp_path)) <= MAX_IDLE + 2
    del held, passages
    loom.library("lib2"), loom.library("lib3"), loom.library("lib4"), loom.library("lib5")
    assert len(open_files(tmp_path)) == MAX_IDLE


def test_conversations_over_many_libraries_find_in_all_of_them(loom: Loom, tmp_path: Path) -> None:
    chat = loom.session()
    chat.attach(*(f"lib{number}" for number in range(NUM_LIBRARIES)))
    for _ in range(2):
        reply = chat.generate("What does the bell of the chapel weigh?", max_tokens=4, temperature=0.0)
        assert reply.sources
        assert not [notice for notice in reply.notices if "could not be searched" in notice]
    assert len(open_files(tmp_path)) == MAX_IDLE


def test_a_purge_reaches_every_library_and_opens_none_for_longer(loom: Loom, tmp_path: Path) -> None:
    chunk = loom.load_text(FACT, name="bell").id
    before = open_files(tmp_path)
    loom.purge(chunk)
    assert open_files(tmp_path) == before
    for number in range(NUM_LIBRARIES):
        library = loom.library(f"lib{number}")
        assert {one.document for one in library.passages()} == {"bell.txt"}


def test_tenants_share_what_may_be_open(loom: Loom, tmp_path: Path) -> None:
    for name in ("ada", "ben", "cleo"):
        tenant = loom.tenant(name)
        for number in range(MAX_IDLE):
            tenant.library(f"own{number}").add_texts({"a.txt": FACT})
    assert len(open_files(tmp_path)) == MAX_IDLE
    held = loom.tenant("ada").library("own0")
    loom.tenant("ada").close()
    assert not any(file.samefile(held._index.path) for file in open_files(tmp_path))
    assert loom.tenant("cleo").library("own0").search("bell")


def test_many_threads_over_more_libraries_than_stay_open(loom: Loom, tmp_path: Path) -> None:
    failed: list[Exception] = []

    def ask(start: int) -> None:
        try:
            for number in range(40):
                assert loom.library(f"lib{(start + number * 5) % NUM_LIBRARIES}").search("bell")
        except Exception as exc:  # noqa: BLE001 - told by the test's own thread
            failed.append(exc)

    threads = [threading.Thread(target=ask, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(open_files(tmp_path)) == MAX_IDLE


def made_anew(loom: Loom, name: str, text: str) -> None:
    """As another process does, which knows nothing of what is open here."""
    others = HomeLibraries(loom.home)
    others.delete(name)
    library = others.open(name)
    library.add_texts({"new.txt": text})
    library.close()


def stored(loom: Loom, name: str) -> set[str]:
    """The documents in the library's file, whatever is open."""
    with LibraryIndex.open(loom.home / "libraries" / f"{name}.sqlite3") as index:
        return {one.name for one in index.documents()}


def test_one_that_was_deleted_and_made_anew_elsewhere_is_opened_anew(loom: Loom) -> None:
    held = loom.library("lib11")
    made_anew(loom, "lib11", FACT)
    assert loom.library("lib11") is not held
    assert {one.name for one in loom.library("lib11").documents()} == {"new.txt"}
    loom.library("lib11").add_texts({"mine.txt": "Mine."})
    assert stored(loom, "lib11") == {"new.txt", "mine.txt"}


def test_a_purge_reaches_the_file_that_is_there_and_not_the_one_that_was(loom: Loom) -> None:
    held = loom.library("lib11")
    secret = "The keeper of the lighthouse hides under the stairs.\n"
    chunk = loom.load_text(secret, name="secret").id
    made_anew(loom, "lib11", secret)
    loom.purge(chunk)
    assert b"under the stairs" not in (loom.home / "libraries" / "lib11.sqlite3").read_bytes()
    assert not list(loom.library("lib11").passages())
    assert held is not loom.library("lib11")


def test_whoever_asks_while_one_is_deleted_gets_the_next_one(loom: Loom, monkeypatch: pytest.MonkeyPatch) -> None:
    remove, got, waited = LibraryIndex.delete, list[Library](), list[bool]()
    asking = threading.Thread(target=lambda: got.append(loom.library("lib11")))

    def removed_while_asked(file: Path | str) -> None:
        asking.start()
        asking.join(0.3)
        waited.append(asking.is_alive())
        remove(file)

    monkeypatch.setattr(LibraryIndex, "delete", staticmethod(removed_while_asked))
    loom.delete_library("lib11")
    asking.join()
    assert waited == [True]
    got[0].add_texts({"next.txt": FACT})
    assert stored(loom, "lib11") == {"next.txt"}

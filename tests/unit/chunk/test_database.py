"""The database as a place: opened, shared, full, read-only, damaged."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvloom.chunk.catalog import Catalog
from kvloom.chunk.content import read_text
from kvloom.chunk.database import DATABASE_NAME, Database
from kvloom.errors import StoreError, StoreFullError, StoreReadOnlyError


def test_a_home_and_its_files_are_for_their_owner_only(home: Path, catalog: Catalog) -> None:
    catalog.add(read_text("secret"))
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    files = list(home.iterdir())
    assert {path.name for path in files} >= {DATABASE_NAME, DATABASE_NAME + "-wal"}
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)


def test_a_failed_transaction_leaves_nothing(database: Database) -> None:
    catalog = Catalog(database)

    def fail_in_the_middle() -> None:
        with database.transaction():
            catalog.add(read_text("one"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_in_the_middle()
    assert catalog.ls() == ()
    catalog.add(read_text("two"))
    assert len(catalog.ls()) == 1


def test_a_full_disk_is_an_error_of_its_own_and_loses_nothing(database: Database) -> None:
    catalog = Catalog(database)
    kept = catalog.add(read_text("kept")).record.id
    (pages,) = database.rows("PRAGMA page_count")[0]
    database.rows(f"PRAGMA max_page_count = {pages + 4}")
    noise = "".join(f"{i * 7919 % 104729:x}" for i in range(30000))
    with pytest.raises(StoreFullError, match=r"no space is left.*KVLOOM_HOME"):
        catalog.add(read_text(noise))
    assert [record.id for record in catalog.ls()] == [kept]
    assert catalog.text(kept) == "kept"


def test_a_read_only_database_is_an_error_of_its_own(database: Database) -> None:
    catalog = Catalog(database)
    database.rows("PRAGMA query_only = ON")
    with pytest.raises(StoreReadOnlyError, match=r"cannot be written.*KVLOOM_HOME"):
        catalog.add(read_text("x"))


def test_a_home_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="KVLOOM_HOME"):
        Database(tmp_path / "file" / "home")
    with pytest.raises(StoreError, match="KVLOOM_HOME"):
        Database(Path("/proc/kvloom"))


def test_what_is_no_database_is_an_error_that_says_what_to_do(home: Path) -> None:
    home.mkdir()
    (home / DATABASE_NAME).write_bytes(b"this is not a database" * 100)
    with pytest.raises(StoreError, match=r"damaged.*move it away"):
        Database(home)


def test_a_database_with_damaged_pages_is_an_error_and_not_a_traceback(home: Path) -> None:
    database = Database(home)
    catalog = Catalog(database)
    for i in range(200):
        catalog.add(read_text(f"text {i} " * 40))
    database.scrub()
    database.close()
    path = home / DATABASE_NAME
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    path.write_bytes(data)
    with pytest.raises(StoreError, match="damaged"):
        _open_and_list(home)


def _open_and_list(home: Path) -> None:
    database = Database(home)
    try:
        Catalog(database).ls()
    finally:
        database.close()


def test_a_database_of_a_newer_kvloom_is_left_alone(home: Path) -> None:
    Database(home).close()
    with sqlite3.connect(home / DATABASE_NAME) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match=r"version 99.*newer kvloom"):
        Database(home)


def test_many_threads_may_write_at_once(database: Database) -> None:
    catalog = Catalog(database)
    barrier = threading.Barrier(4)

    def load(worker: int) -> None:
        barrier.wait()
        for i in range(10):
            catalog.add(read_text(f"{worker} {i}"), f"{worker}-{i}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(load, range(4)))
    assert len(catalog.ls()) == 40


_LOADER = """
import sys
from pathlib import Path
from kvloom.chunk.catalog import Catalog
from kvloom.chunk.content import read_text
from kvloom.chunk.database import Database
database = Database(Path(sys.argv[1]))
catalog = Catalog(database)
for i in range(25):
    catalog.add(read_text(f"{sys.argv[2]} {i}"), f"{sys.argv[2]}-{i}")
    catalog.add(read_text("shared"), "shared")
database.close()
"""


def test_two_processes_may_open_and_fill_one_new_home_at_once(home: Path) -> None:
    commands = [[sys.executable, "-c", _LOADER, str(home), name] for name in ("a", "b")]
    running = [subprocess.Popen(command) for command in commands]
    assert [process.wait(60) for process in running] == [0, 0]
    database = Database(home)
    assert len(Catalog(database).ls()) == 51
    database.close()


def test_a_closed_database_refuses_with_an_error_of_ours(home: Path) -> None:
    database = Database(home)
    database.close()
    database.close()
    with pytest.raises(StoreError):
        database.rows("SELECT 1")

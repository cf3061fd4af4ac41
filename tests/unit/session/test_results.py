"""Results in a home: what was put is found again, a fault is a miss, and a kill takes nothing back."""

from __future__ import annotations

import hashlib
import random
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kvloom.chunk.database import DATABASE_NAME
from kvloom.errors import StoreError
from kvloom.session.results import StoredResults

NUM_KILLS = 4
WRITER = """
import sys
from pathlib import Path
from kvloom.session.results import StoredResults
from tests.unit.session.test_results import key, reply
results = StoredResults(Path(sys.argv[1]))
print("ready", flush=True)
number = 0
while True:
    results.put(key(number), reply(number))
    print(number, flush=True)
    number += 1
"""


def key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def reply(number: int) -> str:
    return f"- note {number}\n" * 500


def test_what_was_put_is_found_by_another_process_and_nothing_else(tmp_path: Path) -> None:
    with StoredResults(tmp_path) as results:
        assert results.get(key(1)) is None
        results.put(key(1), "one\n日本 🙂")
        results.put(key(2), "")
    with StoredResults(tmp_path) as results:
        assert (results.get(key(1)), results.get(key(2)), results.get(key(3))) == ("one\n日本 🙂", "", None)
        results.put(key(1), "another")
        assert results.get(key(1)) == "another"
        assert (results.num_results(), results.num_faults) == (2, 0)


def test_a_damaged_result_is_a_miss_and_is_put_again(tmp_path: Path) -> None:
    with StoredResults(tmp_path) as results:
        results.put(key(1), "true")
        with sqlite3.connect(tmp_path / DATABASE_NAME) as other:
            other.execute("UPDATE results SET reply = 'false'")
        assert results.get(key(1)) is None
        assert results.num_faults == 1
        results.put(key(1), "true")
        assert results.get(key(1)) == "true"


def test_the_oldest_leave_where_there_are_too_many(tmp_path: Path) -> None:
    with StoredResults(tmp_path, max_results=20) as results:
        for number in range(100):
            results.put(key(number), "x")
        assert results.num_results() <= 20
        assert results.get(key(99)) == "x"
        assert results.get(key(0)) is None


def test_half_a_surrogate_pair_is_kept_as_a_mark(tmp_path: Path) -> None:
    with StoredResults(tmp_path) as results:
        results.put(key(1), "half \ud83d")
        assert results.get(key(1)) == "half ?"


def test_cleared_results_leave_no_byte(tmp_path: Path) -> None:
    with StoredResults(tmp_path) as results:
        results.put(key(1), "a heliotrope secret")
        assert results.clear() == 1
        assert results.get(key(1)) is None
    assert not any(b"heliotrope" in path.read_bytes() for path in tmp_path.iterdir())


def test_where_nothing_can_be_written_work_goes_on(tmp_path: Path) -> None:
    with StoredResults(tmp_path) as results:
        results.put(key(1), "one")
        results._db.rows("PRAGMA query_only = ON")
        results.put(key(2), "two")
        assert (results.get(key(1)), results.get(key(2)), results.num_faults) == ("one", None, 1)


def test_a_home_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StoreError):
        StoredResults(tmp_path / "file")


@pytest.mark.parametrize("kill", range(NUM_KILLS))
def test_a_kill_at_any_instant_loses_no_result_that_was_acknowledged(tmp_path: Path, kill: int) -> None:
    chance = random.Random(kill)
    root = Path(__file__).parents[3]
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=root
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    lines = [writer.stdout.readline() for _ in range(chance.randint(1, 6))]
    timer = threading.Timer(chance.random() * 0.1, writer.kill)
    timer.start()
    lines += list(writer.stdout)
    writer.wait()
    writer.stdout.close()
    acknowledged = [int(line) for line in lines if line.endswith("\n")]
    with StoredResults(tmp_path) as results:
        assert acknowledged
        for number in acknowledged:
            assert results.get(key(number)) == reply(number)
        beyond = acknowledged[-1] + 1
        assert results.get(key(beyond)) in (None, reply(beyond))
        assert results.num_faults == 0

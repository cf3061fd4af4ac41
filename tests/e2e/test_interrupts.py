"""Ctrl-C while files are read, passages computed, replies written: a real process, interrupted as a terminal does."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.tiny_gguf import TinyModel, write_tiny
from tests.unit.read.pdf_files import slow_pdf

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(sys.platform == "win32", reason="a signal to a group of processes")]

PATIENCE_S = 60
"""For a step on a busy machine."""
AT_ONCE_S = 30
"""From Ctrl-C to the end of the process, on a busy machine; reading on would take twenty minutes."""
FACT = "The bell of the chapel weighs exactly four hundred stone."
QUESTION = "What does the bell of the chapel weigh?"


@dataclass(frozen=True)
class Stopped:
    """What an interrupted process left."""

    code: int
    out: str
    err: str


class Kvloom:
    """Runs `kvloom …` with a tiny model and a home of its own."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        model = write_tiny(folder / "tiny.gguf", TinyModel())
        self._shared = ["--home", str(self.home), "--model", str(model), "--context", "4096"]

    def interrupted(
        self, when: Callable[[], bool] | None, *words: str | Path, stdin: str = "", loom: bool = True
    ) -> Stopped:
        """Ctrl-C as soon as `when` holds; None: as soon as something is written on standard output."""
        with self._started(words, loom=loom) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(stdin)
            process.stdin.flush()
            until = time.monotonic() + PATIENCE_S
            while not (when() if when is not None else select.select([process.stdout], [], [], 0)[0]):
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < until
                time.sleep(0.01)
            children = psutil.Process(process.pid).children()
            os.killpg(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=AT_ONCE_S)
            assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
        assert "Traceback" not in err
        return Stopped(process.returncode, out, err)

    def document(self, *words: str | Path, loom: bool = True) -> Any:
        """What a run that is let be says with --json."""
        with self._started((*words, "--json"), loom=loom) as process:
            out, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, err
        return json.loads(out)

    @contextmanager
    def _started(self, words: tuple[str | Path, ...], *, loom: bool) -> Iterator[subprocess.Popen[str]]:
        shared = self._shared if loom else self._shared[:2]
        environment = {**os.environ, "KVLOOM_THREADS": "1", "KVLOOM_SAMPLING__TEMPERATURE": "0"}
        with subprocess.Popen(
            [sys.executable, "-m", "kvloom.cli.main", *map(str, words), *shared],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
            start_new_session=True,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            if hasattr(fcntl, "F_SETPIPE_SZ"):  # a long reply waits to be read, so it cannot end before it is stopped
                fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
            try:
                yield process
            finally:
                process.kill()

    def count(self, database: str, sql: str) -> int:
        """A number out of the first database of the home that is called so; 0 while there is none."""
        for file in self.home.glob(database):
            try:
                with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
                    return int(connection.execute(sql).fetchone()[0])
            except sqlite3.Error:  # not made yet
                return 0
        return 0

    def has_read_one(self) -> bool:
        return self.count("libraries/*.sqlite3", "SELECT count(*) FROM documents") >= 1

    def has_computed_some(self) -> bool:
        return self.count("catalog.sqlite3", "SELECT count(*) FROM chunks") >= 3


@pytest.fixture
def kvloom(tmp_path: Path) -> Kvloom:
    return Kvloom(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A short text, and behind it a file that takes twenty minutes."""
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "a.md").write_text(f"# Bells\n\n{FACT}\n", encoding="utf-8")
    (folder / "b.pdf").write_bytes(slow_pdf())
    return folder


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.md"
    filler = "The market sells bread and fish. " * 6
    path.write_text("".join(f"# Chapter {n}\n\n{filler}{FACT} {n}\n\n" for n in range(900)), encoding="utf-8")
    return path


def test_asking_is_stopped_while_a_file_is_read_and_goes_on_behind_what_was(kvloom: Kvloom, folder: Path) -> None:
    stopped = kvloom.interrupted(kvloom.has_read_one, "ask", folder, QUESTION)
    assert (stopped.code, stopped.out) == (130, "")
    assert "stopped with 1 document indexed: the same command goes on where it stopped" in stopped.err
    (folder / "b.pdf").unlink()
    again = kvloom.document("ask", folder, QUESTION, "--max-tokens", "2")
    assert (again["library"]["updated"]["num_unchanged"], again["library"]["updated"]["num_added"]) == (1, 0)
    assert again["sources"][0]["document"].endswith("a.md")


def test_a_library_of_nothing_does_not_stay(kvloom: Kvloom, folder: Path) -> None:
    (folder / "a.md").unlink()
    stopped = kvloom.interrupted(
        lambda: kvloom.count("libraries/*.sqlite3", "SELECT count(*) FROM roots") == 1, "ask", folder, QUESTION
    )
    assert stopped.code == 130
    assert "stopped with 0 documents indexed" in stopped.err
    assert list((kvloom.home / "libraries").iterdir()) == []


def test_computing_ahead_is_stopped_and_goes_on_behind_what_is_stored(kvloom: Kvloom, book: Path) -> None:
    words = ("ask", book, QUESTION, "--max-tokens", "2", "--precompute")
    stopped = kvloom.interrupted(kvloom.has_computed_some, *words)
    assert (stopped.code, stopped.out) == (130, "")
    assert "passages are computed; the same command goes on where it stopped" in stopped.err
    num_stored = int(stopped.err.rpartition("stopped: ")[2].split()[0])
    shorter = book.read_text()[: book.stat().st_size // 20]
    book.write_text(shorter, encoding="utf-8")
    again = kvloom.document(*words)["precomputed"]
    assert again["is_complete"]
    assert again["num_known"] >= min(num_stored, again["num_passages"] - 1) > 0


def test_a_reply_is_stopped_and_leaves_no_session(kvloom: Kvloom, folder: Path) -> None:
    (folder / "b.pdf").unlink()
    words = ("ask", folder, QUESTION, "--max-tokens")
    kvloom.document(*words, "1")
    before = kvloom.count("catalog.sqlite3", "SELECT count(*) FROM sessions")
    stopped = kvloom.interrupted(None, *words, "3000")
    assert (stopped.code, stopped.out != "") == (130, True)
    assert "stopped: the KV of what was read is kept; the same command starts from there" in stopped.err
    assert kvloom.count("catalog.sqlite3", "SELECT count(*) FROM sessions") == before
    assert kvloom.document(*words, "1")["sources"]


def test_a_chat_that_loads_a_folder_is_stopped_with_nothing_attached(kvloom: Kvloom, folder: Path) -> None:
    words = ("chat", "--session", "talk")
    stopped = kvloom.interrupted(kvloom.has_read_one, *words, stdin=f"/load {folder}\n")
    assert stopped.code == 130
    assert "stopped: files is not attached; /load goes on where it stopped" in stopped.err
    shown = kvloom.document("sessions", "show", "talk")
    assert shown["turns"] == []
    (folder / "b.pdf").unlink()
    with kvloom._started((*words, "--json"), loom=True) as process:
        out, err = process.communicate(f"/load {folder}\n", timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert json.loads(out.splitlines()[0])["result"]["libraries"][0]["updated"]["num_unchanged"] == 1


def test_a_library_is_filled_as_far_as_it_came(kvloom: Kvloom, folder: Path) -> None:
    stopped = kvloom.interrupted(kvloom.has_read_one, "libraries", "add", "bells", folder, loom=False)
    assert (stopped.code, stopped.out) == (130, "")
    assert "stopped: the same command goes on where it stopped" in stopped.err
    assert kvloom.document("libraries", "show", "bells", loom=False)["library"]["num_documents"] == 1


def test_a_program_is_told_as_json_what_was_stopped(kvloom: Kvloom, folder: Path) -> None:
    stopped = kvloom.interrupted(kvloom.has_read_one, "libraries", "add", "bells", folder, "--json", loom=False)
    assert (stopped.code, stopped.out) == (130, "")
    error = json.loads(stopped.err)["error"]
    assert error["type"] == "CancelledError"
    assert "the same command goes on where it stopped" in error["message"]

"""Files that are read in a process of their own: as they are read here, and given up when they take too long."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from kvloom.errors import CancelledError, ContentError, StoreError
from kvloom.index import LibraryIndex
from kvloom.read import Document, ReadLimits, Skipped, SkipReason, extract, read
from kvloom.read import apart as apart_module
from kvloom.read.apart import Apart
from tests.unit.read.pdf_files import pdf_of, slow_pdf

LIMITS = ReadLimits(max_html_tags=100_000)
PAGE = "<h1>Glocke</h1><p>Läutet um <b>zwölf</b>.</p>".encode()
SLOW = slow_pdf()


@pytest.fixture
def apart() -> Iterator[Apart]:
    with Apart(LIMITS) as opened:
        yield opened
    assert processes() == []


def processes() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "kvloom.read.child" in child.cmdline()]


def test_it_gives_the_same_text_file_after_file_in_one_process(apart: Apart) -> None:
    files = {
        "a.txt": "Läutet.\n".encode(),
        "a.pdf": pdf_of([["The bell", "of the chapel"], ["A second page"]]),
        "a.html": PAGE,
        "large.html": b"<p>The bell of the chapel. " * 5_000,
        "b.pdf": pdf_of([["once more"]]),
    }
    seen = set()
    for name, data in files.items():
        assert apart.extract(data, name) == extract(data, name, LIMITS)
        seen |= {child.pid for child in processes()}
    assert len(seen) == 1


@pytest.mark.parametrize("data", [b"Plain.", b"# Notes"])
def test_plain_text_starts_no_process(apart: Apart, data: bytes) -> None:
    apart.extract(data, "a.txt")
    assert processes() == []


def test_it_refuses_in_the_same_words() -> None:
    limits = ReadLimits(max_html_tags=8)
    with Apart(limits) as apart:
        for name, data in (("a.pdf", b"%PDF-1.7"), ("a.html", b"<p>"), ("a.html", b"<p>" * 9)):
            with pytest.raises(ContentError) as here:
                extract(data, name, limits)
            with pytest.raises(ContentError) as there:
                apart.extract(data, name)
            assert str(there.value) == str(here.value)


def test_what_takes_too_long_is_given_up_and_the_next_file_is_read() -> None:
    with Apart(LIMITS, most_s=1.5) as apart:
        began_s = time.monotonic()
        with pytest.raises(ContentError, match=r"slow.pdf could not be read within 1\.5 s"):
            apart.extract(SLOW, "slow.pdf")
        assert time.monotonic() - began_s < 30
        apart._most_s = None
        assert "Glocke" in apart.extract(PAGE, "a.html").text


def test_what_nobody_wants_any_more_is_given_up_at_once() -> None:
    began_s = time.monotonic()
    with (
        Apart(LIMITS, lambda: time.monotonic() > began_s + 0.8) as apart,
        pytest.raises(CancelledError, match=r"reading slow.pdf was cancelled"),
    ):
        apart.extract(SLOW, "slow.pdf")
    assert time.monotonic() - began_s < 30
    assert processes() == []


def test_an_interrupt_ends_the_process() -> None:
    looks: list[int] = []

    def interrupts() -> bool:
        """Ctrl-C while it waits, once it has looked a few times whether to go on."""
        if looks and not looks.pop():
            signal.raise_signal(signal.SIGINT)
        return False

    with Apart(LIMITS, interrupts) as apart:
        apart.extract(PAGE, "a.html")
        (child,) = processes()
        looks[:] = range(5)
        with pytest.raises(KeyboardInterrupt):
            apart.extract(SLOW, "slow.pdf")
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_process_that_was_killed_is_started_anew_and_the_file_is_read_all_the_same(apart: Apart) -> None:
    apart.extract(PAGE, "a.html")
    os.kill(processes()[0].pid, signal.SIGKILL)
    assert "Glocke" in apart.extract(PAGE, "a.html").text


def at_start_of_python(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Code that every Python runs that is started from now on."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder))


THE_READER = "import os, sys, time, kvloom.read.extract\nit = sys.modules['kvloom.read.extract']\n"
DIES_WHILE_READING = f"{THE_READER}it.extract = lambda *_: os.kill(os.getpid(), 9)\n"
IS_KILLED_AT_START = "import os; os.kill(os.getpid(), 9)"


@pytest.mark.parametrize("code", [DIES_WHILE_READING, IS_KILLED_AT_START], ids=["reading", "starting"])
def test_a_document_stays_known_where_the_process_that_reads_it_ends_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    file = tmp_path / "a.html"
    file.write_bytes(PAGE)
    at_start_of_python(tmp_path / "site", monkeypatch, "")
    with LibraryIndex.open(tmp_path / "index") as index:
        index.update(read([file]))
        file.write_bytes(PAGE * 2)
        at_start_of_python(tmp_path / "site", monkeypatch, code)
        updated = index.update(read([file]))
        (skipped,) = updated.skipped
        assert skipped.reason is SkipReason.UNREADABLE
        assert skipped.why.startswith("could not be read: the process that reads it ended, and so did a second one")
        assert (updated.num_removed, index.num_documents) == (0, 1)
        assert index.search("Glocke")
        at_start_of_python(tmp_path / "site", monkeypatch, "")
        assert index.update(read([file])).num_changed == 1
    assert processes() == []


def test_both_tries_together_have_the_time_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"{THE_READER}it.extract = lambda *_: (time.sleep(3), os._exit(1))\n"
    at_start_of_python(tmp_path / "site", monkeypatch, code)
    with Apart(LIMITS, most_s=4.0) as apart, pytest.raises(ContentError, match="could not be read within 4 s"):
        apart.extract(PAGE, "a.html")


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import sys; sys.modules['kvloom.read.extract'] = None", "ModuleNotFoundError"),
        ("import os; os._exit(3)", "it ended with status 3"),
    ],
)
def test_a_process_that_cannot_start_is_no_fault_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, why: str
) -> None:
    at_start_of_python(tmp_path / "site", monkeypatch, code)
    with Apart(LIMITS) as apart, pytest.raises(StoreError, match=f"is to read a.html cannot start .*{why}"):
        apart.extract(PAGE, "a.html")
    assert processes() == []


def test_what_anything_prints_in_the_process_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loud = (
        f"{THE_READER}real = it.extract\n"
        "def extract(*given):\n    print('in the midst', flush=True)\n    os.write(2, b'x' * 200_000)\n"
        "    return real(*given)\n"
        "it.extract = extract\nos.write(1, b'hello\\n12')\n"
    )
    at_start_of_python(tmp_path / "site", monkeypatch, loud)
    with Apart(LIMITS, most_s=20) as apart:
        for _ in range(2):
            assert "Glocke" in apart.extract(PAGE, "a.html").text


@pytest.mark.parametrize("answer", ["hello\\n", "3\\n{}", "2\\n[]"])
def test_what_is_no_answer_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    says = (
        f"{THE_READER}own = os.dup(1)\n"
        f"def extract(*_):\n    os.write(own, b'{answer}')\n    os._exit(0)\n"
        "it.extract = extract\n"
    )
    at_start_of_python(tmp_path / "site", monkeypatch, says)
    with Apart(LIMITS) as apart, pytest.raises(ContentError, match="could not be read: the process"):
        apart.extract(PAGE, "a.html")


def test_a_process_whose_parent_was_killed_ends_by_itself() -> None:
    with Apart(LIMITS) as apart:
        apart.extract(PAGE, "a.html")
        child, process = processes()[0], apart._child
        assert process is not None
        process.ask(_order(SLOW, 0.5))  # nobody looks at the clock
        child.wait(60)


def _order(data: bytes, most_s: float) -> apart_module._Order:
    line = b'{"name": "slow.pdf", "limits": {}, "size": %d, "most_s": %g}\n' % (len(data), most_s)
    return apart_module._Order("slow.pdf", line, data, most_s, time.monotonic() + most_s)


def test_a_folder_is_read_past_a_file_that_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart_module, "MOST_S", 5.0)
    monkeypatch.setattr(apart_module, "BYTES_PER_S", 10**9)
    for name, data in (("a.html", PAGE), ("b.pdf", SLOW), ("c.pdf", pdf_of([["after it"]]))):
        (tmp_path / name).write_bytes(data)
    first, slow, last = read([tmp_path])
    assert isinstance(first, Document)
    assert isinstance(last, Document)
    assert isinstance(slow, Skipped)
    assert slow.reason is SkipReason.UNREADABLE
    assert slow.why.startswith("could not be read within 5 s: save it as plain text")


def test_a_cancelled_reading_says_so_of_the_file_at_hand_and_ends(tmp_path: Path) -> None:
    for name in ("a.pdf", "b.pdf"):
        (tmp_path / name).write_bytes(SLOW)
    began_s = time.monotonic()
    (only,) = read([tmp_path], is_cancelled=lambda: time.monotonic() > began_s + 0.5)
    assert isinstance(only, Skipped)
    assert (only.path.name, only.why) == ("a.pdf", "was not read: it was stopped")


def test_a_reading_that_is_left_leaves_no_process(tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        (tmp_path / name).write_bytes(PAGE)
    reading = read([tmp_path])
    next(reading)
    assert len(processes()) == 1
    del reading
    assert processes() == []

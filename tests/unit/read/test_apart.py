"""Files that are read in a process of their own: as they are read here, and given up when they take too long."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from kvloom.errors import CancelledError, ContentError
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
        assert time.monotonic() - began_s < 5
        assert "Glocke" in apart.extract(PAGE, "a.html").text


def test_what_nobody_wants_any_more_is_given_up_at_once() -> None:
    began_s = time.monotonic()
    with (
        Apart(LIMITS, lambda: time.monotonic() > began_s + 0.8) as apart,
        pytest.raises(CancelledError, match=r"reading slow.pdf was cancelled"),
    ):
        apart.extract(SLOW, "slow.pdf")
    assert time.monotonic() - began_s < 3
    assert processes() == []


def test_an_interrupt_ends_the_process(apart: Apart) -> None:
    apart.extract(PAGE, "a.html")
    (child,) = processes()
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            apart.extract(SLOW, "slow.pdf")
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_process_that_ended_by_a_file_is_told_and_started_anew(apart: Apart) -> None:
    apart.extract(PAGE, "a.html")
    os.kill(processes()[0].pid, signal.SIGSEGV)
    with pytest.raises(ContentError, match=r"a.html could not be read: it is damaged, or takes more memory"):
        apart.extract(PAGE, "a.html")
    assert "Glocke" in apart.extract(PAGE, "a.html").text


def test_a_process_whose_parent_was_killed_ends_by_itself() -> None:
    with Apart(LIMITS, most_s=0.5) as apart:
        apart.extract(PAGE, "a.html")
        child, process = processes()[0], apart._child
        assert process is not None
        process.ask(_order(SLOW, 0.5), SLOW)  # nobody looks at the clock
        child.wait(10)


def _order(data: bytes, most_s: float) -> bytes:
    return b'{"name": "slow.pdf", "limits": {}, "size": %d, "most_s": %g}\n' % (len(data), most_s)


def test_a_folder_is_read_past_a_file_that_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart_module, "MOST_S", 1.0)
    monkeypatch.setattr(apart_module, "BYTES_PER_S", 10**9)
    for name, data in (("a.html", PAGE), ("b.pdf", SLOW), ("c.pdf", pdf_of([["after it"]]))):
        (tmp_path / name).write_bytes(data)
    first, slow, last = read([tmp_path])
    assert isinstance(first, Document)
    assert isinstance(last, Document)
    assert isinstance(slow, Skipped)
    assert slow.reason is SkipReason.UNREADABLE
    assert slow.why.startswith("could not be read within 1 s: save it as plain text")


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

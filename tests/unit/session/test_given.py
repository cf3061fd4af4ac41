"""Documents that were handed over: kept without a file, replaced by name, read as files of that name would be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvloom.errors import ContentError, UsageError
from kvloom.session.libraries import Library, ReadLimits, is_given
from kvloom.session.loom import Loom
from kvloom.session.precompute import Precomputed
from tests.unit.session.fakes import fake_loom

FACT = "The bell of the chapel weighs exactly four hundred stone.\n"
OTHER = "The clock of the townhall was built by Perpetua Zwirn.\n"


@pytest.fixture
def loom(tmp_path: Path) -> Iterator[Loom]:
    with fake_loom(tmp_path / "home", context=4096) as opened:
        yield opened


@pytest.fixture
def library(loom: Loom) -> Library:
    return loom.library("books")


def documents(library: Library) -> list[str]:
    return [one.name for one in library.documents()]


def test_a_given_text_is_found_and_a_refresh_keeps_it(library: Library, tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    file.write_text(OTHER)
    library.add(file)
    added = library.add_texts({"bell.txt": FACT})
    file.unlink()
    refreshed = library.refresh()
    assert (added.num_added, refreshed.num_removed) == (1, 1)
    assert documents(library) == ["bell.txt"] and all(map(is_given, library.documents()))
    assert library.search("Who weighs the bell?")[0].text == FACT


def test_a_name_given_again_gets_the_new_text(library: Library) -> None:
    library.add_texts({"a.txt": FACT, "b.txt": OTHER})
    changed = library.add_texts({"a.txt": OTHER})
    again = library.add_texts({"a.txt": OTHER})
    assert (changed.num_changed, again.num_unchanged) == (1, 1)
    assert documents(library) == ["a.txt", "b.txt"] and library.search("the bell of the chapel") == []


def test_names_that_look_like_one_path_are_different_documents(library: Library) -> None:
    names = ["a/b", "a//b", "./a/b", "..", "/etc/passwd", "C:\\a", "%2F"]
    library.add_texts(dict.fromkeys(names, FACT))
    assert documents(library) == sorted(names)
    library.refresh()
    library.remove("/etc/passwd")
    assert documents(library) == sorted(set(names) - {"/etc/passwd"})


def test_bytes_are_read_as_a_file_of_that_name_would_be(library: Library) -> None:
    page = b"<html><body><h1>Bells</h1><script>no()</script><p>The bell weighs four hundred stone.</p></body></html>"
    library.add_bytes({"page.html": page, "wide.txt": "café bell".encode("utf-16")})
    library.add_texts({"source.html": page.decode()})
    found = {one.document: one.text for one in library.search("bell")}
    assert "<p>" not in found["page.html"] and "<p>" in found["source.html"]
    assert "café" in found["wide.txt"]


@pytest.mark.parametrize("text", ["", "  \n", "a\0b", "half \ud800"])
def test_what_is_no_text_is_refused_and_nothing_is_added(library: Library, text: str) -> None:
    with pytest.raises(ContentError, match="bad"):
        library.add_texts({"good.txt": FACT, "bad.txt": text})
    assert documents(library) == []


@pytest.mark.parametrize("name", ["", " ", " a", "a\n", "a\0", "x" * 257, "\ud800"])
def test_what_cannot_be_a_name_is_refused(library: Library, name: str) -> None:
    with pytest.raises(UsageError, match="name"):
        library.add_texts({name: FACT})
    with pytest.raises(UsageError, match="name"):
        library.add_bytes({name: FACT.encode()})


def test_a_file_of_the_same_name_is_not_replaced(library: Library, tmp_path: Path) -> None:
    file = tmp_path / "bell.txt"
    file.write_text(OTHER)
    library.add(file)
    with pytest.raises(UsageError, match="from a file"):
        library.add_texts({"bell.txt": FACT})
    assert library.search("clock townhall") and not library.search("chapel bell")


def test_a_file_that_comes_later_stands_beside_a_given_text_of_its_name(library: Library, tmp_path: Path) -> None:
    file = tmp_path / "bell.txt"
    file.write_text(OTHER)
    library.add_texts({"bell.txt": FACT})
    library.add(file)
    assert len(documents(library)) == 2 and library.search("chapel bell") and library.search("clock townhall")


def test_limits_are_those_of_the_caller(library: Library) -> None:
    with pytest.raises(ContentError, match="limit is 8"):
        library.add_texts({"a.txt": FACT}, limits=ReadLimits(max_file_bytes=8))
    with pytest.raises(ContentError, match="tags"):
        library.add_bytes({"a.html": b"<p><b><i>x"}, limits=ReadLimits(max_html_tags=2))


def test_a_precomputation_with_a_limit_stops_there_and_goes_on_behind_it(library: Library) -> None:
    library.add_texts({f"{n}.txt": f"{FACT}{n} " * 20 for n in range(8)})
    runs: list[Precomputed] = []
    while not runs or not runs[-1].is_complete:
        runs.append(library.precompute(max_tokens=2000))
        assert runs[-1].num_computed, "each run gets on"
    assert len(runs) > 2
    assert all(run.computed_tokens <= 2000 for run in runs)
    assert sum(run.num_computed for run in runs) == runs[-1].num_passages

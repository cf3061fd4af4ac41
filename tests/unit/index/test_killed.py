"""An update that is killed: whole documents stay, nothing is half there, and the next update goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kvloom.index import LibraryIndex
from tests.unit.index.texts import document, prose

_ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("num_told", [1, 3])
def test_a_killed_update_leaves_whole_documents_and_the_next_goes_on(tmp_path: Path, num_told: int) -> None:
    path = tmp_path / "books.sqlite3"
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.unit.index.update_child", str(path), "1000"],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    with child, child.stdout:
        for _ in range(num_told):
            assert child.stdout.readline()
        child.kill()
    with LibraryIndex.open(path) as index:
        kept = index.documents()
        assert num_told <= len(kept) < 1000
        texts = {info.name: "" for info in kept}
        for stored in index.passages():
            texts[stored.document] += stored.text
        assert texts == {info.name: prose(40_000, seed=int(info.name.split(".")[0])) for info in kept}
        num_indexed = index._file.rows("SELECT count(*) FROM words_docsize")[0][0]
        assert num_indexed == index.num_passages == sum(info.num_passages for info in kept)
        num_wanted = len(kept) + 2
        done = index.update(document(f"{n}.md", prose(40_000, seed=n)) for n in range(num_wanted))
        assert (done.num_unchanged, done.num_added) == (len(kept), 2)
        index._file.execute("INSERT INTO words (words) VALUES ('integrity-check')")

"""`kvloom truncate` on a real tiny model: the text alone on standard output, exact, in a pipe too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Kvloom

TEXT = "The first line.\n" + "the words in between\n" * 200 + "The last line.\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.mark.parametrize("keep", ["head", "tail", "both"])
def test_a_text_is_cut_to_tokens_of_the_model(kvloom: Kvloom, file: Path, keep: str) -> None:
    ran = kvloom("truncate", file, "--tokens", "200", "--keep", keep, "--json")
    assert ran.code == 0, ran.err
    found = ran.document
    assert 195 <= found["num_tokens"] <= 200
    assert ("The first line." in found["text"]) == (keep != "tail")
    assert ("The last line." in found["text"]) == (keep != "head")
    assert f"[… {found['num_removed_tokens']} tokens left out …]" in found["text"]
    counted = kvloom("count", "-", "--json", stdin=found["text"]).document["num_tokens"]
    assert counted == found["num_tokens"]
    assert "".join(TEXT[part["start"] : part["stop"]] for part in found["kept"]) in found["text"].replace(
        f"\n[… {found['num_removed_tokens']} tokens left out …]\n", ""
    )


def test_without_json_the_text_is_all_of_the_output(kvloom: Kvloom, file: Path) -> None:
    ran = kvloom("truncate", file, "-n", "60", "--marker", "[{n}]")
    document = kvloom("truncate", file, "-n", "60", "--marker", "[{n}]", "--json").document
    assert ran.out == document["text"]
    assert f"{document['num_removed_tokens']:,} left out" in ran.err
    assert (
        kvloom("truncate", file, "-n", "60", "--marker", "").out
        == TEXT[: len(kvloom("truncate", file, "-n", "60", "--marker", "").out)]
    )


def test_a_text_that_fits_comes_back_as_it_is(kvloom: Kvloom) -> None:
    ran = kvloom("truncate", "-", "--tokens", "50", stdin="short\n\ntext")
    assert (ran.out, ran.err) == ("short\n\ntext", "")
    assert kvloom("truncate", "-", "--tokens", "0", stdin="some text").out == ""


def test_line_ends_of_standard_input_stay_as_they_are(tiny_model: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kvloom.cli.main", "truncate", "-", "-n", "40", "--model", tiny_model,
         "--home", tmp_path / "home", "--context", "1024"],
        input="é one\r\ntwo\n".encode(), capture_output=True, check=False,
    )  # fmt: skip
    assert done.stdout == "é one\r\ntwo\n".encode(), done.stderr


def test_wrong_usage_is_told(kvloom: Kvloom, file: Path) -> None:
    ran = kvloom("truncate", file, "--tokens", "10", "--keep", "middle", loom=False)
    assert ran.code == 2
    assert "'head', 'tail', 'both'" in ran.err
    assert kvloom("truncate", file, "--tokens", "-1", loom=False).code == 2
    assert kvloom("truncate", file, loom=False).code == 2
    assert "no such file" in kvloom("truncate", file.with_name("none"), "-n", "1").err

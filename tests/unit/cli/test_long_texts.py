"""`kvloom window` and `kvloom summarize` on a real tiny model: results, resuming, refusals, the tree."""

from __future__ import annotations

import io
import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvloom.cli import amounts
from kvloom.cli.long_text import ReadText, standard_input
from kvloom.errors import ContentError
from kvloom.read import ReadLimits
from tests.unit.cli.conftest import Kvloom

TEXT = "\n\n".join(f"Paragraph {number} tells of a cat, and of the line {number * 3}." for number in range(60)) + "\n"
QUESTION = ("--prompt", "Which lines?", "--max-tokens", "4", "--size", "300")


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.md"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_windows_cover_the_file_and_are_found_again(kvloom: Kvloom, book: Path) -> None:
    ran = kvloom("window", book, *QUESTION, "--overlap", "50%", "--json")
    assert ran.code == 0, ran.err
    found = ran.document
    assert found["windows"][0]["start"] == 0
    assert found["windows"][-1]["stop"] == len(TEXT)
    for before, after in itertools.pairwise(found["windows"]):
        assert before["start"] < after["start"] < before["stop"] < after["stop"]
    assert all(one["num_tokens"] <= 300 and one["is_new"] for one in found["windows"])
    again = kvloom("window", book, *QUESTION, "--overlap", "0.5", "--json").document
    assert (again["num_asked"], again["num_found"]) == (0, found["num_asked"])
    assert again["text"] == found["text"]


def test_one_answer_is_made_of_the_replies(kvloom: Kvloom, book: Path) -> None:
    found = kvloom("window", book, *QUESTION, "--combine", "answer", "--json").document
    assert found["num_asked"] > len(found["windows"]) > 2
    assert found["num_rounds"] >= 1
    shown = kvloom("window", book, *QUESTION, "--combine", "answer")
    assert shown.out.strip() == amounts.printable(found["text"]).strip()
    assert "replies from before" in shown.err


@pytest.mark.parametrize("overlap", ["1", "100%", "-0.5", "1.5", "0.76", "nan"])
def test_an_overlap_that_never_moves_on_is_refused_with_words(kvloom: Kvloom, book: Path, overlap: str) -> None:
    ran = kvloom("window", book, *QUESTION, f"--overlap={overlap}", "--json")
    assert ran.code == 1
    message = json.loads(ran.err)["error"]["message"]
    assert "0.75" in message
    assert ("never ends" in message) == (overlap in ("1", "100%"))


def test_what_makes_no_sense_is_refused(kvloom: Kvloom, book: Path, tmp_path: Path) -> None:
    assert kvloom("window", book, "--prompt", "x", "--overlap", "half", loom=False).code == 2
    assert kvloom("window", book, "--prompt", "x", "--size", "0", loom=False).code == 2
    assert kvloom("window", book, loom=False).code == 2
    assert "the prompt is empty" in kvloom("window", book, "--prompt", " ").err
    assert "room for" in kvloom("window", book, "--prompt", "x", "--size", "1000").err
    assert "none.txt: no such file or folder" in kvloom("window", tmp_path / "none.txt", "--prompt", "x").err
    assert "none.txt: no such file or folder" in kvloom("summarize", book, tmp_path / "none.txt").err
    (tmp_path / "two").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "two" / name).write_text("text", encoding="utf-8")
    assert "name one file" in kvloom("window", tmp_path / "two", "--prompt", "x").err


def test_a_summary_with_its_tree(kvloom: Kvloom, book: Path) -> None:
    ran = kvloom("summarize", book, "--words", "40", "--tree", "--json")
    assert ran.code == 0, ran.err
    found = ran.document
    assert 0 < found["num_words"] <= 40
    root = found["tree"]
    assert (root["first_line"], root["last_line"], root["text"]) == (1, TEXT.count("\n"), found["text"])
    assert len(root["children"]) > 1
    shown = kvloom("summarize", book, "--words", "40", "--tree")
    assert "book.md, lines 1-119: summary of" in shown.out
    assert "notes of" in shown.out
    assert "0 prompts computed" in shown.err
    assert "tree" not in kvloom("summarize", book, "--words", "40", "--json").document


def test_an_edited_paragraph_computes_only_its_branch(kvloom: Kvloom, book: Path) -> None:
    first = kvloom("summarize", book, "--words", "40", "--json").document
    book.write_text(TEXT.replace("Paragraph 40 tells of a cat", "Paragraph 40 tells of a dog"), encoding="utf-8")
    found = kvloom("summarize", book, "--words", "40", "--json").document
    assert 0 < found["num_asked"] < first["num_asked"] / 2


def test_a_folder_is_summarized_with_what_was_left_out(kvloom: Kvloom, tmp_path: Path, book: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    book.rename(folder / "book.md")
    (folder / "page.html").write_text("<p>A page on cats, and on what they do all day.</p>", encoding="utf-8")
    (folder / "x.bin").write_bytes(b"\x00\x01")
    ran = kvloom("summarize", folder, "--words", "30", "--json", "--tree")
    assert ran.code == 0, ran.err
    assert [name.rpartition("/")[2] for name in ran.document["files"]] == ["book.md", "page.html"]
    assert "x.bin" in ran.document["skipped"][0]
    assert len(ran.document["tree"]["children"]) == 2
    assert "left out" in kvloom("summarize", folder, "--words", "30").err


def test_standard_input_is_a_document(kvloom: Kvloom) -> None:
    ran = kvloom("summarize", "-", "--words", "20", "--json", stdin="A cat sat on a mat, and then it went away again.")
    assert ran.code == 0, ran.err
    assert ran.document["files"] == ["standard input"]
    assert "nothing to summarize" in kvloom("summarize", "-", stdin=" \n").err


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_stopped_goes_on_where_it_was(
    kvloom: Kvloom, tiny_model: Path, tmp_path: Path, way: signal.Signals
) -> None:
    book = tmp_path / "long.md"
    book.write_text(" ".join(f"cat {number}" for number in range(2500)), encoding="utf-8")
    shared = ["--model", str(tiny_model), "--home", str(tmp_path / "home"), "--context", "1024"]
    words = ["window", str(book), "--prompt", "Which?", "--max-tokens", "60", "--size", "300"]
    started = subprocess.Popen(
        [sys.executable, "-m", "kvloom.cli.main", *words, *shared], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "KVLOOM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while num_results(tmp_path / "home") < 3 and time.monotonic() < deadline and started.poll() is None:
        time.sleep(0.01)
    started.send_signal(way)
    out, err = started.communicate(timeout=60)
    if way is signal.SIGINT:
        assert started.returncode == 130, err
        assert "run it again to go on" in err
        assert out == ""
    num_kept = num_results(tmp_path / "home")
    assert num_kept >= 3
    found = kvloom(*words, "--json").document
    assert found["num_found"] == num_kept
    assert found["num_asked"] == len(found["windows"]) - num_kept > 0


def num_results(home: Path) -> int:
    try:
        with sqlite3.connect(f"file:{home / 'catalog.sqlite3'}?mode=ro", uri=True) as database:
            return int(database.execute("SELECT count(*) FROM results").fetchone()[0])
    except sqlite3.Error:  # not made yet
        return 0


def test_replies_that_ended_at_their_limit_are_told(kvloom: Kvloom, book: Path) -> None:
    found = kvloom("window", book, *QUESTION, "--json").document["windows"]
    num_cut_off = sum(one["is_cut_off"] for one in found)
    assert num_cut_off > 0, "random weights end no reply within four tokens"
    assert (
        f"{num_cut_off} of {len(found)} replies ended at 4 tokens: --max-tokens"
        in kvloom("window", book, *QUESTION).err
    )


@pytest.mark.parametrize("words", [["count"], ["truncate", "-n", "9"], ["window", "-p", "x"], ["summarize"]])
def test_older_encodings_are_read_by_all_commands_and_told(kvloom: Kvloom, tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "old.txt").write_bytes("Le café est fermé à midi.".encode("latin-1"))
    ran = kvloom(*words, tmp_path / "old.txt")
    assert ran.code == 0, ran.err
    assert "old.txt: read as Windows-1252" in ran.err


@pytest.mark.parametrize("words", [["count"], ["truncate", "-n", "9"], ["window", "-p", "x"], ["summarize"]])
def test_what_is_no_text_is_refused_by_all_commands_in_the_same_words(
    kvloom: Kvloom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    (tmp_path / "x.bin").write_bytes(b"ab\x00c")
    assert f"error: {tmp_path / 'x.bin'} is binary (a NUL byte at 2)" in kvloom(*words, tmp_path / "x.bin").err
    assert "none: no such file or folder" in kvloom(*words, tmp_path / "none").err


def test_standard_input_is_read_as_files_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for data, text, note in ((b"caf\xe9 ferm\xe9\r\n", "café fermé\r\n", "read as Windows-1252"), (b"", "", "")):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert standard_input(ReadLimits()) == ReadText("standard input", text, note)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"%PDF-1.4")))
    with pytest.raises(ContentError, match=r"standard input is a PDF document, .*pdftotext"):
        standard_input(ReadLimits())


def test_an_empty_file_is_told_with_its_path_and_one_reason(kvloom: Kvloom, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert f"error: {tmp_path / 'empty'} is empty (0 bytes)\n" in kvloom("window", tmp_path / "empty", "-p", "x").err

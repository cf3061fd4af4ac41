"""Books on the command line: `kvloom ask BOOK… QUESTION`, `/load` of what is too long, `/recall on|off`."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from kvloom.cli.chat import Chat
from kvloom.cli.main import run
from kvloom.cli.options import Options
from kvloom.cli.slash.books import BYTES_PER_TOKEN, wants_library
from kvloom.session.home_libraries import HomeLibraries
from tests.unit.cli.conftest import Kvloom, Ran, results

FILLER = "The market sells bread and fish and the square is full of people who talk about the weather. "
FACT = "The lighthouse keeper of Varnholm is called Ottokar Brimblewick."
QUESTION = "Who is the lighthouse keeper of Varnholm?"
SHORT = ("--max-tokens", "2", "--temperature", "0")


@pytest.fixture
def kvloom(kvloom: Kvloom, tiny_model: Path, tmp_path: Path) -> Kvloom:
    """With a window that holds a passage: the tiny model has a token for every byte."""
    where: tuple[str | Path, ...] = ("--model", tiny_model, "--home", tmp_path / "home", "--context", "4096")

    def call(*words: str | Path, stdin: str = "") -> Ran:
        return kvloom(*words, *where, stdin=stdin, loom=False)

    return call


@pytest.fixture
def book(files: list[Path]) -> Path:
    """Some 10,000 characters; the fact stands in the middle."""
    path = files[0].parent / "book.md"
    path.write_text("".join(f"# Part {n}\n\n{FILLER}\n{FACT if n == 50 else ''}\n\n" for n in range(200)))
    return path


def test_ask_looks_a_question_up_in_a_book_and_cites_it(kvloom: Kvloom, book: Path) -> None:
    first = kvloom("ask", book, QUESTION, *SHORT, "--json").document
    lines = book.read_text().splitlines()
    source = first["sources"][0]
    assert FACT in "\n".join(lines[source["first_line"] - 1 : source["last_line"]])
    assert (source["document"], source["tier"]) == ("book.md", "none")
    assert first["library"]["updated"]["num_added"] == 1
    again = kvloom("ask", book, QUESTION, *SHORT, "--json").document
    assert again["library"]["updated"]["num_unchanged"] == 1
    assert again["sources"][0]["chunk"] == source["chunk"]
    assert again["sources"][0]["tier"] in ("disk", "ram")
    assert again["usage"]["loaded_tokens"] >= source["num_tokens"]


def test_ask_with_a_book_and_no_question_says_so(kvloom: Kvloom, book: Path) -> None:
    ran = kvloom("ask", book)
    assert ran.code == 1
    assert "give the question about it" in ran.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("", "what?"), "an empty name is no file or folder"),
        (("-f", "", "what?"), "an empty name is no file or folder"),
        (
            ("book.md", "a.py", "--precompute"),
            "a.py is there as a file or folder: give the question",
        ),
        (("-f", "a.py", "book.md"), "can be given on standard input with -"),
        (("book.md", "caf\udce9?"), "the question is not UTF-8 text: byte 3 (0xe9)"),
        (("book.md", " "), "the question is empty"),
        (("-", "what?"), "a text to ask about is given as a file"),
        (("https://example.org/a", "what?"), "https://example.org/a: addresses are not fetched"),
        (("gone.md", "what?"), "gone.md: no such file or folder"),
        (("-f", "gone.md", "what?"), "gone.md: no such file or folder"),
    ],
)
def test_what_is_no_book_or_no_question_is_told_before_a_model_is_loaded(
    kvloom: Kvloom, book: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str
) -> None:
    def refuse(*_: object) -> None:
        pytest.fail("a model was loaded")

    monkeypatch.setattr(Options, "open_loom", refuse)
    ran = kvloom("ask", *words)
    assert (ran.code, ran.out) == (1, "")
    assert said in ran.err


@pytest.mark.parametrize("words", [("ask", "book.md", "-"), ("libraries", "search", "books", "-")])
def test_standard_input_that_is_no_text_is_told_with_its_byte(
    book: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9?")))
    assert run(words) == 1
    said = "standard input is not UTF-8 text: byte 3 (0xe9) cannot be read; convert it first"
    assert book.exists() and said in capsys.readouterr().err


def test_a_chat_tells_a_line_that_is_no_text_after_those_before_it(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"/fidelity\ncaf\xe9?\n")))
    assert run(["chat", "--json", "--model", str(tiny_model), "--home", str(tmp_path)]) == 1
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["ok"], second["ok"], second["line"]) == (True, False, "caf??")
    assert "the line is not UTF-8 text: byte 3 (0xe9)" in second["error"]["message"]


def test_a_file_too_long_to_be_read_whole_is_named_as_a_book(kvloom: Kvloom, book: Path) -> None:
    ran = kvloom("ask", "-f", book, QUESTION)
    assert ran.code == 1
    assert "is too long to be read whole" in ran.err
    assert f'name it as a book instead: kvloom ask {book} "…"' in ran.err


def test_a_reply_that_was_cut_names_an_option_of_ask(kvloom: Kvloom, book: Path) -> None:
    ran = kvloom("ask", book, QUESTION, *SHORT)
    assert "reached its longest length; --max-tokens lets it be longer)" in ran.out
    assert "/retry" not in ran.out


def test_a_text_may_be_as_large_as_the_setting_says(
    kvloom: Kvloom, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kvloom("ask", book, QUESTION, *SHORT).code == 0
    monkeypatch.setenv("KVLOOM_RECALL__MAX_FILE_BYTES", "10kB")
    for words in (("ask", book, QUESTION), ("window", book, "-p", "what?"), ("summarize", book)):
        ran = kvloom(*words)
        assert ran.code == 1
        assert "the limit for one file is 10,000: split it, or raise recall.max_file_bytes" in ran.err


def test_ask_shows_its_sources_and_explains_them(kvloom: Kvloom, book: Path) -> None:
    ran = kvloom("ask", book, QUESTION, *SHORT, "--explain")
    assert ran.code == 0, ran.err
    assert "sources: book.md:" in ran.out, ran.out + ran.err
    for word in ("coverage", "because of", "KV was", "lighthouse keeper varnholm"):
        assert word in ran.out
    assert "book.md~" in ran.err
    assert "1 added" in ran.err


def test_ask_takes_folders_and_several_books_and_whole_files_beside_them(
    kvloom: Kvloom, book: Path, files: list[Path]
) -> None:
    ran = kvloom("ask", book.parent, QUESTION, "-f", files[0], "--depth", "1", *SHORT, "--json").document
    assert len(ran["sources"]) == 1
    assert ran["sources"][0]["document"].endswith("book.md")
    assert [chunk["name"] for chunk in ran["chunks"]] == ["a.py"]


def test_a_changed_book_is_read_again(kvloom: Kvloom, book: Path) -> None:
    kvloom("ask", book, QUESTION, *SHORT)
    book.write_text(book.read_text().replace("Ottokar Brimblewick", "Perpetua Zwirn"))
    ran = kvloom("ask", book, QUESTION, *SHORT, "--json").document
    assert ran["library"]["updated"]["num_changed"] == 1
    assert ran["library"]["updated"]["num_passages_added"] <= 2
    assert ran["library"]["num_documents"] == 1


def test_precompute_computes_every_passage_once(kvloom: Kvloom, book: Path) -> None:
    first = kvloom("ask", book, QUESTION, *SHORT, "--precompute", "--json").document["precomputed"]
    again = kvloom("ask", book, QUESTION, *SHORT, "--precompute", "--json").document["precomputed"]
    assert first["num_computed"] == first["num_passages"] > 5
    assert (again["num_computed"], again["num_known"]) == (0, first["num_passages"])


def test_nothing_relevant_is_said(kvloom: Kvloom, book: Path) -> None:
    for more in ([], ["--explain"], ["--json"]):
        ran = kvloom("ask", book, "Xylophone quasar zeppelin?", *SHORT, *more)
        assert (ran.code, ran.out) == (1, "")  # the model alone would make an answer up
        assert "nothing relevant found in book.md~" in ran.err


def test_the_same_question_has_the_same_answer_where_nobody_says_how_to_draw(
    kvloom: Kvloom, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers() -> set[str]:
        return {kvloom("ask", book, QUESTION, "--json").document["text"] for _ in range(3)}

    assert len(answers()) == 1
    monkeypatch.setenv("KVLOOM_SAMPLING__TEMPERATURE", "2")
    assert len(answers()) > 1


def test_a_file_that_is_given_whole_may_answer_what_the_books_do_not(
    kvloom: Kvloom, book: Path, files: list[Path]
) -> None:
    ran = kvloom("ask", book, "Xylophone quasar zeppelin?", "-f", files[0], *SHORT, "--explain")
    assert ran.code == 0
    assert "nothing relevant found in book.md~" in ran.out
    assert "no passage was chosen" in ran.out


def test_a_book_that_is_not_there_says_to_quote_the_question(kvloom: Kvloom, files: list[Path]) -> None:
    ran = kvloom("ask", "what", "is", "this?")
    assert ran.code == 1
    assert "put a question in quotes" in ran.err


def test_books_without_text_are_refused_with_the_reason(kvloom: Kvloom, files: list[Path], tmp_path: Path) -> None:
    binary = tmp_path / "x.bin"
    binary.write_bytes(b"\x00\x01" * 500)
    ran = kvloom("ask", binary, "what?")
    assert ran.code == 1
    assert "there is no text in" in ran.err
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "is an empty folder" in kvloom("ask", empty, "what?").err


def test_options_about_books_want_one(kvloom: Kvloom, files: list[Path]) -> None:
    ran = kvloom("ask", "-f", files[0], "--explain", "what?")
    assert ran.code == 1
    assert "name one before the question" in ran.err


def test_load_of_a_long_file_looks_it_up_and_recall_switches_that(kvloom: Kvloom, book: Path) -> None:
    script = f"/load {book.name}\n{QUESTION}\n/recall off\n{QUESTION}\n/recall on\n{QUESTION}\n/load a.py\n"
    loaded, first, off, without, on, again, small = results(kvloom("chat", "--session", "talk", "--json", stdin=script))
    assert loaded["loaded"] == []
    assert loaded["libraries"][0]["updated"]["num_added"] == 1
    assert first["sources"][0]["document"] == "book.md"
    assert (off["recall"], on["recall"]) == (False, True)
    assert without["sources"] == []
    assert again["sources"][0]["chunk"] == first["sources"][0]["chunk"]
    assert small["loaded"][0]["name"] == "a.py", "what is short is read whole"


def test_a_chat_shows_sources_under_the_reply_and_remembers_its_library(kvloom: Kvloom, book: Path) -> None:
    words = ("chat", "--session", "talk")
    ran = kvloom(*words, stdin=f"/load {book.name}\n")
    assert "is looked up passage by passage" in ran.out
    assert "/recall off stops that" in ran.out
    assert "sources: book.md:" in kvloom(*words, stdin=f"{QUESTION}\n").out


def test_context_shows_what_is_attached_and_whether_it_is_looked_up(kvloom: Kvloom, book: Path) -> None:
    here = ("chat", "--session", "talk")
    loaded, context = results(kvloom(*here, "--json", stdin=f"/load {book.name}\n/context\n"))
    (library,) = context["standing"]["libraries"]
    assert (library["name"], library["fault"]) == (loaded["libraries"][0]["name"], "")
    assert library["num_passages"] == loaded["libraries"][0]["updated"]["num_passages_added"]
    assert context["standing"]["is_recalling"]
    line = f"{library['name']}: {library['num_passages']} passages · recall"
    assert f"{line} on" in kvloom(*here, stdin="/context\n").out, "with the session, in another process"
    assert f"{line} off" in kvloom(*here, stdin="/recall off\n/context\n").out
    assert f"{line} off" in kvloom("context", "show", "--session", "talk").out
    stored = kvloom("context", "show", "--session", "talk", "--json").document["standing"]
    assert [one["name"] for one in stored["libraries"]] == [library["name"]]
    assert not stored["is_recalling"]


def test_a_library_that_is_gone_is_shown_as_that_and_detached_by_its_name(
    kvloom: Kvloom, book: Path, tmp_path: Path
) -> None:
    here = ("chat", "--session", "talk", "--json")
    name = results(kvloom(*here, stdin=f"/load {book.name}\n"))[0]["libraries"][0]["name"]
    HomeLibraries(tmp_path / "home").delete(name)
    (listed,) = results(kvloom(*here, stdin="/recall\n"))
    assert [(one["name"], one["fault"]) for one in listed["libraries"]] == [(name, "it is not in this home any more")]
    failed = kvloom(*here, stdin="/reload\n")
    assert failed.code == 1
    assert f"/deactivate {name}" in failed.lines[-1]["errors"][0]["message"]
    gone, left = results(kvloom(*here, stdin=f"/deactivate {name}\n/recall\n"))
    assert (gone["detached"], left["libraries"]) == ([name], [])


@pytest.mark.parametrize("by", ["name", "file", "path"])
def test_deactivate_of_a_library_detaches_it_and_undo_attaches_it_again(by: str, kvloom: Kvloom, book: Path) -> None:
    here = ("chat", "--session", "talk", "--json")
    name = results(kvloom(*here, stdin=f"/load {book.name} a.py\n"))[0]["libraries"][0]["name"]
    word = {"name": name, "file": book.name, "path": book}[by]
    script = f"/deactivate {word} a.py\n{QUESTION}\n/recall\n/clear 1\n/undo\n/undo\n/undo\n/recall\n"
    off, reply, none, *_, back = results(kvloom(*here, stdin=script))
    assert (off["detached"], len(off["ids"]), reply["sources"], none["libraries"]) == ([name], 1, [], [])
    assert [one["name"] for one in back["libraries"]] == [name]
    said = kvloom("chat", "--session", "talk", stdin=f"/deactivate {word}\n").out
    assert f"detached: {name}: no question is looked up there any more; /undo takes it back" in said
    assert "off:" not in said


def test_a_wrong_name_beside_a_library_detaches_nothing(kvloom: Kvloom, book: Path) -> None:
    assert kvloom("chat", "--session", "talk", stdin=f"/load {book.name}\n/deactivate {book.name} nothing\n").code == 1
    assert len(results(kvloom("chat", "--session", "talk", "--json", stdin="/recall\n"))[0]["libraries"]) == 1


def test_a_file_name_that_several_libraries_were_made_for_is_asked_about(kvloom: Kvloom, book: Path) -> None:
    for folder in ("one", "two"):
        (book.parent / folder).mkdir()
        (book.parent / folder / book.name).write_text(book.read_text())
    ran = kvloom("chat", "--session", "talk", stdin="/load one/book.md two/book.md\n/deactivate book.md\n")
    assert ran.code == 1
    assert "2 attached libraries are called 'book.md'; name one of book.md~" in ran.err
    off, left = results(kvloom("chat", "--session", "talk", "--json", stdin="/deactivate one/book.md\n/recall\n"))
    (other,) = left["libraries"]
    assert off["detached"] != [other["name"]]


def test_recall_alone_lists_what_is_attached(kvloom: Kvloom, book: Path) -> None:
    assert "recall is on: no library is attached; /load attaches a long file" in kvloom("chat", stdin="/recall\n").out
    on = kvloom("chat", "--session", "talk", stdin=f"/load {book.name}\n/recall\n").out
    assert "recall is on:\nbook.md~" in on
    assert "/recall off stops looking questions up in it, /deactivate NAME detaches it" in on
    off = kvloom("chat", "--session", "talk", stdin="/recall off\n/recall\n").out
    assert off.count("recall is off:\nbook.md~") == 2


def test_an_empty_ledger_tells_libraries_from_what_is_in_the_prompt(kvloom: Kvloom, book: Path) -> None:
    here = ("chat", "--session", "talk")
    ran = kvloom(*here, stdin=f"/load {book.name}\n/ledger\n/recall off\n/ledger\n").out
    assert "everything that was given whole is in the prompt; 1 library is looked up as questions need it" in ran
    assert "everything that was given whole is in the prompt; 1 library is attached, and recall is off" in ran
    assert "everything that was ever given" not in ran
    assert results(kvloom(*here, "--json", stdin="/ledger\n"))[0]["libraries"]


def test_reload_reads_a_changed_file_of_a_library_anew(kvloom: Kvloom, book: Path) -> None:
    here = ("chat", "--session", "talk")
    (loaded,) = results(kvloom(*here, "--json", stdin=f"/load {book.name}\n"))
    assert "no file of this context has changed" in kvloom(*here, stdin="/reload\n").out
    book.write_text(book.read_text().replace("Ottokar Brimblewick", "Perpetua Zwirn"))
    reloaded, _, prompt = results(kvloom(*here, "--json", stdin=f"/reload\n{QUESTION}\n/context prompt\n"))
    (library,) = reloaded["libraries"]
    assert (reloaded["reloaded"], library["name"]) == ([], loaded["libraries"][0]["name"])
    assert library["updated"]["num_changed"] == 1
    assert library["updated"]["num_passages_added"] <= 2
    assert "Perpetua Zwirn" in prompt["text"]
    book.write_text(book.read_text() + "The end.\n")
    said = kvloom(*here, stdin="/reload\n").out
    assert "book.md~" in said
    assert "1 changed" in said
    assert "no file of this context" not in said


def test_recall_of_a_ledger_line_works_as_ever(kvloom: Kvloom, files: list[Path]) -> None:
    script = "/load a.py\n/clear\n/recall a.py\n"
    _, _, back = results(kvloom("chat", "--json", stdin=script))
    assert back["refs"] == ["a.py"]


def test_a_person_is_asked_whether_a_file_that_would_just_fit_is_read_whole(chat: Chat, tmp_path: Path) -> None:
    near, far, small = (tmp_path / name for name in ("near.txt", "far.txt", "small.txt"))
    window = chat.session.window
    for path, share in ((near, 0.7), (far, 2.0), (small, 0.2)):
        path.write_text("word " * int(share * window * BYTES_PER_TOKEN / 5))
    asked: list[str] = []

    def refuse(question: str) -> bool:
        asked.append(question)
        return False

    assert wants_library(chat, near), "nobody is there to ask"
    chat.confirm = refuse
    assert not wants_library(chat, near)
    assert "Look it up passage by passage" in asked[0]
    assert wants_library(chat, far), "it cannot be read whole"
    assert not wants_library(chat, small)
    assert wants_library(chat, tmp_path)
    assert len(asked) == 1


def test_load_of_an_empty_name_reads_no_folder(kvloom: Kvloom, files: list[Path]) -> None:
    ran = kvloom("chat", stdin='/load ""\n')
    assert ran.code == 1
    assert "an empty name is no file or folder" in ran.err

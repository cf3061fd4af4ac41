"""`kvloom libraries …` and `kvloom ask --library NAME`: what is told of libraries, and what is done to them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kvloom.cli.options import Options
from kvloom.engine.llamacpp import LlamaCppEngine
from kvloom.session.libraries import FOLDER, SUFFIX, adhoc_name, is_adhoc
from tests.unit.cli.conftest import Kvloom, Ran
from tests.unit.read.pdf_files import pdf_of
from tests.unit.session.fakes import fake_loom

FILLER = "The market sells bread and fish and the square is full of people who talk about the weather. "
FACT = "The lighthouse keeper of Varnholm is called Ottokar Brimblewick."
QUESTION = "Who is the lighthouse keeper of Varnholm?"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def books(files: list[Path]) -> Path:
    """A folder with two documents; the fact stands in one of them."""
    folder = files[0].parent / "books"
    folder.mkdir()
    for name, fact in (("harbour.md", FACT), ("market.txt", "Nobody asks for this.")):
        (folder / name).write_text(
            "".join(f"# Part {n}\n\n{FILLER}\n{fact if n == 30 else ''}\n\n" for n in range(60)), encoding="utf-8"
        )
    return folder


@pytest.fixture
def libraries(kvloom: Kvloom, home: Path, monkeypatch: pytest.MonkeyPatch) -> Kvloom:
    """`kvloom libraries …` of this home; no model may be loaded."""
    monkeypatch.setattr(LlamaCppEngine, "__init__", lambda *_: pytest.fail("a model was loaded"))

    def call(*words: str | Path, stdin: str = "") -> Ran:
        return kvloom("libraries", *words, "--home", home, stdin=stdin, loom=False)

    return call


@pytest.fixture
def filled(libraries: Kvloom, books: Path) -> Kvloom:
    """With the library `town` of two documents."""
    ran = libraries("add", "town", books)
    assert ran.code == 0, ran.err
    return libraries


def names(libraries: Kvloom) -> list[str]:
    return [one["name"] for one in libraries("list", "--json").document["libraries"]]


def test_a_home_without_libraries_says_how_to_make_one_and_none_is_made(libraries: Kvloom, home: Path) -> None:
    ran = libraries("list")
    assert (ran.code, libraries("list", "--json").document) == (0, {"libraries": []})
    assert "kvloom libraries add NAME FILE" in ran.out
    assert not home.exists()


def test_what_was_added_is_listed_and_shown_document_by_document(filled: Kvloom, books: Path) -> None:
    [listed] = filled("list", "--json").document["libraries"]
    assert (listed["name"], listed["num_documents"], listed["is_adhoc"], listed["fault"]) == ("town", 2, False, "")
    assert listed["num_passages"] > 2
    assert listed["size_bytes"] > 4096
    shown = filled("show", "town", "--json").document
    assert [one["name"] for one in shown["documents"]] == ["books/harbour.md", "books/market.txt"]
    assert sum(one["num_passages"] for one in shown["documents"]) == listed["num_passages"]
    assert shown["roots"] == [str(books)]
    for word in ("town", "KiB"):
        assert word in filled("list").out
    for word in ("2 documents", "harbour.md", "markdown", str(books)):
        assert word in filled("show", "town").out


def test_adding_again_reads_only_what_changed(filled: Kvloom, books: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.md"
    other.write_text("The bell weighs four hundred stone.\n", encoding="utf-8")
    added = filled("add", "town", other, "--json").document
    assert (added["library"]["num_documents"], added["updated"]["num_added"]) == (3, 1)


def test_what_is_not_there_or_holds_no_text_makes_no_library(libraries: Kvloom, books: Path, tmp_path: Path) -> None:
    ran = libraries("add", "town", books, tmp_path / "gone.md")
    assert ran.code == 1 and "gone.md: no such file or folder" in ran.err
    binary = tmp_path / "x.bin"
    binary.write_bytes(b"\x00\x01" * 500)
    ran = libraries("add", "town", binary)
    assert ran.code == 1 and "there is no text in" in ran.err and "x.bin" in ran.err
    assert "cannot be a library's name" in libraries("add", " ", books).err
    assert names(libraries) == []


def test_an_empty_name_is_no_folder(libraries: Kvloom, books: Path) -> None:
    ran = libraries("add", "books", "")
    assert (ran.code, names(libraries)) == (1, [])
    assert "an empty name is no file or folder" in ran.err


def test_one_document_is_not_documents(libraries: Kvloom, tmp_path: Path) -> None:
    path = tmp_path / "one.md"
    path.write_text("The bell weighs four hundred stone.")
    assert "books: 1 document, 1 passage\n" in libraries("add", "books", path).out
    assert "books: 1 document, 1 passage, " in libraries("show", "books").out


def test_a_library_of_ask_is_listed_last_and_marked(filled: Kvloom, books: Path, home: Path) -> None:
    adhoc = adhoc_name([books])
    with fake_loom(home) as loom:
        loom.library(adhoc).add(books)
        loom.library("~ by hand").add(books)
    assert [(one["name"], one["is_adhoc"]) for one in filled("list", "--json").document["libraries"]] == [
        ("town", False), ("~ by hand", False), (adhoc, True),
    ]  # fmt: skip
    [line] = [line for line in filled("list").out.splitlines() if line.startswith(adhoc)]
    assert " ask " in line
    assert "made by ask" in filled("show", adhoc).out


def test_search_tells_the_pages_of_a_pdf(libraries: Kvloom, tmp_path: Path) -> None:
    book = tmp_path / "book.pdf"
    book.write_bytes(pdf_of([[FILLER] * 60, [FILLER] * 60, [FACT, *[FILLER] * 60]]))
    assert libraries("add", "town", book).code == 0
    [best] = libraries("search", "town", QUESTION, "--limit", "1", "--json").document["found"]
    assert best["label"] == f"book.pdf:{best['first_line']}-{best['last_line']}"
    for words in ([], ["--text"]):
        shown = libraries("search", "town", QUESTION, "--limit", "1", *words).out
        assert re.search(r"book\.pdf (p\. 3|pp\. 2–3) ", shown), shown


def test_search_tells_places_scores_and_words(filled: Kvloom, books: Path) -> None:
    found = filled("search", "town", QUESTION, "--json").document["found"]
    best = found[0]
    lines = (books / "harbour.md").read_text().splitlines()
    assert FACT in "\n".join(lines[best["first_line"] - 1 : best["last_line"]])
    assert best["label"] == f"books/harbour.md:{best['first_line']}-{best['last_line']}"
    assert [one["score"] for one in found] == sorted((one["score"] for one in found), reverse=True)
    shown = filled("search", "town", QUESTION, "--limit", "1")
    for word in (best["label"], f"{best['score']:.2f}", "lighthouse keeper varnholm"):
        assert word in shown.out.lower()
    assert FACT in filled("search", "town", "-", "--text", stdin=QUESTION).out
    assert "nothing found" in filled("search", "town", "Xylophone quasar?").out
    assert "the question is empty" in filled("search", "town", " ").err


def test_an_unknown_name_is_told_with_the_nearest(filled: Kvloom, home: Path) -> None:
    for words in (("show", "twon"), ("search", "twon", "x"), ("refresh", "twon"), ("delete", "twon", "--yes")):
        ran = filled(*words)
        assert ran.code == 1
        assert "there is no library 'twon' (did you mean town?)" in ran.err, ran.err
    assert "there is one" in filled("show", "quite another").err
    assert names(filled) == ["town"], "looking makes none"
    ran = filled("remove", "town", "harbor.md")
    assert "has no document 'harbor.md' (did you mean books/harbour.md?)" in ran.err


def test_refresh_reads_what_changed_and_drops_what_is_gone(filled: Kvloom, books: Path) -> None:
    assert "nothing has changed" in filled("refresh", "town").err
    (books / "market.txt").unlink()
    (books / "new.md").write_text("The bell weighs four hundred stone.\n", encoding="utf-8")
    [done] = filled("refresh", "town", "--json").document["refreshed"]
    assert (done["updated"]["num_added"], done["updated"]["num_removed"]) == (1, 1)
    assert filled("search", "town", "bell stone", "--json").document["found"][0]["document"] == "books/new.md"


def test_a_removed_document_leaves_and_its_file_stays(filled: Kvloom, books: Path, tmp_path: Path) -> None:
    single = tmp_path / "single.md"
    single.write_text("The bell weighs four hundred stone.\n", encoding="utf-8")
    filled("add", "town", single)
    ran = filled("remove", "town", "single.md", "books/harbour.md", "--json").document
    assert (ran["removed"], ran["comes_back"]) == (["single.md", "books/harbour.md"], ["books/harbour.md"])
    assert filled("search", "town", QUESTION, "--json").document["found"] == []
    assert single.is_file()
    filled("refresh", "town")
    back = {one["name"] for one in filled("show", "town", "--json").document["documents"]}
    assert back >= {"books/market.txt"}
    assert "single.md" not in back, "it was added by itself, and taken out by itself"
    assert "removed: books/market.txt" in filled("remove", "town", "books/market.txt").out


def test_one_wrong_document_among_several_removes_none(filled: Kvloom) -> None:
    assert filled("remove", "town", "books/harbour.md", "nothing.md").code == 1
    assert filled("list", "--json").document["libraries"][0]["num_documents"] == 2


def test_delete_wants_a_yes_and_leaves_the_files(filled: Kvloom, books: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = filled("delete", "town")
    assert ran.code == 1 and "say --yes" in ran.err
    monkeypatch.setattr(Options, "is_interactive", property(lambda self: not self.json))
    assert "nothing was deleted" in filled("delete", "town", stdin="n\n").out
    assert names(filled) == ["town"]
    assert "deleted: town" in filled("delete", "town", stdin="y\n").out
    assert (names(filled), sorted(path.name for path in books.iterdir())) == ([], ["harbour.md", "market.txt"])
    filled("add", "a", books)
    filled("add", "b", books)
    assert filled("delete", "a", "wrong", "--yes").code == 1
    assert filled("delete", "b", "a", "b", "--yes", "--json").document == {"deleted": ["b", "a"]}
    assert names(filled) == []


def test_a_damaged_library_hides_no_other_and_can_be_deleted(filled: Kvloom, home: Path) -> None:
    (home / FOLDER / f"broken{SUFFIX}").write_bytes(b"no database at all, and longer than a header" * 50)
    broken, town = filled("list", "--json").document["libraries"]
    assert (town["name"], town["num_documents"]) == ("town", 2)
    assert "damaged" in broken["fault"]
    assert "damaged" in filled("list").out
    assert "damaged" in filled("show", "broken").err
    assert filled("delete", "broken", "--yes").code == 0
    assert names(filled) == ["town"]


def test_documents_that_were_handed_over_have_no_path(libraries: Kvloom, home: Path) -> None:
    with fake_loom(home) as loom:
        loom.library("given").add_texts({"note.txt": "The bell weighs four hundred stone."})
    [document] = libraries("show", "given", "--json").document["documents"]
    assert (document["name"], document["path"]) == ("note.txt", None)
    assert "handed over" in libraries("show", "given").out
    assert libraries("remove", "given", "note.txt", "--json").document["comes_back"] == []


def test_a_library_is_adhoc_only_where_its_name_ends_as_one() -> None:
    assert is_adhoc(adhoc_name([Path("book.md")]))
    assert not any(is_adhoc(name) for name in ("town", "~ town", "a~b", "a~0123456789 and more"))


@pytest.fixture
def ask(kvloom: Kvloom, tiny_model: Path, home: Path) -> Kvloom:
    def call(*words: str | Path) -> Ran:
        where = ("--model", tiny_model, "--home", home, "--context", "4096")
        return kvloom("ask", *words, "--max-tokens", "2", "--temperature", "0", *where, loom=False)

    return call


def test_ask_looks_a_question_up_in_a_named_library(ask: Kvloom, kvloom: Kvloom, books: Path, home: Path) -> None:
    kvloom("libraries", "add", "town", books, "--home", home, loom=False)
    ran = ask("--library", "town", QUESTION, "--precompute", "--json").document
    assert (ran["sources"][0]["library"], ran["sources"][0]["document"]) == ("town", "books/harbour.md")
    assert [one["name"] for one in ran["libraries"]] == ["town"]
    assert "library" not in ran, "that is the one of the books"
    assert 1 < ran["precomputed"]["num_computed"] == ran["precomputed"]["num_passages"]
    assert "harbour.md:" in ask("-l", "town", QUESTION, "--explain", "--depth", "1").out


def test_ask_takes_books_beside_named_libraries(ask: Kvloom, kvloom: Kvloom, books: Path, home: Path) -> None:
    kvloom("libraries", "add", "town", books / "market.txt", "--home", home, loom=False)
    ran = ask("--library", "town", books / "harbour.md", QUESTION, "--precompute", "--json").document
    assert ran["sources"][0]["library"] == ran["library"]["name"] != "town"
    assert {one["name"] for one in ran["libraries"]} == {"town", ran["library"]["name"]}
    assert ran["precomputed"]["num_passages"] >= max(one["num_passages"] for one in ran["libraries"])


def test_ask_refuses_an_unknown_library_before_it_loads_a_model(
    ask: Kvloom, kvloom: Kvloom, books: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kvloom("libraries", "add", "town", books, "--home", home, loom=False)
    monkeypatch.setattr(LlamaCppEngine, "__init__", lambda *_: pytest.fail("a model was loaded"))
    ran = ask("--library", "towm", QUESTION)
    assert ran.code == 1
    assert "did you mean town?" in ran.err

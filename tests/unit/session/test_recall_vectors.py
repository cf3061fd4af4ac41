"""Vectors and follow-up questions in what a question gets of its libraries, on the deterministic engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kvloom.index import LibraryIndex, asks, is_follow_up
from kvloom.session.embedders import Embedders
from kvloom.session.home_libraries import HomeLibraries
from kvloom.session.libraries import StoredLibrary, file_of
from kvloom.session.loom import Loom
from kvloom.session.session import Session
from kvloom.session.values import Progress, Reply
from tests.unit.index.topics import Topics
from tests.unit.session.fakes import fake_loom
from tests.unit.session.test_libraries import FACTS, GEESE, KEEPER, write_book

_TOPICS = (("lighthouse", "beacon"), ("geese", "poultry"), ("clock", "timepiece"), ("bell", "chime"))


@pytest.fixture
def loom(tmp_path: Path) -> Iterator[Loom]:
    with fake_loom(tmp_path / "home", context=4096) as opened:
        yield opened


@pytest.fixture
def embedder(loom: Loom) -> Topics:
    made = Topics(topics=_TOPICS)
    loom.embedders = Embedders("model", lambda: made)
    return made


@pytest.fixture
def book(tmp_path: Path) -> Path:
    return write_book(tmp_path / "book.md", num_chapters=80)


def attached(loom: Loom, book: Path) -> Session:
    library = loom.library("books")
    library.add(book)
    session = loom.session()
    session.attach(library)
    return session


def num_texts(library: StoredLibrary) -> int:
    """Passages whose texts differ: equal ones have one vector."""
    return len({passage.id for passage in library.passages()})


def ask(chat: Session, text: str) -> Reply:
    return chat.generate(text, max_tokens=4, temperature=0.0)


def num_vectors(loom: Loom) -> int:
    with LibraryIndex.open(file_of(loom.home, "books")) as index:
        return int(index._file.row("SELECT count(*) FROM vectors")[0])


# -- vectors --------------------------------------------------------------------------------------------------------


def test_by_default_there_are_none(loom: Loom, book: Path) -> None:
    chat = attached(loom, book)
    assert num_vectors(loom) == 0
    assert ask(chat, KEEPER).sources[0].similarity is None


def test_a_question_in_other_words_finds_the_passage(loom: Loom, embedder: Topics, book: Path) -> None:
    chat = attached(loom, book)
    reply = ask(chat, "Beacon?")
    assert FACTS["lighthouse"] in chat.prompt()
    assert reply.sources[0].words == ()
    assert reply.sources[0].similarity == pytest.approx(1.0, abs=0.01)
    assert not reply.notices or "nothing relevant" not in " ".join(reply.notices)


def test_adding_tells_how_far_the_vectors_are_and_makes_each_once(loom: Loom, embedder: Topics, book: Path) -> None:
    library, told = loom.library("books"), list[Progress]()
    library.add(book, told.append)
    assert [one.task for one in told][-1] == "making vectors"
    assert told[-1].done == told[-1].total == num_texts(library) == embedder.num_texts == num_vectors(loom)
    library.refresh()
    library.hits(KEEPER, 4)
    assert embedder.num_texts == num_texts(library)


def test_vectors_that_were_stopped_go_on(loom: Loom, embedder: Topics, book: Path) -> None:
    library, told = loom.library("books"), list[Progress]()
    updated = library.add(
        write_book(book, num_chapters=200),
        told.append,
        lambda: bool(told) and told[-1].task == "making vectors" and told[-1].done > 0,
    )
    assert not updated.is_complete
    assert 0 < num_vectors(loom) < num_texts(library)
    assert library.add(book).is_complete
    assert embedder.num_texts == num_vectors(loom) == num_texts(library)


def test_what_was_added_without_a_model_is_caught_up_by_a_question(loom: Loom, embedder: Topics, book: Path) -> None:
    stored = HomeLibraries(loom.home).open("books")
    stored.add(book)
    stored.close()
    assert num_vectors(loom) == 0
    (best, *_) = loom.library("books").search("Beacon?")
    assert FACTS["lighthouse"] in best.text
    assert num_vectors(loom) == num_texts(loom.library("books"))


def test_an_embedder_that_fails_is_a_notice_and_words_go_on(loom: Loom, embedder: Topics, book: Path) -> None:
    chat = attached(loom, book)
    embedder.fails = True
    reply = ask(chat, KEEPER)
    assert FACTS["lighthouse"] in chat.prompt()
    assert any("by words alone: the embedder has no batteries" in notice for notice in reply.notices)
    embedder.fails = False
    assert not any("batteries" in notice for notice in ask(chat, GEESE).notices)


def test_adding_goes_on_where_vectors_cannot_be_had(loom: Loom, book: Path, tmp_path: Path) -> None:
    loom.embedders = Embedders(str(tmp_path / "no folder"), lambda: None)
    chat = attached(loom, book)
    reply = ask(chat, KEEPER)
    assert FACTS["lighthouse"] in chat.prompt()
    assert any("by words alone" in notice for notice in reply.notices)


def test_a_purged_passage_leaves_no_vector(loom: Loom, embedder: Topics, book: Path) -> None:
    chat = attached(loom, book)
    before = num_vectors(loom)
    loom.purge(ask(chat, KEEPER).sources[0].chunk)
    assert num_vectors(loom) == before - 1


def test_tenants_use_the_embedder_of_their_host(loom: Loom, embedder: Topics, book: Path) -> None:
    library = loom.tenant("somebody").library("books")
    library.add(book)
    assert embedder.num_texts == num_texts(library)


# -- follow-up questions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        *("And why?", "Tell me more.", "What about the second one?", "Really?", "Who built it?", "WHAT IS IT?"),
        *("Is that so? Why? Built by him?", "how does it work in python?"),
    ],
)
def test_these_name_too_little(text: str) -> None:
    assert is_follow_up(text)


@pytest.mark.parametrize(
    "text", ["How does it work in Python?", "What is IT?", "Is that so in France?", "DataFrame: what does it do?"]
)
def test_a_name_makes_a_question_of_its_own(text: str) -> None:
    assert not is_follow_up(text)


@pytest.mark.parametrize(
    ("text", "is_asking"),
    [
        ("Was ist das？", True),
        ("what is the code of Boris", True),
        ("Please tell me the code of Boris.", True),
        ("Boris's code, please", True),
        ("I forgot it, can you repeat it", True),
        ("Please remember that the code of Boris is 7.", False),
        ("Tell everybody: the code of Boris is 7.", False),
        ("The code of Boris is 7.", False),
        ("Do you remember the code of Boris?", True),
        ("", False),
        ("\ud800", False),
    ],
)
def test_what_asks_is_told_from_what_tells(text: str, is_asking: bool) -> None:
    assert asks(text) == is_asking


@pytest.mark.parametrize(
    "text", [KEEPER, GEESE, "geese", "What is the value of MAX_SIZE?", "", "Wer hat die Uhr gebaut?", "它是谁建的?"]
)
def test_these_are_looked_up_as_they_are(text: str) -> None:
    assert not is_follow_up(text)


@pytest.mark.parametrize("text", ["And why?", "Tell me more.", "How old is he?"])
def test_a_follow_up_is_looked_up_with_the_question_before_it(loom: Loom, book: Path, text: str) -> None:
    chat = attached(loom, book)
    first = ask(chat, KEEPER).sources[0].chunk
    reply = ask(chat, text)
    assert reply.sources[0].chunk == first
    assert reply.sources[0].tier.value == "device", "what stands there stays"
    assert ask(chat, "And what else?").sources[0].chunk == first, "back to the question that named it"


def test_a_question_that_names_something_leaves_the_one_before_alone(loom: Loom, book: Path) -> None:
    chat = attached(loom, book)
    ask(chat, KEEPER)
    assert "lighthouse" not in ask(chat, GEESE).sources[0].words
    assert FACTS["geese"] in chat.prompt()
    assert FACTS["lighthouse"] not in chat.prompt()


def test_a_follow_up_to_nothing_finds_nothing(loom: Loom, book: Path) -> None:
    reply = ask(attached(loom, book), "And why?")
    assert reply.sources == ()


def test_of_a_follow_up_to_a_pasted_page_its_own_words_are_looked_up(loom: Loom) -> None:
    library, chat = loom.library("books"), loom.session()
    library.add_texts({f"{topic}.md": fact for topic, fact in FACTS.items()})
    chat.attach(library)
    ask(chat, " ".join(f"filler{n}" for n in range(300)))
    reply = ask(chat, "What of their geese?")
    assert reply.sources, reply.notices
    assert "geese" in reply.sources[0].words
    assert FACTS["geese"] in chat.prompt()


def test_a_summary_is_no_question_that_is_looked_back_at(
    loom: Loom, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvloom.session.retrieval.MAX_ASKED_BEFORE", 1)
    chat = attached(loom, book)
    for _ in range(8):
        ask(chat, KEEPER)
    chat.compress("summarize")
    summaries = [slot for slot in chat.manifest.turns if slot.is_summary]
    assert summaries
    retrieval, before = chat._asking._retrieval, chat.manifest
    only = replace(before, slots=tuple(slot for slot in before.slots if slot not in before.turns or slot.is_summary))
    assert retrieval._asked("And why?", only) == "And why?"
    last = replace(only, slots=(*(slot for slot in before.turns if not slot.is_summary), *only.slots))
    assert retrieval._asked("And why?", last) == f"And why?\n{KEEPER}"

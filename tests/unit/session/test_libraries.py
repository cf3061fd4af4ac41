"""Libraries on the deterministic engine: what a question gets of them, what is kept, undone, refused and reused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from pydantic import ByteSize

from kvloom.config import RecallSettings
from kvloom.context.manifest import Tokens
from kvloom.engine.fake import FakeEngine
from kvloom.errors import (
    ContentError,
    ContextOverflowError,
    EngineUnsupportedError,
    LoomClosedError,
    NothingFoundError,
    PurgeIncompleteError,
    StoreError,
    UsageError,
)
from kvloom.session.libraries import FOLDER, SUFFIX, Library
from kvloom.session.loom import Loom
from kvloom.session.session import Session
from kvloom.session.values import Progress, Reply
from kvloom.types import ChunkId, EntryId, Fidelity, TierName
from tests.unit.session.fakes import RecurrentEngine, fake_loom, held_tokens

FILLER = "The market sells bread and fish and the square is full of people who talk about the weather of the day. "
FACTS = {
    "lighthouse": "The lighthouse keeper of Varnholm is called Ottokar Brimblewick.",
    "geese": "Eleven grey geese live behind the smithy of Oldenmoor.",
    "clock": "The clock of the townhall was built by Perpetua Zwirn in 1731.",
    "bell": "The bell of the chapel weighs exactly four hundred stone.",
}
QUESTION_TOKENS = 80
"""More than a question takes on the fake engine, whose tokens are short, and far less than any passage."""
HEAD_TOKENS = 40
KEEPER = "Who is the lighthouse keeper of Varnholm?"
GEESE = "How many geese live behind the smithy of Oldenmoor?"


def write_book(path: Path, *, facts: dict[str, str] | None = None, num_chapters: int = 40) -> Path:
    """Chapters of some 60 words; every tenth holds one of the facts."""
    places = dict(zip(range(4, num_chapters, 10), (FACTS if facts is None else facts).values(), strict=False))
    chapters = (f"# Chapter {n}\n\n{FILLER * 6}\n{places.get(n, '')}\n{FILLER * 6}\n\n" for n in range(num_chapters))
    path.write_text("".join(chapters), encoding="utf-8")
    return path


@pytest.fixture
def book(tmp_path: Path) -> Path:
    return write_book(tmp_path / "book.md")


@pytest.fixture
def loom(tmp_path: Path) -> Iterator[Loom]:
    with fake_loom(tmp_path / "home", context=4096) as opened:
        yield opened


@pytest.fixture
def chat(loom: Loom, book: Path) -> Session:
    return reading(loom, book)


def reading(loom: Loom, book: Path, fidelity: Fidelity | None = None) -> Session:
    library = loom.library("books")
    library.add(book)
    session = loom.session(fidelity=fidelity)
    session.attach(library)
    return session


def ask(chat: Session, text: str = KEEPER) -> Reply:
    return chat.generate(text, max_tokens=4, temperature=0.0)


def text_of(chat: Session) -> str:
    return chat.prompt()


# -- what a question gets -------------------------------------------------------------------------------------------


def test_a_question_sees_the_passage_that_it_needs_and_the_reply_names_it(chat: Session, book: Path) -> None:
    reply = ask(chat)
    best = reply.sources[0]
    lines = book.read_text().splitlines()[best.first_line - 1 : best.last_line]
    assert FACTS["lighthouse"] in "\n".join(lines)
    assert FACTS["lighthouse"] in text_of(chat)
    assert {"lighthouse", "keeper", "varnholm"} <= set(best.words)
    assert (best.library, best.document, best.tier) == ("books", "book.md", TierName.NONE)
    assert best.chunk == chat.loom.resolve(best.name)
    assert all(source.score <= best.score for source in reply.sources)


def test_what_the_device_holds_is_what_the_manifest_says(loom: Loom, chat: Session) -> None:
    for question in (KEEPER, GEESE, "Who built the clock of the townhall?", KEEPER):
        ask(chat, question)
        assert held_tokens(loom, chat) == chat.tokens()


def test_the_next_question_takes_the_place_of_the_one_before(chat: Session) -> None:
    ask(chat)
    reply = ask(chat, GEESE)
    assert FACTS["geese"] in text_of(chat)
    assert FACTS["lighthouse"] not in text_of(chat)
    assert set(chat.manifest.active_chunk_ids) == {source.chunk for source in reply.sources}


def test_the_same_question_again_computes_nothing_but_itself(chat: Session) -> None:
    ask(chat)
    again = ask(chat)
    assert again.sources[0].tier is TierName.DEVICE
    assert again.usage.computed_tokens <= QUESTION_TOKENS
    assert again.usage.loaded_tokens == 0


@pytest.fixture
def wide(tmp_path: Path) -> Iterator[Loom]:
    """A window for two passages."""
    with fake_loom(tmp_path / "wide", context=16384) as opened:
        yield opened


SWAPPING = ("lighthouse keeper Varnholm, grey geese", "lighthouse keeper, grey geese Oldenmoor")


@pytest.mark.parametrize("fidelity", [Fidelity.SPLICE, Fidelity.BLEND])
def test_the_best_passage_stands_last_whatever_stood_there_before(wide: Loom, book: Path, fidelity: Fidelity) -> None:
    chat, num_swapped = reading(wide, book, fidelity), 0
    for question in (*SWAPPING, KEEPER, *SWAPPING):
        before = chat.manifest.active_chunk_ids
        reply = ask(chat, question)
        assert chat.manifest.active_chunk_ids == tuple(source.chunk for source in reversed(reply.sources))
        num_swapped += set(before) == set(chat.manifest.active_chunk_ids) and before != chat.manifest.active_chunk_ids
    assert num_swapped


def test_in_exact_passages_stand_as_a_reader_would_meet_them(wide: Loom, book: Path) -> None:
    for question in SWAPPING:
        chat = reading(wide, book, Fidelity.EXACT)
        reply = ask(chat, question)
        assert len(reply.sources) == 2
        by_line = sorted(reply.sources, key=lambda source: source.first_line)
        assert chat.manifest.active_chunk_ids == tuple(source.chunk for source in by_line)
    assert reply.usage.computed_tokens <= QUESTION_TOKENS  # found together in another session, and another order


def test_who_must_find_is_not_answered_without_a_passage(chat: Session) -> None:
    ask(chat)
    before = chat.manifest
    with pytest.raises(NothingFoundError, match="nothing relevant found in books"):
        chat.generate("Xylophone quasar zeppelin?", max_tokens=4, must_find=True)
    assert chat.manifest == before
    assert chat.generate(GEESE, max_tokens=4, must_find=True).sources
    with pytest.raises(ContextOverflowError):
        chat.generate("goose " * 4000, max_tokens=4, must_find=True)
    chat.set_recall(False)
    with pytest.raises(NothingFoundError, match=r"recall is off.*the model was not asked"):
        chat.generate(GEESE, max_tokens=4, must_find=True)


def test_nothing_relevant_is_said_and_nothing_is_activated(chat: Session) -> None:
    ask(chat)
    reply = ask(chat, "Xylophone quasar zeppelin?")
    assert reply.sources == ()
    assert any("nothing relevant found in books" in notice for notice in reply.notices)
    assert chat.manifest.chunk_ids == ()


def test_passages_stay_within_their_share_and_leave_room_for_the_reply(loom: Loom, chat: Session) -> None:
    for question in (KEEPER, "market bread fish square people weather talk"):
        ask(chat, question)
        num_tokens = sum(slot.num_tokens for slot in chat.manifest.chunks)
        assert num_tokens <= 0.5 * chat.window or len(chat.manifest.active_chunk_ids) == 1
    assert len(chat.manifest.active_chunk_ids) <= loom.settings.recall.depth


@pytest.mark.parametrize(("window", "number"), [(4096, 1), (1024, 0)])
def test_the_best_passage_takes_more_than_its_share_where_it_fits(
    tmp_path: Path, book: Path, window: int, number: int
) -> None:
    with fake_loom(tmp_path / "home", context=window, recall={"share": 0.1}) as loom:
        loom.library("books").add(book)
        chat = loom.session()
        chat.attach("books")
        reply = ask(chat)
        assert len(reply.sources) == number
        assert all(source.num_tokens > 0.1 * window for source in reply.sources)
        assert (FACTS["lighthouse"] in text_of(chat)) == bool(number)
        assert any("none fits" in notice for notice in reply.notices) == (not number)


def test_an_own_chunk_stays_and_is_not_taken_for_a_passage(loom: Loom, chat: Session) -> None:
    own = loom.load_text("my own notes about nothing", name="notes")
    chat.activate(own.id)
    for question in (KEEPER, GEESE, "Xylophone quasar zeppelin?"):
        ask(chat, question)
        assert own.id in chat.manifest.active_chunk_ids


def test_a_passage_that_was_switched_off_does_not_come_back(chat: Session) -> None:
    first = ask(chat).sources[0]
    chat.deactivate(first.chunk)
    assert first.chunk not in [source.chunk for source in ask(chat).sources]
    assert FACTS["lighthouse"] not in text_of(chat)
    chat.activate(first.chunk)
    assert FACTS["lighthouse"] in text_of(chat)
    ask(chat, GEESE)
    assert FACTS["lighthouse"] in text_of(chat), "who switched it on wants it there"


def test_an_erased_passage_is_not_found(chat: Session) -> None:
    first = ask(chat).sources[0]
    chat.erase(first.chunk)
    assert first.chunk not in [source.chunk for source in ask(chat).sources]


def test_a_purged_passage_is_gone_from_the_library_too(loom: Loom, chat: Session) -> None:
    first = ask(chat).sources[0]
    loom.purge(first.chunk)
    assert FACTS["lighthouse"] not in " ".join(found.text for found in loom.library("books").search(KEEPER, 50))
    assert first.chunk not in [source.chunk for source in ask(chat).sources]
    loom.library("books").refresh()
    assert first.chunk not in [source.chunk for source in ask(chat).sources]


def test_a_purge_goes_through_beside_a_damaged_library_and_says_so(loom: Loom, chat: Session) -> None:
    first = ask(chat).sources[0]
    (loom.home / FOLDER / f"broken{SUFFIX}").write_bytes(b"no database at all, and longer than a header" * 50)
    with pytest.raises(PurgeIncompleteError, match=r"is purged, but .* still stand in broken, .*damaged: delete"):
        loom.purge(first.chunk)
    assert first.chunk not in [chunk.id for chunk in loom.chunks()]
    assert FACTS["lighthouse"] not in " ".join(found.text for found in loom.library("books").search(KEEPER, 50))


def test_a_purge_that_a_library_keeps_from_its_end_is_done_again(
    loom: Loom, chat: Session, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ask(chat).sources[0]
    with monkeypatch.context() as patch:
        patch.setattr(Library, "forget", Mock(side_effect=StoreError("another process is reading it")))
        with pytest.raises(StoreError, match=r"has to be purged again \(books: another process is reading it; short: "):
            loom.purge(first.chunk)
    assert first.chunk in [chunk.id for chunk in loom.chunks()]
    assert not any(loom.store.contains(entry) for _, entry in loom.shelf.entries(first.chunk))
    assert FACTS["lighthouse"] not in text_of(chat)
    loom.purge(first.chunk)
    assert first.chunk not in [chunk.id for chunk in loom.chunks()]
    assert FACTS["lighthouse"] not in " ".join(found.text for found in loom.library("books").search(KEEPER, 50))


@pytest.mark.parametrize("mode", list(Fidelity))
def test_every_fidelity_places_passages(loom: Loom, book: Path, mode: Fidelity) -> None:
    loom.library("books").add(book)
    chat = loom.session(fidelity=mode)
    chat.attach("books")
    for question in (KEEPER, GEESE, KEEPER):
        assert ask(chat, question).sources
        if mode is not Fidelity.BLEND:
            assert held_tokens(loom, chat) == chat.tokens()


def test_a_model_whose_kv_cannot_be_moved_gets_passages_and_refuses_to_compute_ahead(
    tmp_path: Path, book: Path
) -> None:
    with fake_loom(tmp_path / "home", RecurrentEngine(num_cells=6000), context=4096) as loom:
        library = loom.library("books")
        library.add(book)
        chat = loom.session()
        chat.attach(library)
        assert ask(chat).sources
        with pytest.raises(EngineUnsupportedError, match="searched all the same"):
            library.precompute()


def test_a_full_window_says_that_no_passage_fits(tmp_path: Path, book: Path) -> None:
    with fake_loom(tmp_path / "home", context=768) as loom:
        loom.library("books").add(book)
        chat = loom.session()
        chat.attach("books")
        reply = ask(chat)
        assert reply.sources == () or sum(source.num_tokens for source in reply.sources) <= 384
        chat.activate(loom.load_text("word " * 90, name="own").id)
        assert ask(chat).finish_reason


def test_a_conversation_longer_than_its_window_keeps_finding(loom: Loom, book: Path) -> None:
    loom.library("books").add(book)
    loom.policy = "adaptive"
    chat = loom.session()
    chat.attach("books")
    for number in range(12):
        reply = ask(chat, (KEEPER, GEESE)[number % 2] + " Tell me more of it." * 10)
        assert reply.sources
        assert chat.manifest.num_tokens <= chat.window
        assert held_tokens(loom, chat) == chat.tokens()


# -- what is kept ---------------------------------------------------------------------------------------------------


def test_a_restart_remembers_what_is_attached_and_computes_no_passage_again(tmp_path: Path, book: Path) -> None:
    with fake_loom(tmp_path / "home", context=4096) as loom:
        loom.library("books").add(book)
        chat = loom.session(name="talk")
        chat.attach("books")
        ask(chat)
    with fake_loom(tmp_path / "home", context=4096) as loom:
        chat = loom.session(name="talk")
        assert (chat.libraries, chat.is_recalling) == (("books",), True)
        reply = ask(chat)
        assert reply.sources
        assert all(source.tier is TierName.DISK for source in reply.sources)
        assert reply.usage.computed_tokens <= QUESTION_TOKENS


def test_undo_takes_a_turn_and_its_passages_back_and_attaching_too(chat: Session) -> None:
    ask(chat)
    before = chat.manifest
    ask(chat, GEESE)
    assert chat.undo() == "turn"
    assert chat.manifest == before
    assert chat.undo() == "turn"
    assert chat.manifest.chunk_ids == ()
    assert chat.undo() == "attach books"
    assert chat.libraries == ()


def test_the_ledger_does_not_fill_with_passages(chat: Session) -> None:
    for question in (KEEPER, GEESE, KEEPER):
        ask(chat, question)
    assert [line for line in chat.ledger() if line.kind == "chunk"] == []


def test_a_chunk_that_was_removed_and_found_again_is_no_line_of_the_ledger(chat: Session) -> None:
    first = ask(chat).sources[0]
    chat.activate(first.chunk)
    chat.remove(first.chunk)
    assert [line.ref for line in chat.ledger() if line.kind == "chunk"] == [first.chunk]
    ask(chat)
    assert [line.ref for line in chat.ledger() if line.kind == "chunk"] == []


def test_retry_asks_with_the_same_passages(chat: Session) -> None:
    first = ask(chat)
    again = chat.retry(max_tokens=4, temperature=0.0)
    assert [source.chunk for source in again.sources] == [source.chunk for source in first.sources]
    assert len(chat.history()) == 1


def test_recall_off_takes_the_passages_out_and_on_brings_them_with_the_next_question(chat: Session) -> None:
    ask(chat)
    chat.set_recall(False)
    assert chat.manifest.chunk_ids == ()
    assert ask(chat).sources == ()
    assert chat.libraries == ("books",)
    chat.set_recall(True)
    assert ask(chat).sources


def test_detach_takes_the_passages_out(chat: Session) -> None:
    ask(chat)
    chat.detach("books")
    assert (chat.libraries, chat.manifest.chunk_ids) == ((), ())
    with pytest.raises(UsageError, match="is not attached"):
        chat.detach("books")


def test_a_library_that_was_deleted_is_said_and_ends_no_conversation(loom: Loom, chat: Session) -> None:
    ask(chat)
    loom.delete_library("books")
    reply = ask(chat)
    assert any("books is not in this home" in notice for notice in reply.notices)
    assert reply.sources == ()


def test_a_fork_has_the_libraries_of_its_origin(chat: Session) -> None:
    ask(chat)
    assert chat.fork().libraries == ("books",)


def test_a_cancelled_question_leaves_the_passages_of_the_one_before(chat: Session) -> None:
    ask(chat)
    before = chat.manifest
    stream = chat.stream(GEESE, max_tokens=8, temperature=0.0)
    next(stream)
    stream.close()
    assert chat.manifest == before


@pytest.fixture
def short(loom: Loom, tmp_path: Path) -> Path:
    """A book that is computed in a moment, as library `short`."""
    book = write_book(tmp_path / "short.md", num_chapters=12)
    loom.library("short").add(book)
    return book


# -- libraries ------------------------------------------------------------------------------------------------------


def test_an_edit_of_one_paragraph_costs_the_kv_of_its_own_passage_only(loom: Loom, short: Path) -> None:
    library = loom.library("short")
    library.precompute()
    text = short.read_text()
    changed = text.replace("# Chapter 2\n", "# Chapter 2\n\nA new line at the top.\n")
    short.write_text(changed)
    os.utime(short, (1, 1))
    updated = library.add(short)
    assert (updated.num_changed, updated.num_passages_kept > 5) == (1, True)
    done = library.precompute()
    assert done.num_computed <= 2
    chat = loom.session()
    chat.attach(library)
    reply = ask(chat)
    lines = changed.splitlines()[reply.sources[0].first_line - 1 : reply.sources[0].last_line]
    assert FACTS["lighthouse"] in "\n".join(lines), "the lines are those of the file as it is now"
    assert reply.usage.computed_tokens <= QUESTION_TOKENS


def test_what_is_computed_is_not_even_tokenized_again_also_after_a_restart(tmp_path: Path) -> None:
    book = write_book(tmp_path / "book.md", num_chapters=8)
    with fake_loom(tmp_path / "home", context=4096) as loom:
        loom.library("books").add(book)
        first = loom.library("books").precompute()
    with fake_loom(tmp_path / "home", context=4096) as loom:
        library, asked = loom.library("books"), tokenized(loom)
        again = library.precompute()
        assert (again.num_known, again.num_computed, again.is_complete) == (first.num_passages, 0, True)
        assert asked == []
        lost = next(library.passages())
        for _, entry in loom.shelf.entries(lost.id):
            loom.store.purge(entry)
        assert library.precompute().num_computed == 1, "what is not stored any more is computed"
        assert set(asked) == {lost.label}
    with fake_loom(tmp_path / "home", FakeEngine(num_cells=6000, seed=8), context=4096) as loom:
        assert loom.library("books").precompute().num_computed == first.num_passages, "another model has its own KV"


def test_passages_that_the_window_cannot_hold_are_passed_over_and_counted(tmp_path: Path) -> None:
    with fake_loom(tmp_path / "home", context=1024) as loom:
        library = loom.library("long")
        # 427, 997, 1016 (which fits without the prompt's head), 1187 and 1757 tokens
        library.add_texts({f"{size}.txt": "Number. " + "bell of the chapel " * size for size in (20, 50, 51, 60, 90)})
        done = library.precompute()
        assert (done.num_computed, done.num_known, done.num_too_long, done.is_complete) == (2, 0, 3, True)
        again = library.precompute(max_tokens=1)
        assert (again.num_computed, again.num_known, again.num_too_long, again.is_complete) == (0, 2, 3, True)
        assert again.num_passages == 5


def test_a_purge_forgets_which_entries_a_passage_had(loom: Loom, short: Path) -> None:
    library = loom.library("short")
    library.precompute()
    chunk = next(library.passages()).id
    entries = [entry for _, entry in loom.shelf.entries(chunk)]
    loom.purge(chunk)
    rows = loom._database.rows("SELECT chunk_id, entries FROM passage_entries")
    assert rows and not any(row[0] == chunk or set(row[1].split()) & set(entries) for row in rows)


def tokenized(loom: Loom) -> list[str]:
    """The names of the passages that are tokenized from now on."""
    names: list[str] = []
    parts = loom.shelf.passage_parts

    def counted(chunk: ChunkId, name: str, text: str) -> tuple[Tokens, ...]:
        names.append(name)
        return parts(chunk, name, text)

    loom.shelf.passage_parts = counted  # type: ignore[method-assign]
    return names


def test_precompute_goes_on_where_it_was_stopped_and_no_question_waits_behind_it(loom: Loom, short: Path) -> None:
    library = loom.library("short")
    seen: list[Progress] = []
    first = library.precompute(seen.append, lambda: bool(seen) and seen[-1].done >= 3)
    assert not first.is_complete
    assert 0 < first.num_computed < first.num_passages
    second = library.precompute()
    assert second.is_complete
    assert second.num_known >= first.num_computed
    assert first.num_computed + second.num_computed == second.num_passages
    assert library.precompute().num_computed == 0
    chat = loom.session()
    chat.attach(library)
    reply = ask(chat)
    assert all(source.tier is not TierName.NONE for source in reply.sources)
    assert reply.usage.computed_tokens <= QUESTION_TOKENS + HEAD_TOKENS


def test_precomputing_leaves_open_conversations_as_they_are(loom: Loom, chat: Session, short: Path) -> None:
    ask(chat)
    loom.library("short").precompute()
    assert held_tokens(loom, chat) == chat.tokens()


def test_a_library_that_grew_is_found_in_at_once(loom: Loom, chat: Session, tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("The dragon of Quillfen is afraid of buttered toast.\n")
    loom.library("books").add(tmp_path / "more.txt")
    reply = ask(chat, "What is the dragon of Quillfen afraid of?")
    assert reply.sources[0].document == "more.txt"
    assert {one.name for one in loom.library("books").documents()} == {"book.md", "more.txt"}
    loom.library("books").remove("more.txt")
    assert "more.txt" not in {
        source.document for source in ask(chat, "What is the dragon of Quillfen afraid of?").sources
    }


def test_two_libraries_are_searched_together(book: Path, tmp_path: Path) -> None:
    dragons = write_book(tmp_path / "b.md", facts={"dragon": "The dragon of Quillfen is afraid of buttered toast."})
    with fake_loom(tmp_path / "home", context=8192) as loom:
        chat = loom.session()
        for name, path in (("books", book), ("dragons", dragons)):
            loom.library(name).add(path)
            chat.attach(name)
        reply = ask(chat, "What would the dragon of Quillfen and the lighthouse keeper of Varnholm eat?")
        assert {source.library for source in reply.sources} == {"books", "dragons"}


def test_libraries_are_listed_and_deleted_and_never_leave_their_folder(loom: Loom, book: Path, tmp_path: Path) -> None:
    for name in ("books", "Ärzte & Co", "../../evil", "a/b", "100%"):
        loom.library(name).add(book)
    assert [one.name for one in loom.libraries()] == sorted(("books", "Ärzte & Co", "../../evil", "a/b", "100%"))
    assert all(one.num_documents == 1 and one.num_passages > 10 and one.size_bytes > 0 for one in loom.libraries())
    assert {path.parent for path in tmp_path.rglob("*.sqlite3") if "catalog" not in path.name} == {
        tmp_path / "home" / "libraries"
    }
    for one in loom.libraries():
        loom.delete_library(one.name)
    assert loom.libraries() == []
    assert list((tmp_path / "home" / "libraries").iterdir()) == []
    with pytest.raises(UsageError, match="there is no library 'books'"):
        loom.delete_library("books")


@pytest.mark.parametrize("name", ["", " x", "a\nb", "n" * 400])
def test_what_cannot_be_a_name_is_refused(loom: Loom, name: str) -> None:
    with pytest.raises(UsageError, match="library"):
        loom.library(name)


def test_attaching_a_library_that_is_not_there_says_what_there_is(loom: Loom, chat: Session) -> None:
    with pytest.raises(UsageError, match="libraries here: books"):
        chat.attach("bokos")


def test_adding_nothing_or_what_is_not_there_is_refused(loom: Loom, tmp_path: Path) -> None:
    with pytest.raises(ContentError, match="no such file"):
        loom.library("books").add(tmp_path / "none.txt")
    with pytest.raises(UsageError, match="at least one"):
        loom.library("books").add([])


def test_tenants_have_libraries_of_their_own(loom: Loom, chat: Session, tmp_path: Path) -> None:
    tenant = loom.tenant("ada")
    assert tenant.libraries() == []
    (tmp_path / "b.txt").write_text("The dragon of Quillfen is afraid of buttered toast.\n")
    tenant.library("books").add(tmp_path / "b.txt")
    assert [one.name for one in loom.library("books").documents()] == ["book.md"]


def test_a_closed_loom_gives_no_library(tmp_path: Path) -> None:
    loom = fake_loom(tmp_path / "home")
    loom.close()
    with pytest.raises(LoomClosedError):
        loom.library("books")


def test_a_profile_does_not_take_passages_along(loom: Loom, chat: Session) -> None:
    ask(chat)
    assert loom.save_profile("p", chat).sources == ()


def test_a_damaged_library_is_said_and_ends_no_conversation(tmp_path: Path, book: Path) -> None:
    with fake_loom(tmp_path / "home", context=4096) as loom:
        loom.library("books").add(book)
        loom.session(name="talk").attach("books")
    (tmp_path / "home" / "libraries" / "books.sqlite3").write_bytes(b"SQLite format 3\0" + b"\xff" * 8000)
    with fake_loom(tmp_path / "home", context=4096) as loom:
        reply = ask(loom.session(name="talk"))
        assert any("books could not be searched" in notice for notice in reply.notices)


def test_the_plan_of_a_question_counts_its_passages(chat: Session) -> None:
    planned = chat.plan(KEEPER, max_tokens=4)
    assert ask(chat).usage.prompt_tokens == planned.num_prompt_tokens


def test_passages_can_be_packed_small_while_other_chunks_stay_as_they_are(tmp_path: Path) -> None:
    sizes = {}
    for name, packed in (("plain", {}), ("small", {"compression": "low4"})):
        home = tmp_path / name
        with fake_loom(home, context=4096, recall=packed) as loom:
            library = loom.library("short")
            library.add(write_book(tmp_path / "short.md", num_chapters=12))
            library.precompute()
            own = loom.load_text("my own notes about nothing " * 20, name="notes")
            chat = loom.session()
            chat.attach(library)
            chat.activate(own.id)
            assert ask(chat).sources
            loom.flush()
            passages = [entry for found in library.passages() for _, entry in loom.shelf.entries(found.id)]
            of_own = [entry for _, entry in loom.shelf.entries(own.id)]
            sizes[name] = [_disk_bytes(home, entries) for entries in (passages, of_own)]
    # The fake engine's rows are so narrow that most of a file is its header.
    assert sizes["small"][0] < 0.8 * sizes["plain"][0]
    assert sizes["small"][1] == sizes["plain"][1]


def _disk_bytes(home: Path, entries: list[EntryId]) -> int:
    files = {file.stem: file.stat().st_size for file in (home / "kv").rglob("*") if file.is_file()}
    return sum(files[entry] for entry in entries)


@pytest.mark.parametrize("name", ["", None, ["a.md", ""], [None], 5, b"a.md"])
def test_what_names_no_file_is_refused(tmp_path: Path, name: Any) -> None:
    with fake_loom(tmp_path / "home") as loom, pytest.raises(UsageError, match="no file or folder"):
        loom.library("books").add(name)


def test_the_settings_say_how_large_a_text_may_be(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("0123456789 " * 10)
    (tmp_path / "a.html").write_text("<p>" + "0123456789 " * 10)
    small = RecallSettings(max_file_bytes=ByteSize(100))
    with fake_loom(tmp_path / "home", recall=small) as loom:
        text, page = loom.library("books").add([tmp_path / "a.txt", tmp_path / "a.html"]).skipped
    assert text.why == "has 110 bytes, the limit for one file is 100: split it, or raise recall.max_file_bytes"
    assert page.why == "has 113 bytes, the limit for one file is 100: split it"

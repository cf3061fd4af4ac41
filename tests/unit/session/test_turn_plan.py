"""What a question will take is known before it is asked; and chunks out of bytes, checked one by one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvloom.errors import ContentError, ContextOverflowError, NothingToUndoError, UnknownChunkError, UnknownSessionError
from kvloom.session.loom import Loom
from tests.unit.session.fakes import fake_loom


@pytest.fixture
def loom(tmp_path: Path) -> Iterator[Loom]:
    with fake_loom(tmp_path / "home") as opened:
        yield opened


def test_a_plan_is_what_the_turn_then_takes(loom: Loom) -> None:
    chunk = loom.load_text("the weather is fine today", name="weather")
    with loom.session() as chat:
        chat.activate(chunk.id)
        for number in range(3):
            planned = chat.plan(f"{number}?", 6)
            before = chat.manifest
            assert chat.manifest is before, "planning changes nothing"
            assert chat.generate(f"{number}?", max_tokens=6, temperature=0.0).usage.prompt_tokens == (
                planned.num_prompt_tokens
            )
            assert planned.max_tokens == 6
        again = chat.plan(None)
        assert chat.retry(max_tokens=6, temperature=0.0).usage.prompt_tokens == again.num_prompt_tokens


def test_a_plan_that_does_not_fit_is_refused_with_the_numbers(loom: Loom) -> None:
    with loom.session() as chat:
        with pytest.raises(ContextOverflowError) as caught:
            chat.plan("word " * 3000)
        assert caught.value.num_window_tokens == chat.window
        with pytest.raises(NothingToUndoError):
            chat.plan(None)


def test_bytes_become_the_chunk_that_a_file_of_them_would_be(loom: Loom, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_bytes(b"\xef\xbb\xbfwith a mark")
    assert loom.load_bytes(file.read_bytes(), name="notes").id == loom.load(file).id
    assert loom.load_bytes(b"caf\xe9", name="repaired", repair=True).id == loom.load_text("caf\ufffd", name="b").id
    for wrong in (b"", b" \n", b"a\x00b", b"caf\xe9", b"%PDF-1.7"):
        with pytest.raises(ContentError):
            loom.load_bytes(wrong, name="wrong")


def test_one_chunk_is_verified_and_no_other_is_read(loom: Loom) -> None:
    one, other = (loom.load_text(f"{name} " * 40, name=name) for name in ("one", "other"))
    with loom.session(fidelity="splice") as chat:
        chat.activate(one.id, other.id)
        chat.warm()
    loom.flush()
    all_entries = {found.entry for found in loom.verify()}
    entries = [{found.entry for found in loom.verify_chunk(chunk.id) if not found.fault} for chunk in (one, other)]
    assert entries[0] and entries[1] and not entries[0] & entries[1]
    assert entries[0] | entries[1] < all_entries
    with pytest.raises(UnknownChunkError):
        loom.verify_chunk("none")


def test_a_session_is_told_of_by_its_id(loom: Loom) -> None:
    with loom.session(name="one") as chat:
        assert loom.session_info(chat.id).name == "one" and loom.session_info(chat.id).is_open
    with pytest.raises(UnknownSessionError):
        loom.session_info("0" * 16)

"""A session under any order of edits, questions, faults and restarts: what it says is what the engine holds."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvloom.context.manifest import Manifest
from kvloom.engine.fake import FakeEngine
from kvloom.errors import CancelledError, ContextOverflowError, NothingToUndoError
from kvloom.session.session import Session
from kvloom.types import EntryId, Fidelity
from tests.unit.session.fakes import engine_of, fake_loom, fresh_logits, held_tokens

NAMES = ("a.txt", "b.txt", "c.txt")
TEXTS = ("the cat", "dogs sleep all day", "cat cat cat cat", "one two three four five six seven")
CHUNKS = st.integers(0, len(NAMES) - 1)
MODES = st.sampled_from(list(Fidelity))
QUESTION = "where is the cat?"
WINDOW = 700
CELLS = WINDOW + 300


class Sessions(RuleBasedStateMachine):
    """One session that is edited in every way, and a second one beside it that competes for the cells."""

    @initialize(mode=MODES)
    def begin(self, mode: Fidelity) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="kvloom-machine-"))
        for number, name in enumerate(NAMES):
            (self.root / name).write_text(TEXTS[number])
        self.contents: dict[EntryId, bytes] = {}
        self.before: list[Manifest] = []
        self.open()
        self.chat = self.loom.session(fidelity=mode)
        self.other = self.loom.session(name="other", fidelity="splice")
        self.load(0)

    def open(self) -> None:
        engine = FakeEngine(num_cells=CELLS, max_sequences=8)
        self.loom = fake_loom(self.root / "home", engine, context=WINDOW, ram_budget_bytes=60_000)

    def teardown(self) -> None:
        if hasattr(self, "loom"):
            self.chat.close()
            self.other.close()
            assert engine_of(self.loom).used_cells() == 0
            self.loom.close()
            shutil.rmtree(self.root)

    def edit(self, change: Callable[[], Any]) -> None:
        """Do it, and remember what undo must bring back; an overflow must leave everything as it was."""
        now = self.chat.manifest
        try:
            change()
        except ContextOverflowError:
            assert self.chat.manifest == now
        if self.chat.manifest != now:
            self.before.append(now)

    def refs(self) -> list[str]:
        return [str(chunk) for chunk in self.chat.manifest.chunk_ids]

    # -- edits --------------------------------------------------------------------------------------------------

    @rule(number=CHUNKS)
    def load(self, number: int) -> None:
        self.edit(lambda: self.chat.load(self.root / NAMES[number]))

    @precondition(lambda self: self.refs())
    @rule(data=st.data(), on=st.booleans())
    def switch(self, data: st.DataObject, on: bool) -> None:
        ref = data.draw(st.sampled_from(self.refs()))
        self.edit(lambda: self.chat.activate(ref) if on else self.chat.deactivate(ref))

    @precondition(lambda self: self.refs())
    @rule(data=st.data())
    def move(self, data: st.DataObject) -> None:
        ref = data.draw(st.sampled_from(self.refs()))
        index = data.draw(st.integers(0, len(self.refs()) - 1))
        self.edit(lambda: self.chat.move(ref, index))

    @precondition(lambda self: self.refs())
    @rule(data=st.data(), pinned=st.booleans())
    def pin(self, data: st.DataObject, pinned: bool) -> None:
        ref = data.draw(st.sampled_from(self.refs()))
        self.edit(lambda: self.chat.pin(ref, pinned))

    @rule(number=CHUNKS, text=st.sampled_from(TEXTS))
    def change_file_and_reload(self, number: int, text: str) -> None:
        (self.root / NAMES[number]).write_text(text + " changed")
        self.edit(self.chat.reload)
        assert not any(segment.is_stale for segment in self.chat.usage().segments)

    @rule(mode=MODES)
    def set_fidelity(self, mode: Fidelity) -> None:
        self.edit(lambda: self.chat.set_fidelity(mode))

    @rule(system=st.sampled_from(["", "Be brief.", "Answer at length, and kindly."]))
    def set_system(self, system: str) -> None:
        self.edit(lambda: self.chat.set_system(system))

    @rule(all_of_it=st.booleans())
    def clear(self, all_of_it: bool) -> None:
        turns = None if all_of_it else [1] if self.chat.manifest.turns else []
        self.edit(lambda: self.chat.clear(turns))

    @rule()
    def recompute(self) -> None:
        self.edit(self.chat.recompute)
        manifest = self.chat.manifest
        assert not any(manifest.traces(slot) for slot in manifest.turns)

    @precondition(lambda self: self.refs())
    @rule(data=st.data())
    def erase_and_undo(self, data: st.DataObject) -> None:
        ref = data.draw(st.sampled_from(self.refs()))
        now = self.chat.manifest
        self.chat.erase(ref)
        assert ref not in self.refs()
        self.chat.undo()
        assert self.chat.manifest == now

    @precondition(lambda self: self.refs())
    @rule(data=st.data())
    def purge(self, data: st.DataObject) -> None:
        ref = data.draw(st.sampled_from(self.refs()))
        chunk = self.loom._resolve_erased(ref)
        self.chat.purge(ref)
        self.before = [manifest.purged(chunk) for manifest in self.before]
        assert chunk not in self.chat.manifest.chunk_ids

    @rule()
    def undo(self) -> None:
        if not self.before:
            try:
                self.chat.undo()
            except NothingToUndoError:
                return
            raise AssertionError("more was undone than was done")
        self.chat.undo()
        assert self.chat.manifest == self.before.pop()

    # -- asking -------------------------------------------------------------------------------------------------

    @rule(max_tokens=st.integers(1, 12), stop=st.sampled_from([None, "e", "a"]))
    def generate(self, max_tokens: int, stop: str | None) -> None:
        self.ask(self.chat, max_tokens, stop)

    @precondition(lambda self: self.chat.manifest.turns)
    @rule()
    def retry(self) -> None:
        num_turns = len(self.chat.manifest.turns)
        self.edit(lambda: self.chat.retry(max_tokens=5, temperature=0.0))
        assert len(self.chat.manifest.turns) == num_turns

    @rule(max_tokens=st.integers(1, 12))
    def generate_beside(self, max_tokens: int) -> None:
        if len(self.other.manifest.turns) > 2:
            self.other.clear()
        self.other.activate(*self.refs()[:1])
        self.ask(self.other, max_tokens, None)

    @rule(num_deltas=st.integers(0, 3))
    def cancel(self, num_deltas: int) -> None:
        now = self.chat.manifest
        try:
            with self.chat.stream(QUESTION, max_tokens=30, temperature=0.0) as stream:
                for number, _ in enumerate(stream):
                    if number == num_deltas:
                        self.chat.cancel()
        except (CancelledError, ContextOverflowError):
            assert self.chat.manifest == now
            return
        self.before.append(now)

    @rule()
    def close_a_stream_early(self) -> None:
        now = self.chat.manifest
        stream = self.chat.stream(QUESTION, max_tokens=30, temperature=0.9, seed=1)
        try:
            if next(stream, None) is None:
                self.before.append(now)
        except ContextOverflowError:
            pass
        stream.close()
        assert self.chat.manifest == now or self.before[-1] is now

    def ask(self, chat: Session, max_tokens: int, stop: str | None) -> None:
        now = chat.manifest
        question = chat._asking.question(QUESTION, chat.manifest)
        try:
            reply = chat.generate(QUESTION, max_tokens=max_tokens, temperature=0.0, stop=stop)
        except ContextOverflowError:
            assert chat.manifest == now
            return
        usage = reply.usage
        assert usage.prompt_tokens == usage.reused_tokens + usage.loaded_tokens + usage.computed_tokens
        assert usage.prompt_tokens == question.manifest.num_tokens + len(question.tokens)
        assert usage.rotated_tokens <= usage.loaded_tokens
        assert usage.computed_tokens >= len(question.tokens)
        assert len(chat.tokens()) == usage.prompt_tokens + usage.completion_tokens
        assert chat.history()[-1].answer == reply.text
        assert held_tokens(self.loom, chat) == chat.tokens()
        if chat is self.chat:
            self.before.append(now)

    @rule()
    def look_at_the_logits(self) -> None:
        num_decoded, chat = engine_of(self.loom).num_decoded_tokens, self.chat
        now = chat.manifest
        question = chat._asking.question(QUESTION, chat.manifest)
        try:
            logits = chat.next_logits(QUESTION)
        except ContextOverflowError:
            return
        assert chat.manifest == now
        assert engine_of(self.loom).num_decoded_tokens > num_decoded
        if now.fidelity is Fidelity.EXACT:
            whole = [*question.manifest.token_ids(), *question.tokens]
            np.testing.assert_array_equal(logits, fresh_logits(engine_of(self.loom), whole))
        np.testing.assert_array_equal(chat.next_logits(QUESTION), logits)

    @rule()
    def warm(self) -> None:
        self.edit(self.chat.warm)
        assert held_tokens(self.loom, self.chat) == self.chat.tokens()
        warmed = self.chat.warm()
        assert warmed.computed_tokens == warmed.loaded_tokens == 0

    # -- faults and restarts ------------------------------------------------------------------------------------

    @rule(data=st.data())
    def lose_entries(self, data: st.DataObject) -> None:
        """As an eviction or a damaged file would."""
        self.loom.flush()
        for entry in data.draw(st.sets(st.sampled_from(self.loom.store.ids() or [EntryId("0" * 64)]), max_size=4)):
            self.loom.store.purge(entry)

    @rule(data=st.data())
    def offload(self, data: st.DataObject) -> None:
        for ref in data.draw(st.sets(st.sampled_from(self.refs() or [""]), max_size=1)):
            if ref:
                self.loom.offload(self.loom._resolve_among(ref, self.chat.manifest))

    @rule()
    def reopen_the_session(self) -> None:
        manifest, answers = self.chat.manifest, [turn.answer for turn in self.chat.history()]
        self.chat.close()
        self.chat = self.loom.session(id=self.chat.id)
        assert self.chat.manifest == manifest
        assert [turn.answer for turn in self.chat.history()] == answers

    @rule()
    def restart(self) -> None:
        manifest, other = self.chat.manifest, self.other.id
        self.loom.close()
        assert engine_of(self.loom).used_cells() == 0
        self.open()
        self.chat, self.other = self.loom.session(id=self.chat.id), self.loom.session(id=other)
        assert self.chat.manifest == manifest

    # -- what always holds --------------------------------------------------------------------------------------

    @invariant()
    def the_books_are_what_the_engine_holds(self) -> None:
        if not hasattr(self, "loom"):
            return
        engine = engine_of(self.loom)
        held: set[int] = set()
        for holding in self.loom.device._holdings.values():
            assert holding.owner, "a scratch sequence was left behind"
            assert not holding.is_busy
            positions = [p for r in holding.residents.values() for p in range(r.position, r.stop)]
            assert sorted(positions) == sorted(engine._cells[holding.sequence])
            held.add(holding.sequence)
            for resident in holding.residents.values():
                if not resident.variant:
                    cells = [engine._cells[holding.sequence][p] for p in range(resident.position, resident.stop)]
                    content = engine._content[cells].tobytes()
                    assert self.contents.setdefault(resident.entry, content) == content, "two KVs under one key"
        assert not any(cells for sequence, cells in enumerate(engine._cells) if sequence not in held)

    @invariant()
    def what_is_shown_adds_up(self) -> None:
        if not hasattr(self, "loom"):
            return
        usage = self.chat.usage()
        assert usage.used + usage.free == usage.capacity
        assert usage.used == len(self.chat.tokens()) == sum(s.num_tokens for s in usage.segments if s.is_active)


TestSessions = Sessions.TestCase
TestSessions.settings = settings(
    max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)

"""What a purge reaches: every model of the home, loaded or not, and everything that was computed behind the chunk.

What depends on a chunk is told by doing the same in another home with another text in its place: entries that both
homes hold owe nothing to it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from kvloom.chunk.database import Database
from kvloom.engine.base import Run
from kvloom.engine.fake import FakeEngine
from kvloom.errors import UnknownChunkError
from kvloom.session.gc import forget_traces
from kvloom.session.loom import Loom
from kvloom.session.requests import ChatMessage, ChatPrompt, ChunkPart, Request, TextPart
from kvloom.session.results import StoredResults
from kvloom.session.traces import KEPT_S, Traces
from kvloom.types import ChunkId, EntryId, F32Array, Fidelity, SamplingParams
from tests.unit.session.fakes import RecurrentEngine, fake_loom
from tests.unit.session.test_concurrency import complete, ended, started, until

GREEDY = SamplingParams(temperature=0.0)
SECRET = "the secret word is xylophone, and nobody else may know of it\n" * 6
OTHER = "an open word is blackboard!!, and everybody here does know it\n" * 6
PLAIN = "a text that stays, whatever becomes of the one beside it\n" * 4

Use = Callable[[Loom, ChunkId], None]


def asked(*parts: str | ChunkPart, fidelity: Fidelity = Fidelity.EXACT, recognises: bool = False) -> Request:
    told = tuple(TextPart(part) if isinstance(part, str) else part for part in parts)
    messages = (ChatMessage("system", (TextPart("Answer. " * 40),)), ChatMessage("user", told))
    return Request(ChatPrompt(messages), 20, GREEDY, fidelity=fidelity, recognises=recognises)


def request(fidelity: Fidelity) -> Use:
    def use(loom: Loom, chunk: ChunkId) -> None:
        plain = loom.load_text(PLAIN, name="plain").id
        complete(loom, asked("beside", ChunkPart(plain), "and?", fidelity=fidelity))
        complete(loom, asked("read", ChunkPart(chunk), "then", ChunkPart(plain), "what? " * 60, fidelity=fidelity))
        complete(loom, asked("read", ChunkPart(chunk), "and what?", fidelity=fidelity))

    return use


def recognised(loom: Loom, chunk: ChunkId) -> None:
    complete(loom, asked("read this:", loom.catalog.text(chunk), "what? " * 60, recognises=True))


def session_that_is_gone(loom: Loom, chunk: ChunkId) -> None:
    session = loom.session(fidelity=Fidelity.SPLICE)
    session.activate(chunk)
    session.generate("what is it?", max_tokens=20, temperature=0.0)
    session.deactivate(chunk)
    session.generate("and now?", max_tokens=20, temperature=0.0)
    loom.delete_session(session.id)


USES = {
    "exact": request(Fidelity.EXACT), "splice": request(Fidelity.SPLICE), "blend": request(Fidelity.BLEND),
    "recognised": recognised, "deleted session": session_that_is_gone,
}  # fmt: skip


def held(loom: Loom) -> set[EntryId]:
    """What is in any tier or on the device."""
    loom.flush()
    with loom.device.lock:
        return {*loom.store.ids(), *(resident.entry for _, resident in loom.device.residents())}


def on_disk(home: Path) -> set[str]:
    return {path.stem for path in home.rglob("*.kve")}


def open_to(what_is_said: str) -> Callable[[Loom], ChunkId]:
    return lambda loom: loom.load_text(what_is_said, name="the text").id


def without(folder: Path, use: Use, seed: int = 0) -> set[EntryId]:
    """What the same use leaves with another text of the same length."""
    with fake_loom(folder, FakeEngine(num_cells=4096, seed=seed)) as loom:
        use(loom, open_to(OTHER)(loom))
        return held(loom)


def loom_of(home: Path, seed: int = 0, engine: FakeEngine | None = None) -> Loom:
    return fake_loom(home, engine or FakeEngine(num_cells=4096, seed=seed))


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_nothing_that_was_computed_behind_a_purged_chunk_stays(tmp_path: Path, use: Use) -> None:
    with loom_of(tmp_path / "home") as loom:
        chunk = open_to(SECRET)(loom)
        use(loom, chunk)
        before = held(loom)
        independent = before & without(tmp_path / "other", use)
        assert independent < before
        assert loom.purge(chunk) > 0
        assert held(loom) == independent, "what depended on it is gone, what did not is kept"
        assert not Traces(loom._database).num_traces() or use is not recognised
    assert on_disk(tmp_path / "home") <= independent


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("is_loaded", [True, False])
def test_a_purge_reaches_every_model_of_the_home(tmp_path: Path, use: Use, is_loaded: bool) -> None:
    home = tmp_path / "home"
    independent = [without(tmp_path / f"other {seed}", use, seed) for seed in (0, 1)]
    second = loom_of(home, seed=1)
    chunk = open_to(SECRET)(second)
    use(second, chunk)
    before = held(second)
    assert before - independent[1]
    if not is_loaded:
        second.close()
    with loom_of(home) as first:
        use(first, chunk)
        first.purge(chunk)
        assert held(first) - before <= independent[0]
        if is_loaded:
            assert held(second) <= independent[0] | independent[1]
            with pytest.raises(UnknownChunkError):
                complete(second, asked(ChunkPart(chunk), "still?"))
            second.close()
        assert on_disk(home) <= independent[0] | independent[1]
        assert on_disk(home), "what did not depend on it stays"


def test_a_session_that_is_open_under_another_model_loses_the_chunk(tmp_path: Path) -> None:
    with loom_of(tmp_path / "home") as first, loom_of(tmp_path / "home", seed=1) as second:
        chunk = open_to(SECRET)(first)
        session = second.session()
        session.activate(chunk)
        session.generate("what is it?", max_tokens=8, temperature=0.0)
        first.purge(chunk)
        assert session.manifest.chunk_ids == ()
        assert SECRET not in session.prompt()
        assert session.generate("and now?", max_tokens=8, temperature=0.0).text


def test_a_reply_under_way_under_another_model_leaves_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    use = request(Fidelity.EXACT)
    independent = without(tmp_path / "other", use, 1)
    with loom_of(home) as first, loom_of(home, seed=1) as second:
        chunk = open_to(SECRET)(first)
        stream = second.complete(asked("read", ChunkPart(chunk), "and what?"))
        next(stream)
        first.purge(chunk)
        for _ in stream:
            pass
        assert stream.result.usage.completion_tokens == 20
        assert held(second) <= independent
        assert on_disk(home) <= independent


class Held(FakeEngine):
    """Stops before a prefill at or behind a position until it is let go."""

    def __init__(self) -> None:
        super().__init__(num_cells=4096)
        self.stops_at = 1 << 30
        self.has_stopped, self.may_go_on = threading.Event(), threading.Event()

    def decode(self, runs: Sequence[Run]) -> list[F32Array | None]:
        if any(run.start >= self.stops_at for run in runs):
            self.has_stopped.set()
            assert self.may_go_on.wait(20)
        return super().decode(runs)


def test_a_weave_that_is_under_way_is_waited_for(tmp_path: Path) -> None:
    """It has the chunk's rows in hand, and the books do not show them yet."""
    engine = Held()
    with loom_of(tmp_path / "home", engine=engine) as loom:
        chunk = open_to(SECRET)(loom)
        complete(loom, asked("read", ChunkPart(chunk), "what?", fidelity=Fidelity.SPLICE))
        with loom.device.lock:
            loom.device.drop_idle("request-", 0)
        again = asked("other", ChunkPart(chunk), "word " * 200, fidelity=Fidelity.SPLICE)
        prepared = loom.prepare(again)
        behind = prepared.manifest.slots[-1]
        assert chunk in behind.seen
        engine.stops_at = max(slot.stop for slot in prepared.manifest.chunks)
        asking = started(lambda: complete(loom, prepared))
        assert engine.has_stopped.wait(20)
        purging = started(lambda: loom.purge(chunk))
        until(lambda: loom.device.lock._num_waiting > 0)
        engine.may_go_on.set()
        assert ended(asking, purging)
        left = held(loom)
        dependent = {loom.composer.entry_id(slot.tokens, slot.lineage) for slot in prepared.manifest.slots[-2:]}
        assert not left & dependent
        assert not loom.device.num_busy()


def test_an_engine_that_cannot_cut_its_state_loses_all_of_it(tmp_path: Path) -> None:
    with fake_loom(tmp_path / "home", RecurrentEngine()) as loom:
        chunk = open_to(SECRET)(loom)
        complete(loom, asked("read", ChunkPart(chunk), "what?"))
        assert held(loom)
        loom.purge(chunk)
        assert not held(loom)
        assert not loom.engine.used_cells()


def test_requests_with_a_chunk_go_on_while_others_are_purged(tmp_path: Path) -> None:
    is_ending, errors = threading.Event(), list[Exception]()
    with loom_of(tmp_path / "home") as first, loom_of(tmp_path / "home", seed=1) as second:
        stays = first.load_text(PLAIN, name="stays").id

        def ask(loom: Loom, number: int) -> None:
            try:
                for count in range(10_000):
                    if is_ending.is_set():
                        return
                    complete(loom, asked(ChunkPart(stays), f"{number} {count}"))
            except Exception as error:  # noqa: BLE001 - the edge of a thread
                errors.append(error)

        threads = [started(lambda one=one: ask(one, 0)) for one in (first, second)]  # type: ignore[misc]
        for number in range(12):
            chunk = first.load_text(f"{SECRET} {number}", name=f"note {number}").id
            complete(second, asked(ChunkPart(chunk), "what?"))
            (first, second)[number % 2].purge(chunk)
        is_ending.set()
        assert ended(*threads)
    assert not errors


def test_a_loom_that_is_closed_while_another_purges_leaves_nothing_behind(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for number in range(8):
        first, second = loom_of(home), loom_of(home, seed=1)
        chunk = first.load_text(f"{SECRET} {number}", name="the text").id
        clean = on_disk(home)
        session = second.session(fidelity=Fidelity.SPLICE)
        session.activate(chunk)
        session.warm()
        threads = [started(second.close), started(lambda: first.purge(chunk))]  # noqa: B023 - ended below
        assert ended(*threads)
        first.close()
        alone = {first.composer.weaver.alone_prefix().entry, second.composer.weaver.alone_prefix().entry}
        heads = on_disk(home) - clean - alone
        assert len(heads) <= 1, "the system text's own entry, at most"


# -- traces ---------------------------------------------------------------------------------------------------------


def test_traces_of_what_is_held_nowhere_any_more_are_forgotten(tmp_path: Path) -> None:
    with loom_of(tmp_path / "home") as loom:
        chunk = open_to(SECRET)(loom)
        request(Fidelity.EXACT)(loom, chunk)
        loom.flush()
        traces = loom.shelf.traces
        known = traces.of(chunk)
        assert known
        assert forget_traces(loom) == 0, "young ones may be about to come"
        traces._clock = lambda: 1e12
        gone = next(entry for entry in known if entry in loom.store.ids())
        with loom.device.lock:
            loom.device.drop_idle("request-", 0)
        loom.store.purge(gone)
        assert 1 <= forget_traces(loom) <= 2, "behind this chunk, and maybe behind the other one as well"
        assert traces.of(chunk) == known - {gone}
        complete(loom, asked("read", ChunkPart(chunk), "and what?"))
        request(Fidelity.EXACT)(loom, chunk)
        assert traces.of(chunk) >= known, "what comes back is recorded again"


def test_a_trace_that_is_written_again_is_young_again(tmp_path: Path) -> None:
    database = Database(tmp_path)
    try:
        now = 1000.0
        traces = Traces(database, lambda: now)
        chunk, entry = ChunkId("a" * 64), EntryId("b" * 64)
        traces.add([(chunk, entry)])
        assert not traces.of(chunk), "the catalog does not know it"
        database.execute("INSERT INTO chunks VALUES (?, 1, 'utf-8', x'00', 0, NULL)", (chunk,))
        traces.add([(chunk, entry)])
        now += KEPT_S
        traces.add([(chunk, entry)])
        now += 1
        assert traces.prune(lambda _: False) == 0
        now += KEPT_S
        assert traces.prune(lambda _: True) == 0
        assert traces.prune(lambda _: False) == 1
        assert traces.num_traces() == 0
    finally:
        database.close()


def test_a_purge_forgets_replies_that_may_quote_the_chunk(tmp_path: Path) -> None:
    with fake_loom(tmp_path) as loom:
        _purge_forgets_replies(loom)


KEY = "5" * 64


def _purge_forgets_replies(loom: Loom) -> None:
    chunk = loom.load_text("the pier was built in 1911", name="pier.txt").id
    with StoredResults(loom.home) as results:
        results.put(KEY, "built in 1911")
        assert results.get(KEY)
        loom.purge(chunk)
        assert results.get(KEY) is None

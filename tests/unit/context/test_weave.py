"""Weaving on the deterministic engine: what a sequence holds is what was wanted, whatever goes wrong on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from kvloom.context.device import Device, Holding
from kvloom.context.plan import Wanted
from kvloom.context.variants import Span, blended_spans, composition, keep_blended
from kvloom.context.weave import EntriesGoneError, Weaver
from kvloom.engine.base import Run
from kvloom.engine.fake import FakeEngine
from kvloom.errors import CancelledError, EngineMemoryError, EngineUnsupportedError, StoreFullError
from kvloom.kv.rotate import Rotator
from kvloom.types import ALONE, Entry, EntryId, EntryKey, Lineage

HERE = Lineage("ab" * 32)


@dataclass
class DictStore:
    """All tiers as one dictionary; `promised` are entries that it claims to have."""

    entries: dict[EntryId, Entry] = field(default_factory=dict)
    promised: set[EntryId] = field(default_factory=set)
    is_full: bool = False

    def get(self, entry: EntryId) -> Entry | None:
        return self.entries.get(entry)

    def put(self, entry: Entry) -> None:
        if self.is_full:
            raise StoreFullError("no space is left")
        self.entries[entry.id] = entry

    def contains(self, entry: EntryId) -> bool:
        return entry in self.entries or entry in self.promised


@dataclass
class Bench:
    """A device, a store and a weaver over one engine."""

    engine: FakeEngine = field(default_factory=lambda: FakeEngine(num_cells=600, max_sequences=6))
    store: DictStore = field(default_factory=DictStore)

    def __post_init__(self) -> None:
        self.device = Device(self.engine)
        self.weaver = Weaver(self.device, self.store, Rotator(self.engine.layout, self.engine.rope).lay, self.key)

    def key(self, wanted: Wanted) -> EntryKey:
        engine = self.engine
        layout, rope = engine.layout.canonical(), engine.rope.canonical()
        return EntryKey(wanted.tokens, engine.fingerprint, layout, rope, wanted.lineage)

    def want(self, text: str, position: int, lineage: Lineage = ALONE) -> Wanted:
        bare = Wanted(EntryId(""), tuple(text.encode()), lineage, position)
        return Wanted(self.key(bare).id, bare.tokens, lineage, position)

    def contents(self, holding: Holding) -> dict[int, int]:
        """What each position holds, as one number per row whatever its rotation."""
        cells = self.engine._cells[holding.sequence]
        return {position: int(self.engine._content[cell]) for position, cell in cells.items()}

    def check(self, holding: Holding, wanted: list[Wanted]) -> None:
        positions = {p for want in wanted for p in range(want.position, want.stop)}
        assert set(self.contents(holding)) == positions
        assert {(r.entry, r.position) for r in holding.residents.values()} == {(w.entry, w.position) for w in wanted}
        assert len(self.device._holdings) == len({h.owner for h in self.device._holdings.values()})


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_chunk_has_the_same_rows_wherever_it_stands(bench: Bench) -> None:
    first, second = bench.device.holding("first"), bench.device.holding("second")
    woven = bench.weaver.weave(first, [bench.want("a chunk", 40)])
    assert (woven.computed_tokens, woven.loaded_tokens, woven.rotated_tokens) == (7, 0, 0)
    woven = bench.weaver.weave(second, [bench.want("a chunk", 3)])
    assert (woven.computed_tokens, woven.loaded_tokens, woven.rotated_tokens) == (0, 7, 7)
    assert list(bench.contents(first).values()) == list(bench.contents(second).values())


def test_the_same_rows_at_the_same_place_are_one_copy(bench: Bench) -> None:
    wanted = [bench.want("head", 0, HERE), bench.want("a chunk", 4)]
    bench.weaver.weave(bench.device.holding("first"), wanted)
    used = bench.engine.used_cells()
    woven = bench.weaver.weave(bench.device.holding("second"), wanted)
    assert woven.reused_tokens == 11
    assert bench.engine.used_cells() == used


def test_equal_parts_are_computed_once_and_counted_once(bench: Bench) -> None:
    holding = bench.device.holding("one")
    wanted = [bench.want("part", 0), bench.want("part", 4), bench.want("part", 8)]
    before = bench.engine.num_decoded_tokens
    woven = bench.weaver.weave(holding, wanted)
    assert bench.engine.num_decoded_tokens - before == 4 + 1, "the part and its sink"
    assert (woven.computed_tokens, woven.loaded_tokens) == (4, 8)
    bench.check(holding, wanted)


def test_a_piece_that_is_computed_in_the_middle_sees_only_what_stands_before_it(bench: Bench) -> None:
    whole, rest = bench.device.holding("whole"), bench.device.holding("rest")
    parts = [bench.want("head", 0, HERE), bench.want("middle", 4, HERE), bench.want("tail", 10)]
    bench.weaver.weave(whole, parts)
    bench.store.entries.pop(parts[1].entry)
    bench.device.drop(whole, [whole.residents[4]])
    bench.weaver.weave(rest, [parts[0], parts[2]])
    bench.weaver.weave(rest, parts)
    bench.check(rest, parts)
    bench.weaver.weave(whole, parts)
    assert bench.contents(whole) == bench.contents(rest)


def test_entries_that_are_not_there_after_all_are_reported_and_not_promised_again(bench: Bench) -> None:
    holding, wanted = bench.device.holding("one"), [bench.want("head", 0, HERE), bench.want("chunk", 4)]
    bench.store.promised = {want.entry for want in wanted}
    with pytest.raises(EntriesGoneError) as gone:
        bench.weaver.weave(holding, wanted)
    assert gone.value.entries == (wanted[0].entry,)
    assert not bench.weaver.has(wanted[0].entry)
    assert bench.weaver.weave(holding, wanted).computed_tokens == 9
    bench.check(holding, wanted)
    assert bench.weaver.has(wanted[0].entry)


def test_a_full_store_does_not_stop_a_weave(bench: Bench) -> None:
    bench.store.is_full = True
    holding, wanted = bench.device.holding("one"), [bench.want("head", 0, HERE), bench.want("chunk", 4)]
    bench.weaver.weave(holding, wanted)
    bench.check(holding, wanted)
    assert bench.weaver.weave(holding, wanted).reused_tokens == 9


def never() -> bool:
    return False


@pytest.mark.parametrize("num_checks", range(5))
def test_a_cancelled_weave_leaves_an_empty_sequence_and_no_scratch(bench: Bench, num_checks: int) -> None:
    holding = bench.device.holding("one")
    wanted = [bench.want("head", 0, HERE), bench.want("first", 4), bench.want("second", 9)]
    answers = iter([False] * num_checks + [True] * 9)
    try:
        bench.weaver.weave(holding, wanted, is_cancelled=lambda: next(answers))
        bench.check(holding, wanted)
    except CancelledError:
        bench.check(holding, [])
        assert bench.engine.used_cells() == 0
    assert not holding.is_busy
    bench.weaver.weave(holding, wanted)
    bench.check(holding, wanted)


def test_what_has_no_cells_is_refused_and_idle_owners_go_first(bench: Bench) -> None:
    idle, busy, third = (bench.device.holding(name) for name in ("idle", "busy", "third"))
    bench.weaver.weave(idle, [bench.want("i" * 300, 0)])
    bench.weaver.weave(busy, [bench.want("b" * 100, 0)])
    busy.is_busy = True
    bench.weaver.weave(third, [bench.want("t" * 150, 0)])
    assert not idle.residents and busy.residents
    with pytest.raises(EngineMemoryError, match="600"):
        bench.weaver.weave(third, [bench.want("u" * 500, 0)])
    bench.check(third, [])
    assert bench.engine.used_cells() == 100


def test_rows_are_never_turned_by_an_engine_that_cannot_use_them() -> None:
    bench = Bench(FakeEngine(num_cells=600, max_sequences=6, can_rotate=False))
    holding = bench.device.holding("one")
    with pytest.raises(EngineUnsupportedError):
        bench.weaver.weave(holding, [bench.want("chunk", 40)])
    bench.check(holding, [])


def test_a_cut_takes_everything_from_a_position_on(bench: Bench) -> None:
    holding, wanted = bench.device.holding("one"), [bench.want("head", 0, HERE), bench.want("chunk", 4)]
    bench.weaver.weave(holding, wanted)
    bench.weaver.extend(holding, list(b"question"), 9, never)
    bench.device.cut(holding, 9)
    bench.check(holding, wanted)
    assert bench.weaver.end_at(holding, 9, list(b"ab"))
    assert bench.engine.last_position(holding.sequence) == 10
    bench.device.cut(holding, 2)
    assert not holding.residents, "what is cut in the middle is not there any more"


@pytest.fixture
def prefix_of() -> Callable[[list[Wanted]], Callable[[int], str]]:
    def of(wanted: list[Wanted]) -> Callable[[int], str]:
        return lambda position: composition(want for want in wanted if want.position < position)

    return of


def test_blend_recomputes_in_place_and_keeps_it_behind_the_same_composition_only(
    bench: Bench, prefix_of: Callable[[list[Wanted]], Callable[[int], str]]
) -> None:
    holding = bench.device.holding("one")
    wanted = [bench.want("head", 0, HERE), bench.want("first chunk", 4), bench.want("second chunk", 15)]
    bench.weaver.weave(holding, wanted)
    pristine = bench.contents(holding)
    assert bench.weaver.blend(holding, wanted, [Span(4, 7), Span(16, 20)], prefix_of(wanted)) == 7
    blended = bench.contents(holding)
    assert {p for p in pristine if pristine[p] != blended[p]} == {4, 5, 6, 16, 17, 18, 19}
    assert blended_spans(holding.residents[15].variant) == [Span(1, 5)]
    kept = keep_blended(wanted, holding)
    assert bench.weaver.weave(holding, kept).reused_tokens == 27
    assert bench.contents(holding) == blended
    other = [wanted[0], bench.want("other chunk", 4), wanted[2]]
    bench.weaver.weave(holding, keep_blended(other, holding))
    assert [bench.contents(holding)[p] for p in range(15, 27)] == [pristine[p] for p in range(15, 27)]


def test_a_blend_that_fails_leaves_an_empty_sequence_and_no_scratch(
    bench: Bench, prefix_of: Callable[[list[Wanted]], Callable[[int], str]]
) -> None:
    holding, wanted = bench.device.holding("one"), [bench.want("head", 0, HERE), bench.want("chunk", 4)]
    bench.weaver.weave(holding, wanted)

    def fail(_: int) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.weaver.blend(holding, wanted, [Span(5, 7)], fail)
    bench.check(holding, [])


def test_what_is_computed_alone_takes_no_cells_that_are_promised_to_another(bench: Bench) -> None:
    weaver = Weaver(
        bench.device, bench.store, Rotator(bench.engine.layout, bench.engine.rope).lay, bench.key, tuple(range(120))
    )
    with bench.device.lock:
        reply = bench.device.holding("reply")
        reply.is_busy = True
        bench.device.promise(reply, 300)
        bench.device.decode([Run(reply.sequence, tuple(b"x" * 100), 0)], reply)
        with pytest.raises(EngineMemoryError, match="410 more tokens"):
            weaver.weave(bench.device.holding("other"), [bench.want("q" * 290, 0)])
        weaver.weave(bench.device.holding("other"), [bench.want("q" * 180, 0)])
        bench.device.decode([Run(reply.sequence, tuple(b"y" * 200), 100)], reply)

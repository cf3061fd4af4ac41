"""Weaving: carries a plan out on the engine, so that a sequence holds exactly what a manifest wants.

Knows entries and positions, not texts. Rows that are computed are stored at once; a fault in a stored entry is a miss.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Protocol

from kvloom.context.device import Device, Holding
from kvloom.context.plan import Compute, Keep, Place, Plan, Resident, Wanted, make_plan
from kvloom.context.variants import Span, blended
from kvloom.engine.base import Logits, PlacedRows, RowLayer, Run
from kvloom.errors import CancelledError, EngineUnsupportedError, StoreError
from kvloom.types import ALONE, Entry, EntryId, EntryKey, F32Array, KVRows, SequenceId, merkle_lineage

PREFILL_STEP_TOKENS = 512
"""A prefill is cut here to report progress and to be cancelled; a multiple of the engine's 64-row cuts."""

_log = logging.getLogger(__name__)

StepCallback = Callable[[int, int], None]
"""(tokens computed so far, tokens to compute)."""


class EntryStore(Protocol):
    """What weaving needs of the tiers."""

    def get(self, entry: EntryId) -> Entry | None: ...
    def put(self, entry: Entry) -> None: ...
    def contains(self, entry: EntryId) -> bool: ...


class KeyMaker(Protocol):
    def __call__(self, wanted: Wanted) -> EntryKey: ...


@dataclass(frozen=True)
class Weave:
    """What a weave did, in tokens, and how long it took."""

    reused_tokens: int = 0
    loaded_tokens: int = 0
    computed_tokens: int = 0
    rotated_tokens: int = 0
    dropped_tokens: int = 0
    seconds: float = 0.0


class EntriesGoneError(Exception):
    """Entries that a tier promised turned out to be damaged. The caller plans again: they are not there any more.

    They cannot be computed under their old key, since what they attended to may not stand before them any more.
    """

    def __init__(self, entries: Sequence[EntryId]) -> None:
        super().__init__(f"{len(entries)} stored entries were refused")
        self.entries = tuple(entries)


class Weaver:
    """Weaves for all sessions of one device. The caller holds `device.lock`."""

    def __init__(
        self,
        device: Device,
        store: EntryStore,
        lay: RowLayer,
        key: KeyMaker,
        alone_prefix: Sequence[int] = (),
    ) -> None:
        self._device = device
        self._engine = device.engine
        self._store = store
        self._lay = lay
        self._key = key
        self._alone_prefix = tuple(alone_prefix) or (device.engine.sink_token,)
        # Stored entries that could neither be read nor deleted: promised again and again, and never there.
        self._refused: set[EntryId] = set()
        # Being computed by some thread: whoever wants them too waits, and shares the cells.
        self._computing: set[EntryId] = set()
        # Wanted by weaves under way: between two of their steps the books may not show yet what they hold.
        self._weaving: Counter[EntryId] = Counter()

    def has(self, entry: EntryId) -> bool:
        """Whether a tier holds the entry and this engine can take it."""
        can_place = self._engine.capabilities.can_move_kv and entry not in self._refused
        return can_place and self._store.contains(entry)

    def plan(self, holding: Holding, wanted: Sequence[Wanted]) -> Plan:
        """The plan for `wanted`, without doing anything."""
        own = tuple(holding.residents.values())
        shared = self._device.shared(holding) if self._engine.capabilities.can_move_kv else {}
        return make_plan(wanted, own, shared, self.has)

    def weave(
        self,
        holding: Holding,
        wanted: Sequence[Wanted],
        *,
        num_to_come: int = 0,
        on_step: StepCallback | None = None,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> Weave:
        """Make `holding` hold exactly `wanted` (ordered by position, no overlap).

        `num_to_come` tokens are to follow: their cells are kept for it while it is at work. Raises CancelledError
        between prefill steps and EngineMemoryError when the cells do not suffice. Whatever is raised, the books stay
        true; what was computed so far is stored.
        """
        entries = [want.entry for want in wanted]
        self._weaving.update(entries)
        try:
            return self._woven(holding, wanted, num_to_come, on_step, is_cancelled)
        finally:
            self._weaving.subtract(entries)
            self._weaving = +self._weaving

    def _woven(
        self,
        holding: Holding,
        wanted: Sequence[Wanted],
        num_to_come: int,
        on_step: StepCallback | None,
        is_cancelled: Callable[[], bool],
    ) -> Weave:
        began = time.perf_counter()
        num_emptied_tokens = self._emptied(holding, wanted)
        plan = self._plan_alone(holding, wanted, is_cancelled)
        placed, missing = self._fetch(plan)
        gone = [want.entry for want in missing if want.lineage != ALONE]
        if gone:
            raise EntriesGoneError(gone)
        computes = [op.wanted for op in plan.operations if isinstance(op, Compute)] + missing
        clock = _Steps(sum(len(want.tokens) for want in computes), on_step, is_cancelled)
        holding.due = self._device.batcher.due(clock.total)
        mine = {want.entry for want in computes}
        self._computing |= mine
        holding.is_busy = True
        try:
            self._device.drop(holding, [drop.resident for drop in plan.drops])
            self._share(holding, plan)
            num_tokens = sum(len(want.tokens) for want in wanted) + num_to_come
            alone = [want for want in computes if Compute(want).alone]
            self._device.promise(holding, max(num_tokens, self._num_beside(holding, alone)), is_cancelled)
            rows = {want.position: found for want, found in placed}
            rows |= self._alone_rows(alone, holding, clock)
            holding.num_promised = num_tokens
            rotated = self._lay_in_order(holding, [want for want, _ in placed] + computes, rows, clock)
        except BaseException:
            # A half-woven sequence is no manifest's: forget it, everything in it can be had again.
            self._device.empty(holding)
            raise
        finally:
            holding.is_busy = False
            self._computing -= mine
        own = {want.position for want in computes}
        # Of equal parts one was computed, and the others are copies of it.
        num_computed_tokens = clock.total - _num_repeated(alone)
        return Weave(
            reused_tokens=plan.num_reused_tokens,
            loaded_tokens=sum(len(want.tokens) for want, _ in placed) + clock.total - num_computed_tokens,
            computed_tokens=num_computed_tokens,
            rotated_tokens=sum(len(want.tokens) for want in rotated if want.position not in own),
            dropped_tokens=plan.num_dropped_tokens + num_emptied_tokens,
            seconds=time.perf_counter() - began,
        )

    def extend(self, holding: Holding, tokens: Sequence[int], start: int, is_cancelled: Callable[[], bool]) -> F32Array:
        """Prefill `tokens` at the end of the holding; the logits behind the last one. The books are the caller's."""
        self._device.make_room(len(tokens), [holding])
        clock = _Steps(len(tokens), None, is_cancelled)
        return self._decode(holding.sequence, tokens, start, clock, holding)

    def store_rows(self, holding: Holding, wanted: Sequence[Wanted]) -> None:
        """Read what `wanted` (adjacent, on the device) holds, store it, and enter it in the books."""
        for want in wanted:
            holding.residents[want.position] = Resident(want.entry, want.position, len(want.tokens))
        if not self._engine.capabilities.can_move_kv or not wanted:
            return
        _, rows = self._engine.read(holding.sequence, wanted[0].position, wanted[-1].stop)
        for want in wanted:
            first = want.position - wanted[0].position
            part = rows if len(want.tokens) == rows.num_tokens else rows.slice(first, first + len(want.tokens))
            self._put(want, part)

    def end_at(self, holding: Holding, position: int, tokens: Sequence[int]) -> bool:
        """Let the sequence end at `position`, then with `tokens`. False where the engine cannot: it is empty then."""
        self._device.cut(holding, position)
        if self._engine.last_position(holding.sequence) is None:
            return False
        if tokens:
            self._device.make_room(len(tokens), [holding])
            self._device.decode([Run(holding.sequence, tokens, position)], holding)
        return True

    def blend(
        self, holding: Holding, wanted: Sequence[Wanted], runs: Sequence[Span], prefix: Callable[[int], str]
    ) -> int:
        """Recompute `runs` in place, all in one decode call, each behind the prefix as it is now; tokens recomputed.

        `prefix(position)` names the composition before a position: it goes into the variant of the rows, so that
        they are kept only where the same composition stands before them.
        """
        runs = runs[: max(0, self._device.num_free_sequences())]
        total = sum(run.stop - run.start for run in runs)
        if not total:
            return 0
        self._device.make_room(total, [holding])
        scratches: list[Holding] = []
        try:
            decode = []
            for run in runs:
                scratch = self._device.holding("")
                scratches.append(scratch)
                scratch.num_promised = run.stop
                self._engine.copy(holding.sequence, scratch.sequence, 0, run.start)
                decode.append(Run(scratch.sequence, _tokens_in(wanted, run), run.start))
            self._device.decode(decode, holding)
            for run, scratch in zip(runs, scratches, strict=True):
                self._engine.remove(holding.sequence, run.start, run.stop)
                self._engine.copy(scratch.sequence, holding.sequence, run.start, run.stop)
            self._mark_blended(holding, runs, prefix)
        except BaseException:
            self._device.empty(holding)
            raise
        finally:
            for scratch in scratches:
                self._device.release(scratch)
        return total

    def woven_now(self) -> set[EntryId]:
        """What weaves under way want."""
        return set(self._weaving)

    def wait_woven(self, entries: Set[EntryId]) -> None:
        """Until no weave under way wants one of these. The caller sees to it that no new one does."""
        self._device.lock.wait_for(lambda: entries.isdisjoint(self._weaving))

    # -- inside -------------------------------------------------------------------------------------------------

    def _plan_alone(self, holding: Holding, wanted: Sequence[Wanted], is_cancelled: Callable[[], bool]) -> Plan:
        """The plan, once nobody else computes what it would compute."""
        while True:
            plan = self.plan(holding, wanted)
            entries = {op.wanted.entry for op in plan.operations if isinstance(op, Compute)}
            if not entries & self._computing:
                return plan
            holding.is_busy = holding.is_waiting = True  # or it could be given to somebody else meanwhile
            holding.num_promised = 0  # of the work before
            try:
                self._device.lock.wait_for(
                    lambda entries=entries: not entries & self._computing or is_cancelled()  # type: ignore[misc]
                )
            finally:
                holding.is_busy = holding.is_waiting = False
            if is_cancelled():
                raise CancelledError("cancelled; the context is as it was before")

    def _emptied(self, holding: Holding, wanted: Sequence[Wanted]) -> int:
        """Start anew where the engine cannot change what it holds: the tokens that were dropped."""
        if self._engine.capabilities.can_move_kv or self._is_append(holding, wanted):
            return 0
        num_tokens = holding.num_tokens
        self._device.empty(holding)
        return num_tokens

    def _fetch(self, plan: Plan) -> tuple[list[tuple[Wanted, KVRows]], list[Wanted]]:
        """Rows of what is to be placed; what turned out not to be there (a fault is a miss)."""
        placed, missing = [], []
        for operation in plan.operations:
            if isinstance(operation, Place):
                entry = self._store.get(operation.wanted.entry)
                if entry is None:
                    self._refused.add(operation.wanted.entry)
                    missing.append(operation.wanted)
                else:
                    placed.append((operation.wanted, entry.rows))
        return placed, missing

    def _share(self, holding: Holding, plan: Plan) -> None:
        for operation in plan.operations:
            if isinstance(operation, Keep) and operation.source is not None:
                want = operation.wanted
                self._engine.copy(operation.source, holding.sequence, want.position, want.stop)
                self._enter(holding, want)

    def _lay_in_order(
        self, holding: Holding, wanted: Iterable[Wanted], rows: Mapping[int, KVRows], clock: _Steps
    ) -> list[Wanted]:
        """Place what has rows and compute the rest, by position: cells in the order of positions give equal bits.

        Attention adds up in the order of the cells, so a context that is restored in order repeats its first logits
        exactly. What had to be rotated is returned.
        """
        rotated: list[Wanted] = []
        ordered = sorted(wanted, key=lambda want: want.position)
        for has_rows, group in groupby(ordered, key=lambda want: want.position in rows):
            if has_rows:
                rotated += self._place(holding, [(want, rows[want.position]) for want in group])
            else:
                for adjacent in _adjacent(list(group)):
                    self._compute(holding, adjacent, clock)
        return rotated

    def _place(self, holding: Holding, placed: list[tuple[Wanted, KVRows]]) -> list[Wanted]:
        """Write all rows in one native call; what had to be rotated."""
        if not self._engine.capabilities.can_rotate and any(w.position != r.first_position for w, r in placed):
            raise EngineUnsupportedError(f"K cannot be turned to another position: {self._engine.capabilities.why_not}")
        self._device.make_room(sum(rows.num_tokens for _, rows in placed), [holding])
        parts = [PlacedRows(rows, want.position) for want, rows in placed]
        if self._engine.last_position(holding.sequence) is None:
            self._engine.write(holding.sequence, parts, self._lay)
        else:
            with self._device.scratch() as scratch:
                self._engine.write(scratch, parts, self._lay)
                self._engine.copy(scratch, holding.sequence, placed[0][0].position, placed[-1][0].stop)
        for want, _ in placed:
            self._enter(holding, want)
        return [want for want, rows in placed if want.position != rows.first_position]

    def _alone_rows(self, wanted: Sequence[Wanted], holding: Holding, clock: _Steps) -> dict[int, KVRows]:
        """By position. Equal parts of a text are one entry, and computed once."""
        computed: dict[EntryId, KVRows] = {}
        if not wanted:
            return {}
        with self._device.scratch() as behind:
            self._lay_alone_prefix(behind, holding)
            for want in wanted:
                if want.entry not in computed:
                    computed[want.entry] = self._compute_alone(want, holding, behind, clock)
        return {want.position: computed[want.entry] for want in wanted}

    def _num_beside(self, holding: Holding, alone: Sequence[Wanted]) -> int:
        """Cells in use, of what is held and of the scratches, while the longest of these is computed."""
        if not alone:
            return 0
        held = self._engine.num_tokens(holding.sequence)
        return held + len(self._alone_prefix) + max(len(want.tokens) for want in alone)

    def alone_prefix(self) -> Wanted:
        """What chunks are computed behind, as an entry at position 0."""
        want = Wanted(EntryId(""), self._alone_prefix, merkle_lineage(()), 0)
        return replace(want, entry=self._key(want).id)

    def _lay_alone_prefix(self, behind: SequenceId, holding: Holding) -> None:
        """What chunks are computed behind; it is an entry like any other, computed once for a model."""
        prefix = self._alone_prefix
        self._device.make_room(len(prefix), [holding])
        want = self.alone_prefix()
        entry = self._store.get(want.entry) if self.has(want.entry) else None
        if entry is not None:
            self._engine.write(behind, [PlacedRows(entry.rows, 0)], self._lay)
            return
        self._device.decode([Run(behind, prefix, 0)], holding)
        if len(prefix) > 1 and self._engine.capabilities.can_move_kv:
            self._put(want, self._engine.read(behind)[1])

    def _compute_alone(self, want: Wanted, holding: Holding, behind: SequenceId, clock: _Steps) -> KVRows:
        """Prefill a chunk behind the prefix in a scratch sequence and store it."""
        engine, start = self._engine, len(self._alone_prefix)
        self._device.make_room(len(want.tokens), [holding])
        with self._device.scratch(start + len(want.tokens)) as scratch:
            engine.copy(behind, scratch, 0, start)
            self._decode(scratch, want.tokens, start, clock, holding, Logits.NONE)
            _, rows = engine.read(scratch, start)
        self._put(want, rows)
        return rows

    def _put(self, want: Wanted, rows: KVRows) -> None:
        """Store what was computed. Tiers that are full or cannot be written cost a prefill later, not the reply."""
        try:
            self._store.put(Entry(self._key(want), rows))
            self._refused.discard(want.entry)
        except StoreError as exc:
            _log.warning("entry %s is on the device only: %s", want.entry[:12], exc)

    def _compute(self, holding: Holding, group: list[Wanted], clock: _Steps) -> None:
        """Prefill adjacent pieces where they stand. What stands behind them is put aside and back, not touched."""
        start, stop = group[0].position, group[-1].stop
        tokens = [token for want in group for token in want.tokens]
        self._device.make_room(len(tokens), [holding])
        last = self._engine.last_position(holding.sequence)
        if last is None or last < start:
            self._decode(holding.sequence, tokens, start, clock, holding, Logits.NONE)
        else:
            with self._device.scratch(stop) as scratch:
                if start:
                    self._engine.copy(holding.sequence, scratch, 0, start)
                self._decode(scratch, tokens, start, clock, holding, Logits.NONE)
                self._engine.copy(scratch, holding.sequence, start, stop)
        self.store_rows(holding, group)

    def _decode(
        self,
        sequence: SequenceId,
        tokens: Sequence[int],
        start: int,
        clock: _Steps,
        owner: Holding,
        want: Logits = Logits.LAST,
    ) -> F32Array:
        """Prefill in steps; a short rest joins the last step, so that no cut is smaller than it need be."""
        logits = None
        cuts = [*range(0, max(1, len(tokens) - PREFILL_STEP_TOKENS // 4), PREFILL_STEP_TOKENS), len(tokens)]
        for first, stop in pairwise(cuts):
            clock.check()
            is_last = stop == len(tokens)
            run = Run(sequence, tokens[first:stop], start + first, want if is_last else Logits.NONE)
            logits = self._device.decode([run], owner, clock.is_cancelled)[0]
            clock.advance(stop - first)
        return logits  # type: ignore[return-value]  # LAST was asked for whenever the caller uses it

    def _enter(self, holding: Holding, want: Wanted) -> None:
        holding.residents[want.position] = Resident(want.entry, want.position, len(want.tokens), want.variant)

    def _is_append(self, holding: Holding, wanted: Sequence[Wanted]) -> bool:
        plan = self.plan(holding, wanted)
        kept = [isinstance(op, Keep) and op.source is None for op in plan.operations]
        return not plan.drops and kept == sorted(kept, reverse=True)

    def _mark_blended(self, holding: Holding, runs: Sequence[Span], prefix: Callable[[int], str]) -> None:
        for position, resident in list(holding.residents.items()):
            touched = [r for r in runs if r.start < resident.stop and r.stop > resident.position]
            if touched:
                holding.residents[position] = blended(resident, touched, prefix(position))


@dataclass
class _Steps:
    """Counts a prefill's progress and carries its cancel switch."""

    total: int
    on_step: StepCallback | None
    is_cancelled: Callable[[], bool]
    done: int = 0

    def check(self) -> None:
        if self.is_cancelled():
            raise CancelledError("cancelled; the context is as it was before")

    def advance(self, num_tokens: int) -> None:
        self.done += num_tokens
        if self.on_step is not None:
            self.on_step(self.done, max(self.total, self.done))


def _num_repeated(wanted: Sequence[Wanted]) -> int:
    return sum(len(want.tokens) for want in wanted) - sum(len(t) for t in {w.entry: w.tokens for w in wanted}.values())


def _adjacent(wanted: Sequence[Wanted]) -> list[list[Wanted]]:
    groups: list[list[Wanted]] = []
    for want in wanted:
        if groups and groups[-1][-1].stop == want.position:
            groups[-1].append(want)
        else:
            groups.append([want])
    return groups


def _tokens_in(wanted: Sequence[Wanted], run: Span) -> list[int]:
    """The token ids at a run's positions; the run lies within adjacent wanted pieces."""
    tokens: list[int] = []
    for want in wanted:
        first, last = max(run.start, want.position), min(run.stop, want.stop)
        if first < last:
            tokens += want.tokens[first - want.position : last - want.position]
    return tokens

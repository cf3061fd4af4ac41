"""The device's books: which native sequence holds which rows, who owns it, and who may compute how much more.

Knows no text, tier or session. Everything on the device is a cache: whatever is dropped here can be placed again from
a tier or computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from kvloom.context.line import Line
from kvloom.context.plan import Resident
from kvloom.engine.base import Engine, PlacedRows, Run
from kvloom.engine.batcher import STEP_ROWS, Batcher
from kvloom.engine.turnstile import Turnstile
from kvloom.errors import CancelledError, EngineError, EngineMemoryError, EngineUnsupportedError
from kvloom.types import EntryId, F32Array, I32Array, KVRows, SequenceId

PADDING_CELLS = 64
"""Cells that a padded prefill may take for a moment (`Capabilities.prefill_quantum` rows)."""


@dataclass
class Holding:
    """What one sequence holds, for one owner. Scratch sequences have no owner and are never evicted.

    `num_promised`: tokens that it may hold in the end, while it is at work; their cells are nobody else's.
    `gives_way`: work in the background, which stops soon where others wait.
    """

    sequence: SequenceId
    owner: str
    residents: dict[int, Resident] = field(default_factory=dict)
    is_busy: bool = False
    used: int = 0
    due: int = 0
    """When its prefills want to be computed, as `Batcher.due` says."""
    num_promised: int = 0
    gives_way: bool = False
    is_waiting: bool = False
    """For what another one computes: it does not end before that."""
    is_doomed: bool = False
    """Something in it was purged while it was at work: nothing of it is stored, and nothing stays."""

    @property
    def num_tokens(self) -> int:
        return sum(r.num_tokens for r in self.residents.values())


class Device:
    """Hands out sequences and cells of one engine. Every call needs `lock`, which is re-entrant.

    `decode` lets others pass while it computes: behind it, only what is at work (`is_busy`) is sure to be as it was.
    """

    def __init__(self, engine: Engine, step_rows: int = STEP_ROWS) -> None:
        self.engine = engine
        self.lock = Turnstile()
        self.batcher = Batcher(engine, self.lock, step_rows)
        self.line = Line(self.lock)
        """Of those that wait for cells."""
        # The last sequence is the engine's own, for padding.
        self._free = [SequenceId(i) for i in reversed(range(engine.capabilities.max_sequences - 1))]
        self._holdings: dict[SequenceId, Holding] = {}
        self._clock = 0

    def holding(self, owner: str) -> Holding:
        """The owner's holding, a fresh empty one if it has none. Evicts the least recently used idle one if needed."""
        self._clock += 1
        for holding in self._holdings.values():
            if owner and holding.owner == owner:
                holding.used = self._clock
                return holding
        holding = Holding(self._take(), owner, is_busy=not owner, used=self._clock)
        self._holdings[holding.sequence] = holding
        return holding

    def adopt(self, owner: str, wanted: Sequence[Resident], owners: str) -> None:
        """Give `owner`, who has no holding yet, an idle one of owners that begin so: all that it holds must be the
        beginning of `wanted`, in order. The longest; none where there is none."""
        idle = [h for h in self._holdings.values() if h.owner.startswith(owners) and not h.is_busy and h.residents]
        fitting = [h for h in idle if _is_beginning(h.residents.values(), wanted)]
        whole = [h for h in fitting if self.engine.num_tokens(h.sequence) == h.num_tokens]
        if whole:
            max(whole, key=lambda h: h.num_tokens).owner = owner

    @contextmanager
    def scratch(self, num_tokens: int = 0) -> Iterator[SequenceId]:
        """An empty sequence for the length of a `with` block; whatever it holds is removed at the end.

        `num_tokens`: what it will hold, for which the caller has made room: nobody else is given these cells.
        """
        holding = self.holding("")
        try:
            holding.num_promised = num_tokens
            yield holding.sequence
        finally:
            self.release(holding)

    def decode(
        self, runs: Sequence[Run], owner: Holding, is_cancelled: Callable[[], bool] = lambda: False
    ) -> list[F32Array | None]:
        """`Engine.decode` for an owner, in steps that are shared with others; what is due first is served first.

        Raises CancelledError behind the step in which `is_cancelled` was true first, computed or not.
        """
        return self.batcher.decode(runs, owner.due, is_cancelled)

    def promise(self, holding: Holding, num_tokens: int, is_cancelled: Callable[[], bool] = lambda: False) -> None:
        """Keep cells for `num_tokens` tokens in all in `holding`, until it is no longer at work.

        Evicts idle owners and lets work in the background give way. Raises EngineMemoryError where others at work
        leave too few, CancelledError.
        """
        holding.num_promised = 0
        while True:
            try:
                self.make_room(max(0, num_tokens - self.engine.num_tokens(holding.sequence)), [holding], num_spare=0)
                break
            except EngineMemoryError:
                # One that waits may wait for what this one is about to compute.
                ending = [h for h in self._holdings.values() if h.is_busy and h.gives_way and not h.is_waiting]
                if holding.gives_way or not ending:
                    raise
                self.wait_for_another(is_cancelled)
                if is_cancelled():
                    raise CancelledError("cancelled while it waited for cells") from None
        holding.num_promised = num_tokens

    def wait_for_another(self, is_cancelled: Callable[[], bool]) -> None:
        """Let others pass until one of those at work has ended, or `is_cancelled`."""
        busy = [holding for holding in self._holdings.values() if holding.is_busy]
        self.lock.wait_for(lambda: is_cancelled() or not all(h.is_busy and self.holds(h) for h in busy))

    def holds(self, holding: Holding) -> bool:
        """False where it was released or evicted meanwhile."""
        return self._holdings.get(holding.sequence) is holding

    def num_free_sequences(self) -> int:
        """Sequences that can be had without evicting anyone."""
        return len(self._free)

    def release(self, holding: Holding) -> None:
        """Give the sequence back; its cells become free unless others share them. Idempotent."""
        if self._holdings.pop(holding.sequence, None) is None:
            return
        self.empty(holding)
        self._free.append(holding.sequence)

    def release_owner(self, owner: str) -> None:
        for holding in [h for h in self._holdings.values() if h.owner == owner]:
            self.release(holding)

    def end(self, owner: str, start: int | None) -> None:
        """The owner's work has ended. Of what failed only what stands before `start` stays; nothing where that is < 0.

        Whatever is raised, nobody has to wait for it any more.
        """
        for holding in [h for h in self._holdings.values() if h.owner == owner]:
            try:
                if holding.is_doomed or (start is not None and start < 0):
                    self.release(holding)
                elif start is not None:
                    self.cut(holding, start)
            finally:
                holding.is_busy = False

    def shared(self, other_than: Holding) -> dict[Resident, SequenceId]:
        """What other owners' sequences hold, each with one sequence that has it."""
        held: dict[Resident, SequenceId] = {}
        for holding in self._holdings.values():
            if holding is not other_than and holding.owner:
                held.update((resident, holding.sequence) for resident in holding.residents.values())
        return held

    def residents(self) -> Iterator[tuple[str, Resident]]:
        """Every (owner, resident) on the device."""
        for holding in self._holdings.values():
            for resident in holding.residents.values():
                yield holding.owner, resident

    def make_room(self, num_tokens: int, keep: Iterable[Holding], num_spare: int = PADDING_CELLS) -> None:
        """Make sure that `num_tokens` more cells are free, evicting idle owners, least recently used first.

        `num_spare` more are freed for padding, where idle owners have them. Raises EngineMemoryError with the numbers
        if that is not enough; nothing that is kept is touched.
        """
        kept = list(keep)
        needed = num_tokens + num_spare
        while self.num_free_cells(kept) < needed:
            idle = [h for h in self._holdings.values() if h.owner and not h.is_busy and h not in kept]
            if not idle and (self.num_free_cells(kept) >= num_tokens or self._num_kept_cells(kept) >= num_tokens):
                return
            if not idle:
                raise EngineMemoryError(
                    f"{num_tokens} more tokens need as many cells, and {self.num_free_cells(kept)} of "
                    f"{self.engine.num_cells} are free; switch chunks off, clear turns, or open with a larger context"
                )
            self.release(min(idle, key=lambda h: h.used))

    def drop_idle(self, owners: str, num_tokens: int) -> None:
        """Release idle holdings of owners that begin so, least recently used first, down to `num_tokens` in all, or
        to nothing while others of them are at work: these would look over all of it."""
        mine = [h for h in self._holdings.values() if h.owner.startswith(owners)]
        idle = [h for h in mine if not h.is_busy]
        num_tokens = num_tokens if len(idle) == len(mine) else 0
        total = sum(self.engine.num_tokens(h.sequence) for h in idle)
        for holding in sorted(idle, key=lambda h: h.used):
            if total <= num_tokens:
                return
            total -= self.engine.num_tokens(holding.sequence)
            self.release(holding)

    def drop_entries(self, entries: set[EntryId]) -> None:
        """Take these entries off the device, from every sequence that is not at work."""
        for holding in self._holdings.values():
            if holding.is_busy:
                continue
            self.drop(holding, [resident for resident in holding.residents.values() if resident.entry in entries])

    def purge_entries(self, entries: Set[EntryId]) -> None:
        """Take these entries off the device, and what stands behind them: it carries their trace. What is at work
        with them does so at its end."""
        for holding in self._holdings.values():
            found = [r.position for r in holding.residents.values() if r.entry in entries]
            if found and holding.is_busy:
                holding.is_doomed = True
            elif found:
                self.cut(holding, min(found))

    def drop(self, holding: Holding, residents: Sequence[Resident]) -> None:
        """Take rows out of a sequence; all of it where the engine cannot take out a part."""
        try:
            for resident in residents:
                self.engine.remove(holding.sequence, resident.position, resident.stop)
                del holding.residents[resident.position]
        except EngineUnsupportedError:
            self.empty(holding)
        except BaseException:
            self.empty(holding)  # interrupted between rows and books, they may not agree
            raise

    def cut(self, holding: Holding, start: int) -> None:
        """Take everything from position `start` on out of a sequence; all of it where the engine cannot."""
        try:
            self.engine.remove(holding.sequence, start)
            for position in [p for p, resident in holding.residents.items() if resident.stop > start]:
                del holding.residents[position]
            if self.engine.last_position(holding.sequence) is None:
                holding.residents.clear()  # a computation that failed may have cost a state that cannot be cut
        except EngineUnsupportedError:
            self.empty(holding)
        except BaseException:
            self.empty(holding)
            raise

    def empty(self, holding: Holding) -> None:
        """Take everything out of a sequence; it stays the owner's."""
        holding.residents.clear()
        self.engine.remove(holding.sequence)

    def resize(self, num_cells: int) -> None:
        """Another number of native cells. Replies under way keep their rows, everybody else's are woven again.

        Raises EngineMemoryError where the cells cannot be had or are too few for the replies under way (the old number
        is there then), EngineUnsupportedError where rows of a reply under way cannot be moved.
        """
        for holding in [h for h in self._holdings.values() if not h.is_busy]:
            self.release(holding)
        held = [(h, self.engine.read(h.sequence)) for h in self._holdings.values() if h.residents or h.is_busy]
        if not num_cells and held:
            raise EngineMemoryError(f"replies under way hold {len(held)} sequences; wait for them, or cancel them")
        # Cells that they share now are each one's own behind a resize. The old number may come back, and must do, too.
        num_held = sum(rows.num_tokens for _, (_, rows) in held)
        num_needed = sum(max(h.num_promised, rows.num_tokens) for h, (_, rows) in held) + PADDING_CELLS
        if held and (num_needed > num_cells or num_held > self.engine.num_cells):
            raise EngineMemoryError(
                f"{num_cells} cells cannot be had now: replies under way hold {num_held} tokens, each one's own, and "
                f"may come to {num_needed}; wait for them, or cancel them"
            )
        try:
            self.engine.resize(num_cells)
        finally:
            self._write_back(held)

    def num_busy(self) -> int:
        """Replies under way."""
        return sum(holding.is_busy for holding in self._holdings.values())

    def _num_kept_cells(self, holdings: Sequence[Holding]) -> int:
        """Of what was promised to them, what they have not taken: it is there, whatever others seem to need.

        A scratch sequence's rows and the promise that they are for are both counted while it stands.
        """
        return sum(max(0, h.num_promised - self.engine.num_tokens(h.sequence)) for h in holdings if h.is_busy)

    def num_free_cells(self, but: Sequence[Holding] = ()) -> int:
        """Cells that nobody holds and that are promised to nobody, `but` these."""
        promised = (
            max(0, h.num_promised - self.engine.num_tokens(h.sequence))
            for h in self._holdings.values()
            if h.is_busy and h.num_promised and h not in but
        )
        return self.engine.num_cells - self.engine.used_cells() - sum(promised)

    def _write_back(self, held: Sequence[tuple[Holding, tuple[I32Array, KVRows]]]) -> None:
        """Every sequence's rows, as they were. One that cannot be had is empty, in the books as well."""
        failed: EngineError | None = None
        for holding, (positions, rows) in held:
            try:
                self.engine.write(holding.sequence, _runs(positions, rows))
            except EngineError as error:
                holding.residents.clear()
                failed = error
        if failed is not None:
            raise failed

    def _take(self) -> SequenceId:
        if not self._free:
            idle = [h for h in self._holdings.values() if h.owner and not h.is_busy]
            if not idle:
                raise EngineMemoryError(
                    f"all {self.engine.capabilities.max_sequences - 1} native sequences are busy; "
                    "wait for a running reply to end, or raise max_sequences"
                )
            self.release(min(idle, key=lambda h: h.used))
        return self._free.pop()


def _is_beginning(residents: Iterable[Resident], wanted: Sequence[Resident]) -> bool:
    held = sorted(residents, key=lambda resident: resident.position)
    return held == list(wanted[: len(held)])


def _runs(positions: I32Array, rows: KVRows) -> list[PlacedRows]:
    """Rows of a sequence with holes as runs without."""
    if not positions.size:
        return []
    starts = [0, *(int(i) + 1 for i in np.flatnonzero(np.diff(positions) != 1)), positions.size]
    return [
        PlacedRows(replace(rows.slice(start, stop), first_position=int(positions[start])), int(positions[start]))
        for start, stop in pairwise(starts)
    ]

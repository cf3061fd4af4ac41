"""Engines that share a processor: one computes at a time, in turns, in bounded steps, with the same result."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from kvloom.engine.base import Logits, Run
from kvloom.engine.batcher import SHARED_STEP_ROWS, Batcher
from kvloom.engine.cores import Cores
from kvloom.engine.fake import FakeEngine
from kvloom.engine.turnstile import Turnstile
from kvloom.types import F32Array, SequenceId

PATIENCE_S = 20.0


class CountedEngine(FakeEngine):
    """Tells whoever shares `busy` when it computes, and how many rows."""

    def __init__(self, name: str, log: list[tuple[str, int]], busy: threading.Semaphore) -> None:
        super().__init__(num_cells=8192)
        self.name, self.log, self.busy = name, log, busy
        self.first = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def decode(self, runs: Sequence[Run]) -> list[F32Array | None]:
        assert self.busy.acquire(blocking=False), "two engines compute at once"
        try:
            self.log.append((self.name, sum(len(run.tokens) for run in runs)))
            self.first.set()
            assert self.go_on.wait(PATIENCE_S)
            return super().decode(runs)
        finally:
            self.busy.release()


def batcher_of(engine: FakeEngine, cores: Cores) -> Batcher:
    batcher = Batcher(engine, Turnstile())
    batcher.cores = cores
    return batcher


def started(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def prompt(length: int) -> list[int]:
    return [i * 7 % 256 for i in range(length)]


def test_a_long_prefill_lets_another_engine_compute_after_one_bounded_step() -> None:
    log: list[tuple[str, int]] = []
    busy, cores = threading.Semaphore(1), Cores()
    long, short = CountedEngine("long", log, busy), CountedEngine("short", log, busy)
    batchers = batcher_of(long, cores), batcher_of(short, cores)
    long.go_on.clear()
    one = started(lambda: batchers[0].decode([Run(SequenceId(0), prompt(2000), 0, Logits.LAST)]))
    assert long.first.wait(PATIENCE_S)
    other = started(lambda: batchers[1].decode([Run(SequenceId(0), prompt(10), 0, Logits.LAST)]))
    waits = threading.Event()
    watcher = started(lambda: _until(lambda: cores.num_waiting == 1, waits))
    assert waits.wait(PATIENCE_S)
    long.go_on.set()
    for thread in (one, other, watcher):
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert [name for name, _ in log][:3] == ["long", "short", "long"]
    rows = [rows for name, rows in log if name == "long"]
    assert sum(rows) == 2000
    assert all(count == SHARED_STEP_ROWS for count in rows[:-1])
    quantum = long.capabilities.prefill_quantum
    assert quantum <= rows[-1] < SHARED_STEP_ROWS + quantum
    for batcher in batchers:
        batcher.close()


def _until(is_true: Callable[[], bool], event: threading.Event) -> None:
    while not is_true():
        time.sleep(0.001)
    event.set()


def test_a_prefill_in_steps_ends_in_the_logits_of_a_whole_one() -> None:
    engine, tokens = FakeEngine(num_cells=8192), prompt(1111)
    whole = engine.decode([Run(SequenceId(0), tokens, 0, Logits.LAST)])[0]
    stepped = FakeEngine(num_cells=8192)
    batcher = batcher_of(stepped, Cores())
    found = batcher.decode([Run(SequenceId(0), tokens, 0, Logits.LAST)])[0]
    batcher.close()
    assert whole is not None
    assert found is not None
    assert found.tobytes() == whole.tobytes()


def test_turns_come_in_the_order_in_which_they_were_asked_for() -> None:
    cores, order = Cores(), []
    threads = []
    with cores:
        for number in range(5):
            waits = threading.Event()

            def take(number: int = number) -> None:
                with cores:
                    order.append(number)

            threads.append(started(take))
            started(lambda number=number, waits=waits: _until(lambda: cores.num_waiting == number + 1, waits))  # type: ignore[misc]
            assert waits.wait(PATIENCE_S)
    for thread in threads:
        thread.join(PATIENCE_S)
    assert order == [0, 1, 2, 3, 4]


def test_an_error_gives_the_turn_back() -> None:
    cores = Cores()
    for _ in range(2):
        try:
            with cores:
                raise RuntimeError("broken")
        except RuntimeError:
            pass
    with cores:
        assert cores.num_waiting == 0

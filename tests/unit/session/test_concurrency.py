"""Many threads over one loom, where they could meet: turns, promises, interrupts, purges, closing, tenants."""

from __future__ import annotations

import gc
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from kvloom.context.device import Device
from kvloom.engine.base import Logits, Run
from kvloom.engine.batcher import Batcher
from kvloom.engine.fake import FakeEngine
from kvloom.engine.turnstile import Turnstile, surely
from kvloom.errors import EngineError, EngineMemoryError, EngineStateError, UnknownChunkError
from kvloom.memory.reading import MemoryKind, MemoryPicture, MemoryReading
from kvloom.session import composer
from kvloom.session.loom import Loom
from kvloom.session.request_prompts import Prepared
from kvloom.session.requests import ChatMessage, ChatPrompt, ChunkPart, Completion, Request, TextPart
from kvloom.types import F32Array, Fidelity, KVRows, SamplingParams, SequenceId
from tests.unit.session.fakes import Endless, RecurrentEngine, engine_of, fake_loom

GREEDY = SamplingParams(temperature=0.0)
SOON_S = 20.0
"""Far more than anything here takes: what is not done by then waits for ever."""


@pytest.fixture
def loom(tmp_path: Path) -> Iterator[Loom]:
    with fake_loom(tmp_path / "home", context=2048) as opened:
        yield opened


def chat(text: str, max_tokens: int = 12, system: str = "Answer.", **values: object) -> Request:
    messages = (ChatMessage("system", (TextPart(system),)), ChatMessage("user", (TextPart(text),)))
    return Request(ChatPrompt(messages), max_tokens, GREEDY, **values)  # type: ignore[arg-type]


def complete(loom: Loom, request: Request | Prepared) -> Completion:
    stream = loom.complete(request)
    for _ in stream:
        pass
    return stream.result


def started(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def until(is_true: Callable[[], bool]) -> None:
    end = time.monotonic() + SOON_S
    while not is_true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.001)


def ended(*threads: threading.Thread) -> bool:
    end = time.monotonic() + SOON_S
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)


# -- turns ----------------------------------------------------------------------------------------------------------


def test_who_waits_for_what_is_true_is_not_kept_out_by_a_worker_that_always_has_work() -> None:
    turnstile, is_ending, done = Turnstile(), threading.Event(), threading.Event()
    num_steps = num_passed = 0

    def worker() -> None:
        nonlocal num_steps
        while not is_ending.is_set():
            with turnstile.last():
                num_steps += 1
                sum(range(20_000))

    def waiter() -> None:
        nonlocal num_passed
        with turnstile:
            before = num_steps
            for _ in range(20):
                turnstile.wait_for(lambda: True)
            num_passed = num_steps - before
        done.set()

    threads = [started(worker), started(waiter)]
    assert done.wait(SOON_S)
    is_ending.set()
    assert ended(*threads)
    assert num_passed <= 40


def test_the_worker_goes_on_however_many_callers_come_and_go() -> None:
    turnstile, is_ending, num_steps = Turnstile(), threading.Event(), 0

    def caller() -> None:
        while not is_ending.is_set():
            with turnstile:
                sum(range(2_000))

    def worker() -> None:
        nonlocal num_steps
        while not is_ending.is_set():
            with turnstile.last():
                num_steps += 1

    threads = [started(caller) for _ in range(6)] + [started(worker)]
    until(lambda: num_steps > 50)
    is_ending.set()
    assert ended(*threads)


def test_what_is_true_for_a_moment_only_is_not_missed() -> None:
    turnstile, is_open, seen = Turnstile(), [False], threading.Event()

    def waiter() -> None:
        with turnstile:
            turnstile.wait_for(lambda: is_open[0])
            seen.set()

    thread = started(waiter)
    until(lambda: bool(turnstile._waiters))
    with turnstile:
        is_open[0] = True
    with turnstile:
        is_open[0] = False
    assert seen.wait(SOON_S)
    assert ended(thread)


def interrupt(times: int) -> None:
    """Ctrl-C so often; the main thread is the one that tests run in."""
    for _ in range(times):
        time.sleep(0.1)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    time.sleep(0.1)


def test_no_interrupt_takes_the_turn_from_another() -> None:
    turnstile, is_inside = Turnstile(), threading.Event()
    was_inside: list[bool] = []

    def other() -> None:
        with turnstile:
            is_inside.set()
            interrupt(3)
            is_inside.clear()

    with turnstile:
        thread = started(other)
        try:
            turnstile.wait_for(lambda: False)
        except KeyboardInterrupt:
            was_inside.append(is_inside.is_set())
            assert turnstile.is_mine, "whoever handles the interrupt has the turn"
    assert ended(thread)
    assert was_inside == [False]


def test_no_interrupt_leaves_a_prefill_behind_that_nobody_waits_for() -> None:
    class Slow(FakeEngine):
        def decode(self, runs: Sequence[Run]) -> list[F32Array | None]:
            interrupt(3)
            return super().decode(runs)

    engine, turnstile, was_mine = Slow(), Turnstile(), False
    batcher = Batcher(engine, turnstile)
    with turnstile:
        try:
            batcher.decode([Run(SequenceId(1), list(range(40)), 0)])
        except KeyboardInterrupt:
            was_mine = turnstile.is_mine
    assert was_mine
    assert not batcher._prefills
    batcher.close()


def test_what_must_be_done_is_done_whatever_interrupts_it() -> None:
    tries: list[int] = []

    def action() -> None:
        tries.append(1)
        if len(tries) < 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        surely(action)
    assert len(tries) == 4


# -- the batcher ----------------------------------------------------------------------------------------------------


class Losing(RecurrentEngine, Endless):
    """A native failure costs a state that cannot be cut, as llama.cpp's recurrent memory does."""

    def __init__(self) -> None:
        super().__init__()
        self.fails: Callable[[Sequence[Run]], bool] = lambda _: False
        self.num_failed = 0

    def decode(self, runs: Sequence[Run]) -> list[F32Array | None]:
        if self.fails(runs):
            self.num_failed += 1
            for run in runs:
                self.remove(run.sequence)
            raise EngineStateError("the batch could not be computed")
        return super().decode(runs)


def test_a_reply_whose_state_a_failed_batch_has_cost_ends_with_an_error_and_is_not_made_up() -> None:
    engine = Losing()
    batcher = Batcher(engine, Turnstile())
    gate = threading.Event()
    logits = batcher.decode([Run(SequenceId(1), list(range(40)), 0, Logits.LAST)])[0]
    assert logits is not None

    def fails(runs: Sequence[Run]) -> bool:
        gate.wait(SOON_S)
        return len(runs) > 1

    engine.fails = fails
    stream = batcher.stream(SequenceId(1), 40, logits, engine.sampler(GREEDY), 4000)
    reader = started(lambda: batcher.decode([Run(SequenceId(2), list(range(8)), 0)]))
    until(lambda: bool(batcher._prefills))
    gate.set()
    with pytest.raises(EngineError, match="not in its sequence any more"):
        list(stream)
    stream.close()
    assert ended(reader)
    assert engine.num_failed
    batcher.close()


def test_a_session_on_such_an_engine_is_woven_anew_after_a_failure(tmp_path: Path) -> None:
    with fake_loom(tmp_path / "home", Losing()) as loom, fake_loom(tmp_path / "other", Losing()) as other:
        engine = engine_of(loom)
        assert isinstance(engine, Losing)
        for one in (loom, other):
            one.session(name="talk").generate("first", max_tokens=5, temperature=0.0)
        engine.fails = lambda runs: True
        with pytest.raises(EngineError):
            loom.session(name="talk").generate("second", max_tokens=20, temperature=0.0)
        engine.fails = lambda runs: False
        found, wanted = (
            one.session(name="talk").generate("second", max_tokens=20, temperature=0.0) for one in (loom, other)
        )
        assert found.text == wanted.text


def test_a_reply_that_is_collected_in_the_middle_of_a_step_holds_nobody_up(tmp_path: Path) -> None:
    collect = threading.Event()

    class Collecting(Endless):
        def decode(self, runs: Sequence[Run]) -> list[F32Array | None]:
            if collect.is_set() and threading.current_thread().name == "kvloom-batcher":
                gc.collect()
                collect.clear()
            return super().decode(runs)

    with fake_loom(tmp_path / "home", Collecting(num_cells=4096)) as loom:
        ring: list[object] = [loom.complete(chat("one", 1500))]
        next(ring[0])  # type: ignore[call-overload]
        ring.append(ring)
        gc.disable()
        try:
            del ring
            collect.set()
            assert ended(started(lambda: complete(loom, chat("two", 20))))
        finally:
            gc.enable()


# -- a loom ---------------------------------------------------------------------------------------------------------


def test_sessions_are_opened_while_others_answer(loom: Loom) -> None:
    errors: list[Exception] = []

    def answer(number: int) -> None:
        try:
            for _ in range(50):  # turns that the window has room for
                with loom.session(name=f"talk {number}") as session:
                    session.generate("what?", max_tokens=3, temperature=0.0)
        except Exception as error:  # noqa: BLE001 - the edge of a thread
            errors.append(error)

    threads = [started(lambda number=number: answer(number)) for number in range(3)]  # type: ignore[misc]
    assert ended(*threads), "two of them wait for each other"
    assert not errors


def test_closing_ends_those_that_wait_for_cells(tmp_path: Path) -> None:
    loom = fake_loom(tmp_path / "home", Endless(num_cells=2048), context=1800)
    ends: list[BaseException | str] = []

    def ask(text: str) -> None:
        try:
            ends.append(complete(loom, chat(text, 1500)).finish_reason)
        except BaseException as error:  # noqa: BLE001 - the edge of a thread
            ends.append(error)

    threads = [started(lambda text=text: ask(text)) for text in ("one", "two", "three")]  # type: ignore[misc]
    until(lambda: bool(loom.device.batcher.num_streams))
    until(lambda: bool(loom.device.lock._waiters))
    loom.close()
    assert ended(*threads)
    assert len(ends) == 3


def test_a_request_that_waits_for_a_reply_that_nobody_reads_can_be_closed(tmp_path: Path) -> None:
    with fake_loom(tmp_path / "home", Endless(num_cells=2048), context=1800) as loom:
        session = loom.session()
        unread = session.stream("what?", max_tokens=1000, temperature=0.0)
        next(unread)
        until(lambda: not loom.device.batcher.num_streams)
        waiting = loom.complete(chat("two", 1500))
        thread = started(lambda: list(waiting))
        until(lambda: bool(loom.device.lock._waiters))
        waiting.close()
        assert ended(thread)
        assert waiting.result.finish_reason == "cancelled"
        unread.close()


def test_requests_go_on_after_the_cells_were_given_back(loom: Loom) -> None:
    wanted = complete(loom, chat("what?")).text
    loom.pool.release()
    assert loom.pool.is_released
    assert complete(loom, chat("what?")).text == wanted


def test_a_window_is_changed_while_the_guard_acts_twice(tmp_path: Path) -> None:
    """What reads the memory with the device's lock must not wait for work that waits for the device."""

    def picture(share: float) -> MemoryPicture:
        used = int(1_000_000 * share)
        return MemoryPicture((MemoryReading("RAM", MemoryKind.RAM, 1_000_000, used, 1_000_000 - used, "test"),))

    with fake_loom(tmp_path / "home", context=2048) as loom:
        with loom.device.lock:
            loom.guard.on_picture(picture(0.96))
            until(lambda: loom.device.lock._num_waiting > 0)  # the guard's work is to give back the cells
            loom.guard.on_picture(picture(0.5))
            thread = started(lambda: loom.guard.on_picture(picture(0.85)))
            assert ended(thread), "it waits for the guard's work, and that for this thread"
        loom.guard.wait(SOON_S)


def test_cells_are_not_taken_from_a_reply_that_they_are_promised_to(tmp_path: Path) -> None:
    with fake_loom(tmp_path / "home", Endless(num_cells=3072), context=2048) as loom:
        stream = loom.complete(chat("one", 1500))
        next(stream)
        with pytest.raises(EngineMemoryError, match="may come to"), loom.device.lock:
            loom.device.resize(1024)
        assert sum(1 for _ in stream) > 0
        assert stream.result.usage.completion_tokens == 1500


def test_what_was_promised_is_there_while_another_computes_beside_its_own_promise() -> None:
    device = Device(FakeEngine(num_cells=200, max_sequences=8))
    with device.lock:
        one, other = device.holding("one"), device.holding("other")
        one.is_busy = other.is_busy = True
        device.promise(one, 100)
        device.promise(other, 100)
        device.decode([Run(one.sequence, list(range(95)), 0)], one)
        device.make_room(60, [other])
        with device.scratch(60) as scratch:
            device.decode([Run(scratch, list(range(60)), 0)], other)
            device.make_room(5, [one])
            device.decode([Run(one.sequence, list(range(5)), 95)], one)
            with pytest.raises(EngineMemoryError):
                device.make_room(1, [one])
        device.make_room(100, [other])
    device.batcher.close()


def test_a_large_request_is_not_overtaken_for_ever_by_small_ones(tmp_path: Path) -> None:
    with fake_loom(tmp_path / "home", Endless(num_cells=2048), context=2000) as loom:
        is_ending, num_small = threading.Event(), 0

        def small(number: int) -> None:
            nonlocal num_small
            while not is_ending.is_set():
                complete(loom, chat(f"small {number}", 200))
                num_small += 1

        threads = [started(lambda number=number: small(number)) for number in range(4)]  # type: ignore[misc]
        until(lambda: num_small > 4)
        before, after = num_small, 0

        def ask_large() -> None:
            nonlocal after
            complete(loom, chat("large", 1700))
            after = num_small

        assert ended(started(ask_large))
        assert 0 < after - before < 60
        is_ending.set()
        assert ended(*threads)


def test_work_in_the_background_that_waits_for_a_reply_is_not_waited_for(tmp_path: Path) -> None:
    """One promises cells to itself and waits for another to give way, which waits for what the first one computes."""
    with fake_loom(tmp_path / "home", context=1536) as loom:
        device, weaver = loom.device, loom.composer.weaver
        with device.lock:
            first, second = device.holding("first"), device.holding("second")
            second.gives_way = second.is_busy = second.is_waiting = True
            with pytest.raises(EngineMemoryError):
                device.promise(first, device.engine.num_cells + 1)
            second.is_busy = False
        assert not weaver._computing


def test_what_is_remembered_of_requests_has_an_end(loom: Loom, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composer, "MAX_KNOWN_IDS", 50)
    for number in range(30):
        complete(loom, chat(f"question {number}", 2))
    assert len(loom.composer._ids) <= 50
    assert len(list(loom.device.residents())) > 0


def test_a_purge_goes_through_while_requests_come_and_go(loom: Loom) -> None:
    is_ending, errors = threading.Event(), []

    def ask(number: int) -> None:
        try:
            for count in range(10_000):
                if is_ending.is_set():
                    return
                complete(loom, chat(f"{number} {count}", 1))
        except Exception as error:  # noqa: BLE001 - the edge of a thread
            errors.append(error)

    threads = [started(lambda number=number: ask(number)) for number in range(3)]  # type: ignore[misc]
    for number in range(20):
        loom.purge(loom.load_text(f"a text of its own, {number}", name=f"note {number}").id)
    is_ending.set()
    assert ended(*threads)
    assert not errors


@pytest.mark.parametrize("fidelity", [Fidelity.EXACT, Fidelity.SPLICE])
def test_nothing_of_a_purged_chunk_stays_with_a_request_that_was_under_way(tmp_path: Path, fidelity: Fidelity) -> None:
    with fake_loom(tmp_path / "home", Endless(num_cells=3072), context=2048) as loom:
        chunk = loom.load_text("a text that goes\n" * 12, name="note.txt")
        parts = (TextPart("read"), ChunkPart(chunk.id), TextPart("what?"))
        prepared = loom.prepare(Request(ChatPrompt((ChatMessage("user", parts),)), 60, GREEDY, fidelity=fidelity))
        complete(loom, chat("beside"))
        before = set(loom.store.ids())
        stream = loom.complete(prepared)
        next(stream)
        entries = {entry for _, entry in loom.shelf.entries(chunk.id)}
        loom.purge(chunk.id)
        while_away = set(loom.store.ids())
        for _ in stream:
            pass
        assert stream.result.usage.completion_tokens == 60
        assert set(loom.store.ids()) == while_away >= before
        assert not entries & while_away
        assert not [one for one in loom.device.residents() if one[1].entry in entries]
        with pytest.raises(UnknownChunkError):
            complete(loom, prepared)
        assert not entries & set(loom.store.ids())


# -- tenants --------------------------------------------------------------------------------------------------------


def test_no_tenant_makes_the_window_of_another_smaller(tmp_path: Path) -> None:
    with fake_loom(tmp_path / "home", context=4096) as loom:
        one, other = loom.tenant("one"), loom.tenant("other")
        session = other.session()
        one.session().resize(512)
        assert other.pool.window == 4096
        assert session.window == 4096


def test_what_every_tenants_chunks_are_computed_behind_is_not_collected(loom: Loom) -> None:
    one = loom.tenant("one")
    prefix = one.composer.weaver.alone_prefix()
    with loom.device.lock:
        one.composer.weaver._put(prefix, _rows_of(loom, prefix.tokens))
    loom.gc()
    assert loom.store.contains(prefix.entry)


def _rows_of(loom: Loom, tokens: Sequence[int]) -> KVRows:
    engine = engine_of(loom)
    sequence = SequenceId(5)
    engine.decode([Run(sequence, tokens, 0)])
    _, rows = engine.read(sequence)
    engine.remove(sequence)
    return rows

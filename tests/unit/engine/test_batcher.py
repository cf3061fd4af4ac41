"""Continuous batching over the fake engine: everybody gets what he would get alone, and nobody waits for a long one."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from kvloom.engine.base import Logits, Run
from kvloom.engine.batcher import PATIENCE, Batcher
from kvloom.engine.fake import END_OF_TEXT, IM_END, FakeEngine
from kvloom.engine.turnstile import Turnstile
from kvloom.errors import CancelledError, EngineError, EngineStateError
from kvloom.types import F32Array, SamplingParams, SequenceId

TEST_STEP_ROWS = 128
OTHER = SequenceId(3)
GREEDY = SamplingParams(temperature=0.0)
ENDLESS = SamplingParams(temperature=0.0, logit_bias=((END_OF_TEXT, -100.0), (IM_END, -100.0)))


class WatchedEngine(FakeEngine):
    """Notes the rows of every batch; refuses batches with `poison` in them."""

    def __init__(self) -> None:
        super().__init__(num_cells=16384)
        self.batches: list[list[int]] = []
        self.sequences: list[SequenceId] = []
        self.poison: SequenceId | None = None
        self.is_computing = False
        self.gate = threading.Event()
        self.gate.set()

    def decode(self, runs: Sequence[Run]) -> list[F32Array | None]:
        self.is_computing = True
        self.gate.wait()
        if self.poison in [run.sequence for run in runs]:
            raise EngineStateError("poisoned")
        self.batches.append([len(run.tokens) for run in runs])
        self.sequences += [run.sequence for run in runs]
        return super().decode(runs)


@pytest.fixture
def engine() -> WatchedEngine:
    return WatchedEngine()


@pytest.fixture
def batcher(engine: WatchedEngine) -> Iterator[Batcher]:
    batcher = Batcher(engine, Turnstile(), step_rows=TEST_STEP_ROWS)
    yield batcher
    batcher.close()


def prompt(seed: int, length: int) -> list[int]:
    return [(seed * 31 + i * 7) % 256 for i in range(length)]


def alone(tokens: Sequence[int], num_tokens: int) -> list[int]:
    """What a greedy reply to `tokens` is on an engine of its own."""
    engine, sequence = FakeEngine(num_cells=16384), SequenceId(0)
    reply: list[int] = []
    logits = engine.decode([Run(sequence, tokens, 0, Logits.LAST)])[0]
    sampler = engine.sampler(GREEDY)
    while logits is not None and len(reply) < num_tokens:
        reply.append(sampler.sample(logits))
        if engine.vocabulary.is_end(reply[-1]):
            break
        logits = engine.decode([Run(sequence, reply[-1:], len(tokens) + len(reply) - 1, Logits.LAST)])[0]
    return reply


def replied(batcher: Batcher, engine: FakeEngine, number: int, tokens: Sequence[int], num_tokens: int) -> list[int]:
    sequence = SequenceId(number)
    logits = batcher.decode([Run(sequence, tokens, 0, Logits.LAST)], due=number)[0]
    assert logits is not None
    stream = batcher.stream(sequence, len(tokens), logits, engine.sampler(GREEDY), num_tokens)
    found = [chosen.token for chosen in stream]
    stream.close()
    return found


def read_beside_a_reply(batcher: Batcher, engine: WatchedEngine, length: int) -> None:
    """A prompt of that length comes while a reply of 40 tokens is under way, which is what it would be alone."""
    text = prompt(1, 20)
    logits = batcher.decode([Run(SequenceId(1), text, 0, Logits.LAST)])[0]
    assert logits is not None
    engine.gate.clear()
    stream = batcher.stream(SequenceId(1), len(text), logits, engine.sampler(GREEDY), 40)
    reader = threading.Thread(target=batcher.decode, args=([Run(SequenceId(2), prompt(2, length), 0)],))
    reader.start()
    while len(batcher._prefills) < 1:
        threading.Event().wait(0.001)
    engine.gate.set()
    tokens = [chosen.token for chosen in stream]
    stream.close()
    reader.join()
    assert tokens == alone(text, 40)


def test_replies_of_many_threads_are_those_of_engines_of_their_own(batcher: Batcher, engine: WatchedEngine) -> None:
    found: dict[int, list[int]] = {}
    lengths = [40 + 211 * number for number in range(8)]

    def ask(number: int) -> None:
        found[number] = replied(batcher, engine, number, prompt(number, lengths[number]), 30)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: alone(prompt(number, lengths[number]), 30) for number in range(8)}


def test_a_reply_flows_on_while_a_long_prompt_is_read(batcher: Batcher, engine: WatchedEngine) -> None:
    read_beside_a_reply(batcher, engine, 3000)
    quantum = engine.capabilities.prefill_quantum
    rows = [sum(batch) for batch in engine.batches[1:]]
    prefills = [place for place, count in enumerate(rows) if count > 1]
    assert len(prefills) > 15, "the prompt and the reply take turns"
    assert all(rows[place + 1] == 1 for place in prefills), "a reply never waits for more than a step"
    assert all(quantum <= rows[place] < TEST_STEP_ROWS + quantum for place in prefills)


def test_a_short_prompt_goes_into_the_batch_of_the_replies(batcher: Batcher, engine: WatchedEngine) -> None:
    read_beside_a_reply(batcher, engine, 12)
    assert [1, 12] in engine.batches


def test_a_prefill_alone_is_cut_as_it_was_asked_for(batcher: Batcher, engine: WatchedEngine) -> None:
    batcher.decode([Run(SequenceId(0), prompt(0, 700), 0)])
    assert engine.batches == [[700]]


def test_all_logits_of_a_prefill_in_pieces_are_those_of_one_in_a_piece(batcher: Batcher, engine: WatchedEngine) -> None:
    text = prompt(1, 20)
    logits = batcher.decode([Run(SequenceId(1), text, 0, Logits.LAST)])[0]
    assert logits is not None
    stream = batcher.stream(SequenceId(1), len(text), logits, engine.sampler(GREEDY), 500)
    wanted = FakeEngine().decode([Run(SequenceId(0), prompt(3, 400), 0, Logits.ALL)])[0]
    found = batcher.decode([Run(SequenceId(2), prompt(3, 400), 0, Logits.ALL)])[0]
    stream.close()
    assert wanted is not None and found is not None
    np.testing.assert_array_equal(found, wanted)


def test_whose_run_is_refused_gets_the_error_and_the_others_go_on(batcher: Batcher, engine: WatchedEngine) -> None:
    text = prompt(1, 20)
    logits = batcher.decode([Run(SequenceId(1), text, 0, Logits.LAST)])[0]
    assert logits is not None
    engine.poison = SequenceId(2)
    stream = batcher.stream(SequenceId(1), len(text), logits, engine.sampler(GREEDY), 40)
    with pytest.raises(EngineStateError, match="poisoned"):
        batcher.decode([Run(SequenceId(2), prompt(2, 900), 0)])
    tokens = [chosen.token for chosen in stream]
    stream.close()
    assert tokens == alone(text, 40)
    assert engine.last_position(SequenceId(2)) is None, "nothing of what failed stays"


def test_a_reply_that_fails_says_so_to_its_reader_only(batcher: Batcher, engine: WatchedEngine) -> None:
    streams = {}
    engine.gate.clear()
    for number in (1, 2):
        engine.gate.set()
        logits = batcher.decode([Run(SequenceId(number), prompt(number, 20), 0, Logits.LAST)])[0]
        engine.gate.clear()
        assert logits is not None
        streams[number] = batcher.stream(SequenceId(number), 20, logits, engine.sampler(GREEDY), 40)
    engine.poison = SequenceId(2)
    engine.gate.set()
    with pytest.raises(EngineError):
        list(streams[2])
    for stream in streams.values():
        stream.close()


def test_a_closed_reply_is_not_decoded_any_further(batcher: Batcher, engine: WatchedEngine) -> None:
    text = prompt(4, 30)
    logits = batcher.decode([Run(SequenceId(1), text, 0, Logits.LAST)])[0]
    assert logits is not None
    stream = batcher.stream(SequenceId(1), len(text), logits, engine.sampler(ENDLESS), 10_000)
    next(stream)
    stream.close()
    held = engine.num_tokens(SequenceId(1))
    batcher.decode([Run(SequenceId(2), prompt(5, 300), 0)])
    assert engine.num_tokens(SequenceId(1)) == held
    engine.remove(SequenceId(1))
    stream.close()


def test_what_is_due_first_is_served_first(batcher: Batcher, engine: WatchedEngine) -> None:
    engine.gate.clear()

    def read(number: int) -> None:
        batcher.decode([Run(SequenceId(number), prompt(number, 50), 0)], due=number)

    threads = []
    for number in (9, 5, 7, 3):
        threads.append(threading.Thread(target=read, args=(number,)))
        threads[-1].start()
        while len(batcher._prefills) < len(threads):
            threading.Event().wait(0.001)
        while not engine.is_computing:
            threading.Event().wait(0.001)
    engine.gate.set()
    for thread in threads:
        thread.join()
    assert engine.sequences[0] == 9, "it was alone when it came"
    assert engine.sequences[1:] == [3, 5, 7]


def test_a_short_prompt_passes_long_ones_and_a_long_one_is_not_passed_for_ever(engine: WatchedEngine) -> None:
    batcher = Batcher(engine, Turnstile())
    long = batcher.due(1000)
    assert batcher.due(50) < long, "shorter, it goes first"
    batcher.decode([Run(SequenceId(1), prompt(1, PATIENCE * 1000), 0)])
    assert batcher.due(50) > long, "what comes now has to wait"
    batcher.close()


def test_whoever_has_the_turn_goes_on_before_the_replies_do(engine: WatchedEngine) -> None:
    """What comes in several calls is not interrupted by a step between each two of them."""
    turnstile = Turnstile()
    batcher = Batcher(engine, turnstile, step_rows=1000)
    logits = batcher.decode([Run(SequenceId(1), prompt(1, 20), 0, Logits.LAST)])[0]
    assert logits is not None
    stream = batcher.stream(SequenceId(1), 20, logits, engine.sampler(ENDLESS), 10_000)
    with turnstile:
        for start in range(0, 900, 300):
            batcher.decode([Run(SequenceId(2), prompt(2, 900)[start : start + 300], start)])
    stream.close()
    batcher.close()
    first = engine.batches.index([300])
    assert engine.batches[first : first + 3] == [[300]] * 3


def test_closing_ends_whoever_waits(engine: WatchedEngine) -> None:
    batcher = Batcher(engine, Turnstile())
    logits = batcher.decode([Run(SequenceId(1), prompt(1, 20), 0, Logits.LAST)])[0]
    assert logits is not None
    stream = batcher.stream(SequenceId(1), 20, logits, engine.sampler(ENDLESS), 10_000)
    batcher.close()
    with pytest.raises(EngineStateError, match="closed"):
        list(stream)
    with pytest.raises(EngineStateError, match="closed"):
        batcher.decode([Run(SequenceId(2), [1], 0)])


def test_a_turn_is_reentrant_and_wholly_given_back_while_waiting() -> None:
    turnstile, seen = Turnstile(), []

    def other() -> None:
        with turnstile:
            seen.append("other")

    with turnstile, turnstile:
        thread = threading.Thread(target=other)
        thread.start()
        assert not seen
        with turnstile.released():
            thread.join(10)
        assert seen == ["other"] and turnstile.is_mine
    assert not turnstile.is_mine


def test_the_worker_comes_behind_whoever_waits() -> None:
    turnstile, order, waiting = Turnstile(), [], threading.Event()

    def caller() -> None:
        waiting.set()
        with turnstile:
            order.append("caller")

    def worker() -> None:
        with turnstile.last():
            order.append("worker")

    with turnstile:
        threads = [threading.Thread(target=worker), threading.Thread(target=caller)]
        threads[0].start()
        threads[1].start()
        waiting.wait()
        while not turnstile._num_waiting:
            threading.Event().wait(0.001)
    for thread in threads:
        thread.join(10)
    assert order == ["caller", "worker"]


def test_waiting_for_something_lets_those_pass_who_bring_it() -> None:
    turnstile, done = Turnstile(), []

    def bring() -> None:
        with turnstile:
            done.append(1)

    with turnstile:
        thread = threading.Thread(target=bring)
        thread.start()
        turnstile.wait_for(lambda: bool(done))
        assert turnstile.is_mine
    thread.join(10)


def test_a_prefill_that_is_cancelled_while_it_waits_is_never_computed(engine: WatchedEngine) -> None:
    turnstile = Turnstile()
    batcher = Batcher(engine, turnstile)
    engine.gate.clear()
    outcome: list[BaseException] = []

    def ask() -> None:
        """Comes while the first is computed, waits while the other one is, and is given up by then."""
        with turnstile, pytest.raises(CancelledError) as caught:
            batcher.decode([Run(SequenceId(2), prompt(2, 200), 0)], 10**9, lambda: OTHER in engine.sequences)
        outcome.append(caught.value)

    threads = [threading.Thread(target=batcher.decode, args=([Run(SequenceId(1), prompt(1, 300), 0)],))]
    threads[0].start()
    while not engine.is_computing:
        threading.Event().wait(0.001)
    threads += [threading.Thread(target=batcher.decode, args=([Run(OTHER, prompt(3, 300), 0)],))]
    threads += [threading.Thread(target=ask)]
    for thread in threads[1:]:
        thread.start()
    while len(batcher._prefills) < 2 or not turnstile._num_waiting:
        threading.Event().wait(0.001)
    engine.gate.set()
    for thread in threads:
        thread.join()
    assert len(outcome) == 1
    assert not batcher._prefills
    assert engine.sequences == [SequenceId(1), OTHER]
    batcher.close()


def test_a_prefill_that_is_cancelled_in_the_middle_leaves_nothing(engine: WatchedEngine) -> None:
    turnstile = Turnstile()
    batcher = Batcher(engine, turnstile, step_rows=TEST_STEP_ROWS)
    logits = batcher.decode([Run(SequenceId(1), prompt(1, 20), 0, Logits.LAST)])[0]
    assert logits is not None
    stream = batcher.stream(SequenceId(1), 20, logits, engine.sampler(ENDLESS), 10_000)
    with turnstile, pytest.raises(CancelledError):
        batcher.decode([Run(SequenceId(2), prompt(2, 900), 0)], 0, lambda: [TEST_STEP_ROWS] in engine.batches)
    assert engine.last_position(SequenceId(2)) is None
    stream.close()
    batcher.close()


def test_an_errand_runs_in_the_thread_that_computes_between_two_steps(batcher: Batcher, engine: WatchedEngine) -> None:
    tokens = prompt(0, 12)
    engine.decode([Run(SequenceId(0), tokens[:-1], 0)])
    logits = engine.decode([Run(SequenceId(0), tokens[-1:], 11, Logits.LAST)])[0]
    assert logits is not None
    reply = batcher.stream(SequenceId(0), 12, logits, engine.sampler(GREEDY), 40)
    first = next(reply)
    worker = batcher.run(threading.current_thread)
    assert worker.name == "kvloom-batcher"
    assert [first.token, *(one.token for one in reply)] == alone(tokens, 40)
    with pytest.raises(ZeroDivisionError):
        batcher.run(lambda: 1 // 0)
    assert batcher.run(threading.current_thread) is worker
    batcher.close()
    with pytest.raises(EngineStateError, match="closed"):
        batcher.run(threading.current_thread)

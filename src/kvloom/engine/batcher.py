"""Continuous batching: many threads' prefills and replies in the same native batches. Knows ids and positions only.

One worker computes: a step of all replies under way, then some rows of the prefills that wait, and so on. So replies
flow on while long prompts are read; what a reply samples is decoded in the next step, whoever reads it.
"""

from __future__ import annotations

import atexit
import logging
import threading
import weakref
from bisect import insort
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TypeVar, cast

from kvloom.engine.base import Engine, Logits, Run, Sampler
from kvloom.engine.batch_work import Errand, Look, Part, Prefill, TokenStream
from kvloom.engine.cores import Cores
from kvloom.engine.turnstile import Turnstile, surely
from kvloom.errors import CancelledError, EngineError, EngineStateError, EngineUnsupportedError
from kvloom.types import F32Array, SequenceId

_log = logging.getLogger(__name__)

T = TypeVar("T")

STEP_ROWS = 1024
"""Rows of prefills between two steps of the replies: what a reply waits for, at most and a short rest more.

Fewer make replies flow more evenly while prompts are read, and everything take longer: each step of few replies is
computed alone. llama.cpp's server computes up to `n_batch` (2,048) rows between two tokens.
"""
MIXED_ROWS = 16
"""Rows of prefills that go into one batch with the next tokens of replies. More make it a batch of the fast 64-row
kernels, which then read the cells of all sequences: replies are cheaper in a batch of their own. (8 replies over 900
tokens each: 0.12 s alone.)"""
SHARED_STEP_ROWS = 256
"""Rows of one native call where other engines wait for the same cores: what these wait for."""
PATIENCE = 4
"""A prefill is passed by shorter ones that come later, until this many times its own rows were computed since it came
(shortest first, and nobody starves)."""


def _small(waiting: Sequence[Prefill]) -> list[Part]:
    """What is so short that it may go with the replies: of those that are first."""
    parts: list[Part] = []
    room = MIXED_ROWS
    for prefill in waiting:
        room -= prefill.num_left
        if room < 0:
            break
        parts.append(Part(prefill, prefill.take(prefill.num_left)))
    return parts


def _steps_of(streams: Sequence[TokenStream]) -> list[Run]:
    return [Run(stream.sequence, (stream.token,), stream.position, Logits.LAST) for stream in streams]


def _close(batcher: weakref.ref[Batcher]) -> None:
    found = batcher()
    if found is not None:
        found.close()


class Batcher:
    """Computes for all threads of one engine. Its worker takes a turn at `turnstile` for every step.

    Whoever calls the engine itself has the turn; whoever calls `decode` lets others pass while it waits.
    """

    def __init__(self, engine: Engine, turnstile: Turnstile, step_rows: int = STEP_ROWS) -> None:
        """`step_rows`: as STEP_ROWS says."""
        self._engine = engine
        self._turnstile = turnstile
        self._quantum = engine.capabilities.prefill_quantum
        self._step_rows = max(self._quantum, step_rows)
        self._num_between = 0
        """Rows of prefills since the last step of the replies."""
        self._num_prefilled = 0
        """Rows of prefills so far: the clock that `due` goes by."""
        # Re-entrant: a reply that is collected as garbage ends itself in whatever thread and place that happens.
        self._changed = threading.Condition(threading.RLock())
        self._prefills: list[Prefill] = []
        self._streams: list[TokenStream] = []
        self._errands: list[Errand] = []
        self._is_closed = False
        self._worker: threading.Thread | None = None
        self.cores: Cores | None = None
        """Shared with other engines: no two of them compute at once, and no step is longer than the others can wait."""
        self._at_exit = partial(_close, weakref.ref(self))

    @property
    def num_streams(self) -> int:
        """Replies under way."""
        return len(self._streams)

    def due(self, num_rows: int) -> int:
        """For `decode`: when a prefill of so many rows that comes now wants to be computed."""
        return self._num_prefilled + PATIENCE * num_rows

    def decode(
        self, runs: Sequence[Run], due: int = 0, is_cancelled: Callable[[], bool] = lambda: False
    ) -> list[F32Array | None]:
        """`Engine.decode`, in steps shared with others; what is due first goes first.

        Whoever has the turn has it again as soon as its rows are there, before the next step. Raises what that raises,
        and CancelledError behind the step in which `is_cancelled` was true first (the caller needs the turn for that);
        nothing of the call stays then.
        """
        prefill = Prefill(runs, [None] * len(runs), due)
        try:
            with self._changed:
                self._check_open()
                insort(self._prefills, prefill, key=lambda waiting: waiting.due)
                self._changed.notify_all()
            if self._turnstile.is_mine:
                self._turnstile.wait_for(lambda: prefill.done.is_set() or is_cancelled())
                if not prefill.done.is_set():
                    raise CancelledError("cancelled; nothing of what was asked for stays")
            else:
                prefill.done.wait()
        except BaseException:  # cancelled or interrupted: the rows must not come behind the caller's back
            surely(lambda: self._withdraw(prefill))
            raise
        if prefill.error is not None:
            raise prefill.error
        return prefill.results

    def stream(
        self,
        sequence: SequenceId,
        position: int,
        logits: F32Array,
        sampler: Sampler,
        max_tokens: int,
        look: Look | None = None,
    ) -> TokenStream:
        """Sample from `logits`, decode at `position`, and so on: at most `max_tokens`, or to an end token.

        The caller has made sure that there are cells. Errors of the engine come out of the stream.
        """
        stream = TokenStream(sequence, position, sampler, max_tokens, look)
        stream.on_close = self._end_stream
        goes_on = stream.sample(logits, self._engine.vocabulary.is_end)
        with self._changed:
            self._check_open()
            if goes_on:
                self._streams.append(stream)
                self._changed.notify_all()
            else:
                stream.end()
        return stream

    def run(self, call: Callable[[], T]) -> T:
        """What `call` returns or raises, run in the worker's thread between two steps.

        For what computes beside the engine: every other thread that computes costs all of them (engine/llamacpp/team).
        """
        errand = Errand(call)
        with self._changed:
            self._check_open()
            self._errands.append(errand)
            self._changed.notify_all()
        with self._turnstile.released():
            return cast("T", errand.result())

    def close(self) -> None:
        """End the worker behind its step; what waits gets an EngineStateError. Idempotent."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._worker is not None and self._worker is not threading.current_thread():
            with self._turnstile.released():
                self._worker.join()
        atexit.unregister(self._at_exit)

    # -- inside -------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineStateError("the engine was closed")
        if self._worker is None:
            self._worker = threading.Thread(target=self._work, name="kvloom-batcher", daemon=True)
            self._worker.start()
            # A program that just ends stops its daemon threads first, and then collects replies that wait for them.
            atexit.register(self._at_exit)

    def _end_stream(self, stream: TokenStream) -> None:
        stream.is_cancelled = True
        if threading.current_thread() is self._worker:
            return  # the reply was collected as garbage in the middle of a step: the next one is without it
        # Behind it the sampler's native memory is freed: no interrupt may come before the worker has let go.
        surely(lambda: self._let_go(stream))

    def _let_go(self, stream: TokenStream) -> None:
        with self._turnstile.released(), self._changed:
            self._changed.notify_all()
            self._changed.wait_for(lambda: stream not in self._streams)

    def _withdraw(self, prefill: Prefill) -> None:
        """Take back a prefill that nobody waits for any more."""
        with self._turnstile:  # so no step is under way
            with self._changed:
                if prefill not in self._prefills:
                    return
            self._take_back(prefill)
            with self._changed:
                self._prefills.remove(prefill)

    def _take_back(self, prefill: Prefill) -> None:
        for run in prefill.runs[: prefill.run + 1]:
            last = self._engine.last_position(run.sequence)
            if last is not None and last >= run.start:
                try:
                    self._engine.remove(run.sequence, run.start)
                except EngineUnsupportedError:
                    # A state that cannot be cut: the sequence is lost, and says so by being empty.
                    self._engine.remove(run.sequence)

    def _work(self) -> None:
        error = EngineStateError("the engine was closed")
        try:
            while self._waits_for_work():
                with self._turnstile.last(), self.cores or nullcontext():
                    self._step()
        except BaseException as fault:  # noqa: BLE001 - the edge of a thread: nobody may wait for it for ever
            _log.exception("the batcher's worker failed")
            error = EngineStateError(f"the batcher's worker failed: {fault!r}")
        self._fail_all(error)

    def _waits_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._prefills or self._streams or self._errands or self._is_closed)
            return not self._is_closed

    def _step(self) -> None:
        """One native batch, or several where the first one is refused."""
        with self._changed:
            self._drop_streams([stream for stream in self._streams if stream.is_cancelled])
            streams, waiting = list(self._streams), list(self._prefills)
            errands, self._errands = self._errands, []
        for errand in errands:
            errand.run()
        streams = self._whole_streams(streams)
        if not streams:
            self._num_between = 0
            if waiting:
                # Alone, a prefill is computed as it was asked for: the same cuts give the same bits.
                self._compute(self._next_part(waiting[0], waiting[0].num_left))
            return
        small, left = _small(waiting), self._step_rows - self._num_between
        if small or not waiting or left < self._quantum:
            self._advance(streams, small)
            return
        part = self._next_part(waiting[0], left)
        self._num_between += part.num_rows
        self._compute(part)

    def _next_part(self, prefill: Prefill, num_rows: int) -> Part:
        """The next rows. No small rest is left over: it would be computed on the engine's slow path, to other bits."""
        if self.cores is not None:
            num_rows = min(num_rows, SHARED_STEP_ROWS)
        left = prefill.num_left
        return Part(prefill, prefill.take(left if left < num_rows + self._quantum else num_rows))

    def _advance(self, streams: Sequence[TokenStream], parts: Sequence[Part]) -> None:
        """A step of the replies, and of short prefills with them."""
        self._num_between = 0
        steps = _steps_of(streams)
        before = {run.sequence: self._last(run.sequence) for part in parts for run in part.runs}
        try:
            logits = self._engine.decode([*steps, *(run for part in parts for run in part.runs)])
        except BaseException as error:  # noqa: BLE001 - the edge of a thread: whoever waits gets it
            if not parts:
                self._fail_streams(streams, error)
                return
            # Together they may be too much for the engine; whose fault it was shows when they come alone.
            for part in parts:
                # A state that cannot be cut may be lost, and must not be gone on with as if it were whole.
                if any(self._last(run.sequence) != before[run.sequence] for run in part.runs):
                    self._fail(part.prefill, error)
                else:
                    self._compute(part)
            whole = self._whole_streams(streams)
            if whole:
                self._advance(whole, ())
            return
        self._sample(streams, logits[: len(steps)])
        rest = logits[len(steps) :]
        for part in parts:
            self._note(part, rest[: len(part.runs)])
            rest = rest[len(part.runs) :]

    def _compute(self, part: Part) -> None:
        try:
            logits = self._engine.decode(part.runs)
        except BaseException as error:  # noqa: BLE001 - the edge of a thread: whoever waits gets it
            self._fail(part.prefill, error)
            return
        self._note(part, logits)

    def _note(self, part: Part, logits: Sequence[F32Array | None]) -> None:
        self._num_prefilled += part.num_rows
        if part.prefill.advance(part.runs, logits):
            self._finish(part.prefill)

    def _whole_streams(self, streams: Sequence[TokenStream]) -> list[TokenStream]:
        """Those whose rows are all there. An engine decodes behind nothing wherever it is told to: never wrong KV."""
        lost = [stream for stream in streams if self._last(stream.sequence) != stream.position - 1]
        if lost:
            self._fail_streams(lost, EngineStateError("what a reply was made behind is not in its sequence any more"))
        return [stream for stream in streams if stream not in lost]

    def _last(self, sequence: SequenceId) -> int | None:
        """Where the sequence ends; None for an empty one, and where there are no cells at all."""
        try:
            return self._engine.last_position(sequence)
        except EngineError:
            return None

    def _sample(self, streams: Sequence[TokenStream], logits: Sequence[F32Array | None]) -> None:
        ended = []
        for stream, found in zip(streams, logits, strict=True):
            stream.position += 1
            if stream.is_cancelled:  # collected as garbage in this step: its sampler may be freed already
                ended.append(stream)
                continue
            try:
                if found is None:
                    raise EngineStateError("the engine gave no logits for a token that was decoded")
                if not stream.sample(found, self._engine.vocabulary.is_end):
                    stream.end()
                    ended.append(stream)
            except BaseException as error:  # noqa: BLE001 - the edge of a thread: its reader gets it
                stream.end(error)
                ended.append(stream)
        with self._changed:
            self._drop_streams(ended)

    def _drop_streams(self, ended: Sequence[TokenStream]) -> None:
        """The caller has `_changed`."""
        if ended:
            self._streams = [stream for stream in self._streams if stream not in ended]
            self._changed.notify_all()

    def _fail_streams(self, streams: Sequence[TokenStream], error: BaseException) -> None:
        for stream in streams:
            stream.end(error)
        with self._changed:
            self._drop_streams(streams)

    def _finish(self, prefill: Prefill) -> None:
        with self._changed:
            self._prefills.remove(prefill)
        prefill.done.set()

    def _fail(self, prefill: Prefill, error: BaseException) -> None:
        try:
            self._take_back(prefill)
        except BaseException as another:  # noqa: BLE001 - the edge of a thread: whoever waits gets both
            another.__context__ = error
            error = another
        prefill.error = error
        self._finish(prefill)

    def _fail_all(self, error: BaseException) -> None:
        with self._changed:
            self._is_closed = True
            prefills, streams, errands = list(self._prefills), list(self._streams), list(self._errands)
            self._prefills.clear()
            self._streams.clear()
            self._errands.clear()
            self._changed.notify_all()
        for stream in streams:
            stream.end(error)
        for errand in errands:
            errand.fail(error)
        for prefill in prefills:
            prefill.error = error
            prefill.done.set()

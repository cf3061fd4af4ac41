"""Carries out one turn: weave the context, prefill the question, sample the reply, store what was computed.

Knows manifests and token ids; which manifest comes next and what is logged is the session's business.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Protocol

import numpy as np

from kvloom.context.device import Holding
from kvloom.context.manifest import Manifest, Tokens
from kvloom.engine.base import Logits, Run, Sampler
from kvloom.engine.batch_work import Chosen
from kvloom.errors import CancelledError, EngineMemoryError, EngineStateError
from kvloom.session.cells import begun
from kvloom.session.composer import Composed
from kvloom.session.history import TurnRecord
from kvloom.session.reply import Loop, ReplyOptions, Sampled
from kvloom.session.values import Delta, Progress, ProgressCallback, Warmed
from kvloom.types import F32Array, Fidelity, SessionId, Usage

if TYPE_CHECKING:
    from kvloom.session.loom import Loom

Commit = Callable[[Manifest, TurnRecord], None]
"""Makes a finished turn part of the session, durably."""


@dataclass(frozen=True)
class Question:
    """What is asked: the manifest it is asked of (turns as the template wants them now), its text and token ids."""

    manifest: Manifest
    text: str
    tokens: tuple[int, ...] = field(repr=False)


class Patience(Protocol):
    """How work in the background gives way."""

    def is_interrupted(self) -> bool:
        """Whether others want the device, or it is to end."""
        ...

    def wait(self) -> bool:
        """Until the device is free again; False where the work is to end."""
        ...


PREFILL_STEP = 256
"""Tokens of background work between two looks at who waits; whole tiles, so that no kernel changes on the way."""
MAX_RESTARTS = 20


class _TakenAwayError(Exception):
    """The cells of a completion were needed by others."""


@dataclass(frozen=True)
class Finished:
    """A turn that is part of the session now. `notices`: what its reply has to say of how it was made."""

    sampled: Sampled
    usage: Usage
    notices: tuple[str, ...] = ()


class Runner(Protocol):
    """Runs the turns of one session, one at a time: the embedded engine's `TurnRunner`, or a remote one's."""

    def run(
        self,
        question: Question,
        max_tokens: int,
        options: ReplyOptions,
        progress: ProgressCallback | None,
        commit: Commit,
    ) -> Generator[Delta, None, Finished]: ...

    def warm(self, manifest: Manifest, progress: ProgressCallback | None) -> tuple[Manifest, Warmed]: ...

    def complete(self, question: Question, max_tokens: int, options: ReplyOptions, patience: Patience) -> Sampled: ...

    def next_logits(self, question: Question) -> F32Array: ...

    def close(self) -> None: ...


class TurnRunner:
    """Runs the turns of one session, one at a time. `cancel` stops it between bounded native calls."""

    def __init__(
        self, loom: Loom, owner: SessionId, cancel: threading.Event, next_ordinal: Callable[[], int] | None = None
    ) -> None:
        self._loom = loom
        self._owner = owner
        self._cancel = cancel
        self._next_ordinal = next_ordinal or (lambda: 0)
        self._gives_way = next_ordinal is None  # what is part of no session is work in the background

    def run(
        self,
        question: Question,
        max_tokens: int,
        options: ReplyOptions,
        progress: ProgressCallback | None,
        commit: Commit,
    ) -> Generator[Delta, None, Finished]:
        """The deltas of the reply. Whatever is raised (or closing early), the device is as before the turn."""
        began = time.perf_counter()
        device, composer = self._loom.device, self._loom.composer
        first: list[float] = []
        holding, start, recomputed = None, 0, 0
        try:
            with device.lock:
                holding, composed = self._begun(question, max_tokens, progress)
                start = composed.manifest.span
                if composed.manifest.fidelity is Fidelity.BLEND:
                    recomputed = composer.blend(holding, composed, question.text, self._loom.settings.blend_budget)
                logits = composer.weaver.extend(holding, question.tokens, start, self._cancel.is_set)
            sampled = yield from self._sample(holding, logits, start + len(question.tokens), max_tokens, options, first)
            with device.lock:
                manifest, record = self._finish(holding, composed, question, sampled)
            # Without the device: whoever has the loom's lock may wait for the device's, so nobody waits the other way.
            commit(manifest, record)
        except BaseException:
            if holding is not None:
                with device.lock:
                    device.cut(holding, start)
            raise
        finally:
            if holding is not None:
                with device.lock:
                    holding.is_busy = False
        ended = time.perf_counter()
        return Finished(
            sampled,
            usage_of(
                composed, len(question.tokens), len(sampled.tokens), recomputed, (first[0] - began, ended - began)
            ),
        )

    def compose(self, manifest: Manifest, progress: ProgressCallback | None, num_to_come: int = 0) -> Composed:
        """Weave `manifest` into the session's own sequence. The caller holds the device's lock."""

        def on_step(done: int, total: int) -> None:
            if progress is not None:
                progress(Progress("prefill", done, total))

        holding = self._loom.device.holding(self._owner)
        holding.gives_way = self._gives_way
        composed = self._loom.composer.compose(holding, manifest, on_step, self._cancel.is_set, num_to_come)
        self._loom.rates.note(composed.weave)
        return composed

    def warm(self, manifest: Manifest, progress: ProgressCallback | None) -> tuple[Manifest, Warmed]:
        """Compute and place what `manifest` wants; the manifest as it was woven."""
        with self._loom.device.lock:
            composed = self.compose(manifest, progress)
        woven = composed.weave
        tokens = (woven.reused_tokens, woven.loaded_tokens, woven.computed_tokens, woven.rotated_tokens)
        return composed.manifest, Warmed(*tokens, woven.seconds)

    def complete(self, question: Question, max_tokens: int, options: ReplyOptions, patience: Patience) -> Sampled:
        """A reply that is part of nothing: not stored, not logged.

        The device is free between two steps, and while others have it the cells may be taken away: then it begins
        anew. Raises CancelledError where `patience` ends, EngineMemoryError where others never leave it room.
        """
        device = self._loom.device
        for _ in range(MAX_RESTARTS):
            holding, composed = self._begun_patiently(question, max_tokens, patience)
            start = composed.manifest.span
            try:
                return self._completed(holding, question, start, max_tokens, options, patience)
            except _TakenAwayError:
                continue
            finally:
                with device.lock:
                    if device.holds(holding):
                        device.cut(holding, start)
                        holding.is_busy = False
        raise EngineMemoryError(
            f"{len(question.tokens)} tokens were begun {MAX_RESTARTS} times, and others needed their cells each time"
        )

    def _completed(
        self,
        holding: Holding,
        question: Question,
        start: int,
        max_tokens: int,
        options: ReplyOptions,
        patience: Patience,
    ) -> Sampled:
        device = self._loom.device

        def may_go_on() -> bool:
            if not patience.is_interrupted():
                return True
            with device.lock:
                holding.is_busy = False
            goes_on = patience.wait()
            with device.lock:
                if not device.holds(holding):
                    raise _TakenAwayError
                holding.is_busy = True
                holding.num_promised = 0  # what was kept for it may be promised to others by now
            return goes_on

        tokens, position, logits = list(question.tokens), start, np.zeros(0, np.float32)
        while tokens:
            if not may_go_on():
                raise CancelledError("the completion was cancelled")
            step, tokens = tokens[:PREFILL_STEP], tokens[PREFILL_STEP:]
            with device.lock:
                logits = self._loom.composer.weaver.extend(holding, step, position, self._cancel.is_set)
            position += len(step)
        run = self._sample(holding, logits, position, max_tokens, options, [], may_go_on)
        while True:
            try:
                next(run)
            except StopIteration as end:
                sampled: Sampled = end.value
                return sampled

    def close(self) -> None:
        """Give back the device. Idempotent."""
        with self._loom.device.lock:
            self._loom.device.release_owner(self._owner)

    def next_logits(self, question: Question) -> F32Array:
        """Logits behind the question, computed in a scratch sequence: nothing of the session changes."""
        device, composer = self._loom.device, self._loom.composer
        with device.lock:
            holding = device.holding(self._owner)
            self._cancel.clear()
            composed = self.compose(self._with_room(question, 1), None)
            span = composed.manifest.span
            scratch = holding
            try:
                holding.is_busy = True
                scratch = device.holding("")
                composer.engine.copy(holding.sequence, scratch.sequence, 0, span)
                scratch.residents.update(holding.residents)
                if composed.manifest.fidelity is Fidelity.BLEND:
                    composer.blend(scratch, composed, question.text, self._loom.settings.blend_budget)
                logits = composer.weaver.extend(scratch, question.tokens, span, lambda: False)
                return np.array(logits, dtype=np.float32)
            finally:
                holding.is_busy = False
                if scratch is not holding:
                    device.release(scratch)

    # -- inside -------------------------------------------------------------------------------------------------

    def _begun_patiently(self, question: Question, max_tokens: int, patience: Patience) -> tuple[Holding, Composed]:
        """`_begun`, out of the line while others come first: nobody stands behind what gives way."""
        while True:
            try:
                with self._loom.device.lock:
                    return self._begun(question, max_tokens, None, patience.is_interrupted)
            except CancelledError:
                if self._cancel.is_set() or not patience.wait():
                    raise

    def _begun(
        self,
        question: Question,
        max_tokens: int,
        progress: ProgressCallback | None,
        is_interrupted: Callable[[], bool] = lambda: False,
    ) -> tuple[Holding, Composed]:
        """The context woven, with cells for the whole turn; waits for others to end where they hold them."""

        def compose(_: Holding) -> Composed:
            num_to_come = len(question.tokens) + max_tokens
            return self.compose(self._with_room(question, max_tokens), progress, num_to_come)

        def tell(num_busy: int) -> None:
            if progress is not None:
                progress(Progress("waiting for cells", 0, num_busy, "replies ended"))

        return begun(self._loom, self._owner, compose, lambda: self._cancel.is_set() or is_interrupted(), tell)

    def _with_room(self, question: Question, max_tokens: int) -> Manifest:
        """Holes closed if the turn would pass the window or the trained length with them."""
        manifest, num_tokens = question.manifest, len(question.tokens) + max_tokens
        window = min(manifest.window or self._loom.window, self._loom.pool.window)
        limit = min(window, self._loom.engine.train_context)
        if manifest.num_hole_tokens and manifest.span + num_tokens > limit:
            return manifest.settled(dense=True)
        return manifest

    def _sample(
        self,
        holding: Holding,
        logits: F32Array,
        position: int,
        max_tokens: int,
        options: ReplyOptions,
        first: list[float],
        may_go_on: Callable[[], bool] | None = None,
    ) -> Generator[Delta, None, Sampled]:
        engine = self._loom.engine
        sampler = engine.sampler(options.sampling(self._loom.settings.sampling.params()))
        loop = Loop(
            engine.vocabulary, self._loom.builder.reasoning_tags, max_tokens, options,
            lambda: self._cancel.is_set() or (may_go_on is not None and not may_go_on()),
            lambda: first.append(time.perf_counter()),
        )  # fmt: skip
        try:
            if may_go_on is not None:
                return (yield from loop.run(self._step_by_step(holding, logits, position, sampler)))
            stream = self._loom.device.batcher.stream(holding.sequence, position, logits, sampler, max_tokens)
            try:
                return (yield from loop.run(stream))
            finally:
                stream.close()
        finally:
            sampler.close()

    def _step_by_step(
        self, holding: Holding, logits: F32Array, position: int, sampler: Sampler
    ) -> Generator[Chosen, None, None]:
        """Tokens as they are asked for, nothing ahead: between two of them the cells may be given away."""
        device = self._loom.device
        for at in count(position):
            token = sampler.sample(logits)
            yield Chosen(token)
            with device.lock:
                device.make_room(1, [holding], num_spare=0)
                found = device.decode([Run(holding.sequence, (token,), at, Logits.LAST)], holding)[0]
            if found is None:
                raise EngineStateError("the engine gave no logits for a token that was decoded")
            logits = found

    def _finish(
        self, holding: Holding, composed: Composed, question: Question, sampled: Sampled
    ) -> tuple[Manifest, TurnRecord]:
        """Bring the last tokens into the cache and store the turn's rows; what is to become part of the session."""
        composer, start = self._loom.composer, composed.manifest.span
        begin = start + len(question.tokens)
        last = composer.engine.last_position(holding.sequence)
        num_held = min(sampled.num_kept, 0 if last is None else last + 1 - begin)
        is_held = composer.weaver.end_at(holding, begin + num_held, sampled.tokens[num_held:])
        record = TurnRecord(
            uuid.uuid4().hex, question.text, sampled.answer, sampled.reasoning, sampled.finish_reason,
            len(question.tokens), time.time(), self._next_ordinal(),
        )  # fmt: skip
        tokens = Tokens((*question.tokens, *sampled.tokens))
        manifest = composed.manifest.with_turn(tokens, record.id, start, composer.variant(holding))
        if is_held:
            self._loom.shelf.record(manifest)
            composer.weaver.store_rows(holding, [composer.wanted_slot(manifest.slots[-1])])
        return manifest, record


def usage_of(
    composed: Composed, num_question: int, num_completion: int, recomputed: int, times: tuple[float, float]
) -> Usage:
    """What a reply cost. `times`: seconds to its first token, and to its end."""
    woven = composed.weave
    return Usage(
        prompt_tokens=woven.reused_tokens + woven.loaded_tokens + woven.computed_tokens + num_question,
        reused_tokens=woven.reused_tokens,
        loaded_tokens=woven.loaded_tokens,
        computed_tokens=woven.computed_tokens + num_question,
        rotated_tokens=woven.rotated_tokens,
        recomputed_tokens=recomputed,
        dropped_tokens=woven.dropped_tokens,
        completion_tokens=num_completion,
        fidelity=composed.manifest.fidelity,
        ttft_s=times[0],
        weave_s=woven.seconds,
        total_s=times[1],
    )

"""Replies to requests without a session: weave the prompt, prefill its end, stream what is sampled, keep the KV.

Every request runs in its caller's thread and shares native batches with the others. Knows no HTTP and no log.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from kvloom.context.device import Holding
from kvloom.context.manifest import Slot, SlotKind, Tokens
from kvloom.context.plan import Resident
from kvloom.engine.batch_work import Chosen
from kvloom.engine.candidates import token_scores
from kvloom.engine.turnstile import surely
from kvloom.errors import CancelledError, UnknownChunkError, UsageError
from kvloom.session.cells import begun
from kvloom.session.composer import Composed
from kvloom.session.gc import forget_traces
from kvloom.session.reply import Loop, ReplyOptions, Sampled
from kvloom.session.request_prompts import Prepared, RequestPreparer, blocks_of
from kvloom.session.requests import Completion, Dropped, Request, TextDelta, TokenLogprob
from kvloom.session.turn import usage_of
from kvloom.types import F32Array, Fidelity, SamplingParams

if TYPE_CHECKING:
    from kvloom.session.loom import Loom


OWNER = "request-"
"""What the owners of requests' sequences begin with."""
IDLE_TOKENS = 2048
"""Tokens of ended requests that stay on the device while no other is at work: every row looks over all cells in use,
whoever holds them (6,300 of others make a prefill an eighth slower), and what is in RAM is placed in 5 µs a token."""

PRUNE_EVERY = 20_000
"""Traces that requests leave before those are forgotten whose entries are gone: some 3 MB in the home's database."""


class CompletionStream(Iterator[TextDelta]):
    """One reply, delta by delta. Iterated by one thread; `close` may be called by any, at any time, twice.

    `next()` raises EngineMemoryError where the cells cannot be had, MemoryPressureError while new work is refused.
    A closed stream ends: its `result` says "cancelled".
    """

    def __init__(
        self, prepared: Prepared, run: Generator[TextDelta, None, Completion], cancel: threading.Event
    ) -> None:
        self.prepared = prepared
        self._run = run
        self._cancel = cancel
        self._result: Completion | None = None

    @property
    def dropped(self) -> tuple[Dropped, ...]:
        """What an overflow policy left out of the prompt."""
        return self.prepared.dropped

    @property
    def result(self) -> Completion:
        """The whole reply. Raises UsageError while the iteration has not ended."""
        if self._result is None:
            raise UsageError("the reply has not ended yet; iterate the stream to its end first")
        return self._result

    def __next__(self) -> TextDelta:
        try:
            return next(self._run)
        except StopIteration as end:
            if end.value is not None:
                self._result = end.value
            raise StopIteration from None

    def close(self) -> None:
        """End the reply within one step of the engine. Returns at once; the reading thread sees the end."""
        self._cancel.set()


class Completions:
    """The requests of one loom. Safe for several threads."""

    def __init__(self, loom: Loom) -> None:
        self._loom = loom
        self.preparer = RequestPreparer(loom)
        self._num_traced = 0

    def complete(self, request: Request | Prepared) -> CompletionStream:
        """The reply to a request; nothing is computed before the first `next()`.

        Raises what `prepare` raises, before any work.
        """
        prepared = self.preparer.prepare(request) if isinstance(request, Request) else request
        cancel = threading.Event()
        return CompletionStream(prepared, self._replied(prepared, cancel), cancel)

    # -- inside -------------------------------------------------------------------------------------------------

    def _replied(self, prepared: Prepared, cancel: threading.Event) -> Generator[TextDelta, None, Completion]:
        loom, began = self._loom, time.perf_counter()
        with ExitStack() as stack:
            loom.guard.check()
            stack.enter_context(loom.foreground.busy())
            stack.enter_context(loom.monitor.busy())
            owner = f"{OWNER}{uuid.uuid4().hex}"
            start, is_whole = -1, False
            first: list[float] = []
            try:
                holding, composed = self._composed(prepared, owner, cancel)
                start = composed.manifest.span
                found = yield from self._reply(prepared, holding, composed, cancel, first)
                is_whole = True
            except CancelledError:
                return _cancelled(prepared, time.perf_counter() - began)
            finally:
                surely(partial(self._end, owner, None if is_whole else start))
            times = ((first[0] if first else time.perf_counter()) - began, time.perf_counter() - began)
            usage = usage_of(composed, len(prepared.question), len(found.tokens), 0, times)
        return replace(found.completion, usage=usage)

    def _end(self, owner: str, start: int | None) -> None:
        with self._loom.device.lock:
            self._loom.device.end(owner, start)
            if self._loom.engine.capabilities.can_move_kv:  # else it is nowhere but here
                self._loom.device.drop_idle(OWNER, IDLE_TOKENS)

    def _composed(self, prepared: Prepared, owner: str, cancel: threading.Event) -> tuple[Holding, Composed]:
        """The prompt but for its last block, woven. Waits for others to end where they hold the cells it needs."""
        loom = self._loom
        num_to_come = len(prepared.question) + prepared.max_tokens

        def compose(holding: Holding) -> Composed:
            composed = loom.composer.compose(
                holding, prepared.manifest, is_cancelled=cancel.is_set, num_to_come=num_to_come
            )
            loom.rates.note(composed.weave)
            return composed

        def adopt() -> None:
            """What cannot be copied piece by piece or taken apart goes over as a whole, if it is continued."""
            if not loom.engine.capabilities.can_move_kv:
                wanted = loom.composer.wanted(prepared.manifest)
                begins = [Resident(want.entry, want.position, len(want.tokens)) for want in wanted]
                loom.device.adopt(owner, begins, OWNER)

        with loom.device.lock:
            return begun(loom, owner, compose, cancel.is_set, before=adopt)

    def _reply(
        self, prepared: Prepared, holding: Holding, composed: Composed, cancel: threading.Event, first: list[float]
    ) -> Generator[TextDelta, None, _Found]:
        loom, device, request = self._loom, self._loom.device, prepared.request
        start, question = composed.manifest.span, prepared.question
        with device.lock:
            if composed.manifest.fidelity is Fidelity.BLEND:
                loom.composer.blend(holding, composed, _text_of(loom, question), loom.settings.blend_budget)
            logits = loom.composer.weaver.extend(holding, question, start, cancel.is_set)
        options = ReplyOptions(max_tokens=prepared.max_tokens, stop=request.stop, keep_partial=True)
        loop = Loop(
            loom.engine.vocabulary, loom.builder.reasoning_tags, prepared.max_tokens, options, cancel.is_set,
            lambda: first.append(time.perf_counter()),
        )  # fmt: skip
        seen: list[TokenLogprob] = []
        told = 0
        sampler = loom.engine.sampler(_over(request.sampling, loom.settings.sampling.params()))
        look = None if request.top_logprobs is None else _Look(loom, request.top_logprobs)
        try:
            stream = device.batcher.stream(
                holding.sequence, start + len(question), logits, sampler, prepared.max_tokens, look
            )
            try:
                run = loop.run(_noting(stream, seen))
                while True:
                    try:
                        delta = next(run)
                    except StopIteration as end:
                        sampled: Sampled = end.value
                        break
                    yield TextDelta(delta.text, delta.is_reasoning, tuple(seen[told:]))
                    told = len(seen)
            finally:
                stream.close()
        finally:
            sampler.close()
        self._keep(prepared, holding, composed, sampled)
        self.preparer.replies.add(sampled.answer, sampled.tokens)
        completion = Completion(
            sampled.answer, sampled.reasoning, sampled.finish_reason, usage_of(composed, 0, 0, 0, (0.0, 0.0)),
            tuple(seen[: len(sampled.tokens)]), prepared.dropped, _chunks_of(composed),
            _is_approximate(composed), prepared.notices,
        )  # fmt: skip
        return _Found(completion, sampled.tokens)

    def _keep(self, prepared: Prepared, holding: Holding, composed: Composed, sampled: Sampled) -> None:
        """Enter what was computed in the books and the tiers, cut as the next request will cut it."""
        composer, manifest = self._loom.composer, composed.manifest
        variant = composer.variant(holding)  # at work, it is nobody else's to change
        blocks = [tokens for tokens in (prepared.question, *blocks_of(sampled.tokens)) if tokens]
        for number, tokens in enumerate(blocks):
            manifest = manifest.with_turn(Tokens(tokens), f"end {number}", variant=variant)
        try:
            self._loom.shelf.record(manifest)  # without the turn: it may wait for the disk
        except UnknownChunkError:
            holding.is_doomed = True  # purged, by another process it may be
        with self._loom.device.lock:
            if holding.is_doomed:
                return
            begin = composed.manifest.span + len(prepared.question)
            last = composer.engine.last_position(holding.sequence)
            num_held = min(sampled.num_kept, 0 if last is None else last + 1 - begin)
            if composer.weaver.end_at(holding, begin + num_held, sampled.tokens[num_held:]):
                fresh = [composer.wanted_slot(slot) for slot in manifest.slots[len(composed.manifest.slots) :]]
                composer.weaver.store_rows(holding, fresh)
        self._look_after_traces(len(blocks) * len(manifest.active_chunk_ids))

    def _look_after_traces(self, num_traced: int) -> None:
        self._num_traced += num_traced  # two at once may count as one: it is no more than a reminder
        if self._num_traced >= PRUNE_EVERY:
            self._num_traced = 0
            forget_traces(self._loom)


class _Found:
    """What a reply came to, and its ids."""

    def __init__(self, completion: Completion, tokens: list[int]) -> None:
        self.completion = completion
        self.tokens = tokens


class _Look:
    """Reads the log-probabilities of a token off the logits it was chosen from."""

    def __init__(self, loom: Loom, num_top: int) -> None:
        self._vocabulary = loom.engine.vocabulary
        self._num_top = num_top

    def __call__(self, logits: F32Array, token: int) -> TokenLogprob:
        found = token_scores(logits, token, self._num_top)
        top = tuple(self._value(*one) for one in zip(found.top_ids, found.top_logprobs, strict=True))
        return self._value(token, found.logprob, top)

    def _value(self, token: int, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        return TokenLogprob(int(token), self._vocabulary.token_bytes(int(token), special=True), float(logprob), top)


def _noting(stream: Iterator[Chosen], seen: list[TokenLogprob]) -> Iterator[Chosen]:
    for chosen in stream:
        if isinstance(chosen.seen, TokenLogprob):
            seen.append(chosen.seen)
        yield chosen


def _over(asked: SamplingParams, defaults: SamplingParams) -> SamplingParams:
    """What was asked for; the settings' where nothing was."""
    given = {
        name: value for name in asked.__dataclass_fields__ if (value := getattr(asked, name)) not in (None, (), "")
    }
    return replace(defaults, **given)


def _text_of(loom: Loom, tokens: tuple[int, ...]) -> str:
    return loom.builder.tokenizer.text(tokens)


def _chunks_of(composed: Composed) -> tuple[str, ...]:
    return tuple(composed.manifest.active_chunk_ids)


def _is_approximate(composed: Composed) -> bool:
    manifest = composed.manifest
    return manifest.fidelity is not Fidelity.EXACT and any(_is_placed(slot) for slot in manifest.slots)


def _is_placed(slot: Slot) -> bool:
    return slot.kind is SlotKind.CHUNK


def _cancelled(prepared: Prepared, seconds: float) -> Completion:
    """Nothing was said yet."""
    from kvloom.types import Usage

    usage = Usage(0, 0, 0, 0, 0, 0, 0, 0, prepared.manifest.fidelity, seconds, 0.0, seconds)
    return Completion("", "", "cancelled", usage, (), prepared.dropped)

"""Compression of one session: old turns become a summary, or leave. Estimated first, built aside, swapped in whole.

The originals stay in the log: the ledger lists them, undo and recall bring them back.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvloom.context.manifest import Manifest, Slot, Tokens
from kvloom.errors import (
    CancelledError,
    CompressionError,
    EngineMemoryError,
    KvloomError,
    MemoryPressureError,
    UsageError,
)
from kvloom.reduce.spans import SpanTurn
from kvloom.reduce.summarize import Summary, SummaryRoom, summarize
from kvloom.reduce.summarize import Watch as SummaryWatch
from kvloom.session.completion import Completer
from kvloom.session.history import TurnRecord
from kvloom.session.turn import Patience
from kvloom.session.values import CompressionEstimate, CompressionResult, Progress, ProgressCallback
from kvloom.types import SessionId

if TYPE_CHECKING:
    from kvloom.session.asking import Asking
    from kvloom.session.budget import Budget
    from kvloom.session.desk import Desk
    from kvloom.session.loom import Loom

STRATEGIES = ("hybrid", "summarize", "truncate")
SUMMARY_REQUEST = "Sum up our conversation so far."
"""What the summary's turn asks: to the model it is an ordinary turn."""
MIN_SUMMARY_TOKENS = 32
MAX_USELESS_ROUNDS = 3
"""After so many compressions without the least gain, automatic ones stop until the context has changed."""


@dataclass(frozen=True)
class Span:
    """What a compression would replace. `previous`: the summary that it takes over, if there is one."""

    manifest: Manifest
    strategy: str
    old: tuple[Slot, ...]
    previous: tuple[Slot, ...]
    covered: tuple[Slot, ...]
    """Turns that came back although the summary holds them: they only leave again."""
    num_summary_tokens: int

    @property
    def replaced(self) -> tuple[Slot, ...]:
        return (*self.previous, *self.covered, *self.old)

    @property
    def num_tokens(self) -> int:
        return sum(slot.num_tokens for slot in self.replaced)


@dataclass(frozen=True)
class Made:
    """A summary as the turn that will stand for others."""

    summary: Summary
    record: TurnRecord
    tokens: Tokens


class _Cancellable:
    """Nobody is waited for; the session's cancel ends it."""

    def __init__(self, cancel: threading.Event) -> None:
        self._cancel = cancel

    def is_interrupted(self) -> bool:
        return self._cancel.is_set()

    def wait(self) -> bool:
        return not self._cancel.is_set()


class _GivingWay:
    """Everyone else comes first. `interrupted` is what runs in one piece and looks at an event."""

    def __init__(self, loom: Loom, stop: threading.Event) -> None:
        self._loom, self._stop = loom, stop
        self.interrupted = threading.Event()

    def is_interrupted(self) -> bool:
        return self._loom.foreground.is_busy or self._stop.is_set()

    def wait(self) -> bool:
        self._loom.foreground.wait_idle(self._stop)
        return not self._stop.is_set()


class Compression:
    """Compresses one session, on request or in the background."""

    def __init__(self, loom: Loom, desk: Desk, budget: Budget, asking: Asking) -> None:
        self._loom, self._desk, self._budget, self._asking = loom, desk, budget, asking
        self._settings = loom.settings.compression
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._num_useless = 0
        self._useless_size = 0
        self.last_error = ""

    # -- looking ------------------------------------------------------------------------------------------------

    def estimate(self, strategy: str | None = None) -> CompressionEstimate:
        """What a compression would do. Raises CompressionError where there is nothing to compress."""
        span = self._span(self._desk.manifest, strategy)
        before, after = span.manifest.num_tokens, span.manifest.num_tokens - span.num_tokens + span.num_summary_tokens
        rate = self._loom.rates.compute_s
        return CompressionEstimate(
            strategy=span.strategy,
            num_turns=len(span.old) + len(span.covered),
            num_tokens_before=before,
            num_tokens_after=after,
            num_summary_tokens=span.num_summary_tokens,
            seconds=None if rate is None or span.strategy == "truncate" else rate * span.num_tokens,
        )

    @property
    def is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def is_due(self) -> bool:
        """Whether the context has passed the threshold, and a compression may still help."""
        settings, manifest = self._settings, self._desk.manifest
        if not settings.enabled or self._budget.policy_name() == "stop":
            return False
        if manifest.num_tokens < settings.threshold * self._budget.limit(manifest):
            return False
        return self._num_useless < MAX_USELESS_ROUNDS or manifest.num_tokens < self._useless_size

    # -- doing --------------------------------------------------------------------------------------------------

    def compress(self, strategy: str | None = None, progress: ProgressCallback | None = None) -> CompressionResult:
        """Replace the old turns now. The caller holds the desk. Raises CompressionError with nothing changed."""
        began = time.perf_counter()
        span = self._span(self._desk.manifest, strategy)
        record = self._made(span, self._report(progress), _Cancellable(self._desk.cancel))
        return self._swap(span, record, began)

    def begin(self) -> bool:
        """Start a compression in the background, where one is due and none runs. The caller holds the desk."""
        if self.is_running or not self.is_due():
            return False
        try:
            span = self._span(self._desk.manifest, None)
        except CompressionError as error:
            self.last_error = str(error)
            return False
        self._stop.clear()
        self._thread = threading.Thread(target=self._work, args=(span,), name="kvloom-compress", daemon=True)
        self._thread.start()
        return True

    def wait(self, timeout_s: float | None = None) -> bool:
        """Until the background compression has ended; False where it has not in time."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout_s)
        return not self.is_running

    def stop(self) -> None:
        """End a background compression; the context stays as it is. Idempotent."""
        self._stop.set()
        self._loom.foreground.wake()
        self.wait()

    # -- inside -------------------------------------------------------------------------------------------------

    def _work(self, span: Span) -> None:
        patience = _GivingWay(self._loom, self._stop)
        began = time.perf_counter()
        try:
            made = self._made(span, self._report(None), patience)
            self._build(span, made, patience)
            with self._desk.editing():
                self._swap(span, made, began)
        except (KvloomError, OSError) as error:  # told by the status; the conversation goes on as it is
            if not isinstance(error, CancelledError):
                self.last_error = str(error)

    def _build(self, span: Span, made: Made | None, patience: _GivingWay) -> None:
        """The KV of the new prefix in a sequence of its own, so that the swap finds it in RAM."""
        after = self._after(span.manifest, span, made)
        runner = self._loom.runner(SessionId(f"compress-{self._desk.history.id}"), patience.interrupted)
        try:
            while patience.wait():
                patience.interrupted.clear()
                with suppress(CancelledError), self._loom.foreground.interrupting(patience.interrupted):
                    runner.warm(after, None)
                    return
        finally:
            runner.close()
        raise CancelledError("the compression was stopped; the context is as it was")

    def _recent_tokens(self, window: int) -> int:
        """What stays word for word; at most half of the window, or there would be nothing to compress."""
        asked = self._settings.preserve_recent
        return window // 4 if asked is None else min(asked, window // 2)

    def _span(self, manifest: Manifest, strategy: str | None) -> Span:
        chosen = strategy or self._settings.strategy
        if chosen not in STRATEGIES:
            raise UsageError(f"there is no strategy {chosen!r}; choose one of {', '.join(STRATEGIES)}")
        window = self._budget.window(manifest)
        keep = 0 if chosen == "summarize" else self._recent_tokens(window)
        previous = tuple(slot for slot in manifest.turns if slot.is_summary and not slot.pinned)
        known = {ref for slot in previous for ref in self._desk.history.turn(slot.ref).replaces}
        turns = [slot for slot in manifest.turns if slot.active and not slot.pinned and not slot.is_summary]
        turns.sort(key=lambda slot: self._desk.history.order(slot.ref))  # one that came back stands where it was needed
        covered = tuple(slot for slot in turns if slot.ref in known)
        fresh = [slot for slot in turns if slot.ref not in known]
        # The newest turn stays word for word even where it is larger than what is to be kept.
        recent, num_tokens = 0, 0
        for slot in reversed(fresh):
            num_tokens += slot.num_tokens
            if recent and num_tokens > keep:
                break
            recent += 1
        old = tuple(fresh[: len(fresh) - recent])
        if not old and not covered:
            raise CompressionError(
                f"nothing to compress: of {len(turns)} turns that may be, the newest {recent} ({num_tokens} tokens) "
                f"are kept word for word; the window is {window} tokens. The strategy summarize takes all but the "
                "newest turn; clearing takes turns out as they are"
            )
        budget = 0
        if chosen != "truncate" and old:
            budget = max(MIN_SUMMARY_TOKENS, min(self._settings.summary_max_tokens, window // 8))
        if chosen == "truncate" or not old:
            previous = ()
        return Span(manifest, chosen, old, previous, covered, budget)

    def _made(self, span: Span, report: Callable[[int, int], None], patience: Patience) -> Made | None:
        """The summary, None where none is wanted. Raises CancelledError, CompressionError."""
        if not span.num_summary_tokens:
            return None
        completer = Completer(self._loom, patience)
        window = self._budget.window(span.manifest) - completer.num_overhead_tokens
        watch = SummaryWatch(report, lambda: patience.is_interrupted() and not patience.wait())
        try:
            summary = summarize(
                self._turns(span), completer, self._loom.count, SummaryRoom(span.num_summary_tokens, window),
                previous=self._before(span), watch=watch,
            )  # fmt: skip
        finally:
            completer.close()
        record = self._record(span, summary)
        return Made(summary, record, self._loom.prompts.turn(span.manifest.system, record))

    def _turns(self, span: Span) -> list[SpanTurn]:
        records = ((slot, self._desk.history.turn(slot.ref)) for slot in span.old)
        return [SpanTurn(slot.ref, record.user, record.answer, slot.num_tokens) for slot, record in records]

    def _before(self, span: Span) -> str:
        """What the summary said that this one takes over."""
        return "\n".join(self._desk.history.turn(slot.ref).answer for slot in span.previous)

    def _after(self, manifest: Manifest, span: Span, made: Made | None) -> Manifest:
        replaced = {slot.ref for slot in span.replaced}
        if made is None:
            return manifest.without(replaced)
        return manifest.with_summary(made.tokens, made.record.id, replaced)

    def _swap(self, span: Span, made: Made | None, began: float) -> CompressionResult:
        """The next manifest. The caller holds the desk. Raises CompressionError with nothing changed."""
        now = self._desk.manifest
        replaced = {slot.ref for slot in span.replaced}
        gone = replaced - {slot.ref for slot in now.turns if slot.active and not slot.pinned}
        if gone:
            raise CompressionError(f"{len(gone)} of {len(replaced)} turns were changed meanwhile; nothing was replaced")
        after = self._after(now, span, made)
        gain = now.num_tokens - after.num_tokens
        if gain < max(1, self._settings.min_gain * span.num_tokens):
            self._num_useless += 1
            self._useless_size = now.num_tokens
            raise CompressionError(
                f"the compression would gain {gain} of {span.num_tokens} tokens, less than "
                f"{self._settings.min_gain:.0%}; nothing was replaced ({self._num_useless} of {MAX_USELESS_ROUNDS} "
                "tries before automatic ones stop); clear turns, drop chunks, or raise the context"
            )
        self._num_useless = 0
        num_turns = len(span.old) + len(span.covered)
        self._desk.snapshot_before("compress")
        record = None if made is None else made.record
        self._desk.commit(f"compress {span.strategy}: {num_turns} turns", self._budget.fitting(after), record)
        computed = self._woven()
        return CompressionResult(
            strategy=span.strategy,
            num_turns=num_turns,
            num_tokens_before=now.num_tokens,
            num_tokens_after=after.num_tokens,
            summary="" if made is None else made.summary.text,
            num_pieces=0 if made is None else made.summary.num_pieces,
            is_fallback=made is not None and made.summary.is_fallback,
            computed_tokens=computed,
            seconds=time.perf_counter() - began,
        )

    def _woven(self) -> int:
        """Weave the new context now; tokens that had to be computed. Short of memory the next question does it."""
        try:
            return self._asking.warm(None).computed_tokens
        except (MemoryPressureError, EngineMemoryError):
            return 0

    def _record(self, span: Span, made: Summary) -> TurnRecord:
        history = self._desk.history
        earlier = [ref for slot in span.previous for ref in history.turn(slot.ref).replaces]
        refs = tuple(dict.fromkeys((*earlier, *(slot.ref for slot in (*span.covered, *span.old)))))
        # It stands before every turn that it covers, should one of them come back.
        ordinal = min(history.order(ref) for ref in refs)
        return TurnRecord(uuid.uuid4().hex, SUMMARY_REQUEST, made.text, "", "stop", 0, time.time(), ordinal, refs)

    def _report(self, progress: ProgressCallback | None) -> Callable[[int, int], None]:
        def report(done: int, total: int) -> None:
            if progress is not None:
                progress(Progress("summarize", done, total, "pieces"))

        return report

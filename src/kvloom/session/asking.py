"""Asking: from a question's text to its reply, within the window, one at a time. Knows manifests and token ids.

What is done on the engine is the runner's business; what is logged, the desk's.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

from kvloom.context.manifest import Manifest
from kvloom.context.placing import with_passages
from kvloom.errors import ContextOverflowError, NothingFoundError, NothingToUndoError
from kvloom.session.budget import Budget, Fitted
from kvloom.session.desk import Desk
from kvloom.session.history import TurnRecord
from kvloom.session.reply import ReplyOptions, ReplyStream
from kvloom.session.retrieval import Retrieval, Retrieved
from kvloom.session.turn import Finished, Question
from kvloom.session.values import Delta, ProgressCallback, Reply, TurnPlan, Warmed
from kvloom.types import F32Array, Fidelity

if TYPE_CHECKING:
    from kvloom.session.loom import Loom

SPLICE_NOTICE = (
    "{mode}: chunks are placed from KV computed on their own, so replies may differ slightly from a full prefill "
    "(kvloom bench fidelity measures it; fidelity exact avoids it)"
)
NOTHING_AT_HAND = "no passage could be read: no library is attached, recall is off, or the window has no room for one"
WHAT_HELPS = "the model was not asked; ask in the words and the language of the texts"


class Asking:
    """The questions of one session."""

    def __init__(self, loom: Loom, desk: Desk, budget: Budget) -> None:
        self._loom = loom
        self._desk = desk
        self._budget = budget
        self._retrieval = Retrieval(loom, desk, budget)
        self.runner = loom.runner(desk.history.id, desk.cancel, desk.history)
        self._has_said_fidelity = bool(desk.manifest.turns)
        self.after_turn: Callable[[], tuple[str, ...]] = tuple
        """What a finished turn sets off; notices for its reply."""
        self.before_overflow: Callable[[int], None] = lambda _: None
        """Told before a question that does not fit is refused or makes room."""
        # Weak: a reply that nobody reads any more gives its turn back when it is collected.
        self._streams: weakref.WeakSet[ReplyStream] = weakref.WeakSet()
        self._streams_lock = threading.Lock()

    def ask(self, text: str, options: ReplyOptions, progress: ProgressCallback | None) -> ReplyStream:
        return self._stream(self._reply(text, options, progress))

    def ask_again(self, options: ReplyOptions, progress: ProgressCallback | None) -> ReplyStream:
        """The last question once more, of the context before it."""
        return self._stream(self._reply_again(options, progress))

    def question(self, text: str, manifest: Manifest) -> Question:
        """The question's token ids, and the manifest as the template wants it behind it."""
        records = [self._desk.history.turn(slot.ref) for slot in manifest.turns]
        rendered, tokens = self._loom.prompts.question(manifest, records, text)
        return Question(rendered, text, tokens)

    def plan(self, text: str | None, max_tokens: int | None) -> TurnPlan:
        """What `ask` (None: `ask_again`) would take. The caller holds the turn. Raises ContextOverflowError."""
        text, manifest = self._again() if text is None else (text, self._desk.manifest)
        manifest = self._retrieved(text, manifest, max_tokens).manifest
        fitted = self._budget.fit(text, manifest, max_tokens, self.question, lambda _: None)
        question = fitted.question
        return TurnPlan(question.manifest.num_tokens + len(question.tokens), fitted.max_tokens)

    def next_logits(self, text: str) -> F32Array:
        self._get_ready()
        manifest = self._retrieved(text, self._desk.manifest, None).manifest
        return self.runner.next_logits(self._fit(text, manifest, None).question)

    def warm(self, progress: ProgressCallback | None) -> Warmed:
        self._desk.cancel.clear()
        self._get_ready()
        manifest, warmed = self.runner.warm(self._desk.manifest, progress)
        self._desk.commit("compute turns again whose KV was lost", manifest)
        return warmed

    def stop(self) -> None:
        """Cancel the running reply and close what is left of it. Raises SessionBusyError from inside its own step."""
        with self._streams_lock:
            streams = [stream for stream in self._streams if stream.has_begun]
        for stream in streams:
            stream.check_not_inside()
        self._desk.cancel.set()
        for stream in streams:
            stream.close()

    # -- inside -------------------------------------------------------------------------------------------------

    def _stream(self, run: Generator[Delta, None, Reply]) -> ReplyStream:
        stream = ReplyStream(run)
        with self._streams_lock:
            self._streams.add(stream)
        return stream

    def _reply(
        self, text: str, options: ReplyOptions, progress: ProgressCallback | None
    ) -> Generator[Delta, None, Reply]:
        with self._desk.editing():
            return (yield from self._answer("turn", text, self._desk.manifest, options, progress))

    def _reply_again(self, options: ReplyOptions, progress: ProgressCallback | None) -> Generator[Delta, None, Reply]:
        with self._desk.editing():
            text, manifest = self._again()
            return (yield from self._answer("retry", text, manifest, options, progress))

    def _again(self) -> tuple[str, Manifest]:
        """The last question, and the context before it."""
        manifest, history = self._desk.manifest, self._desk.history
        newest = history.newest(manifest)
        if newest is None:
            raise NothingToUndoError("there is no turn to try again; ask something first")
        return history.turn(newest.ref).user, manifest.without({newest.ref})

    def _answer(
        self,
        operation: str,
        text: str,
        manifest: Manifest,
        options: ReplyOptions,
        progress: ProgressCallback | None,
    ) -> Generator[Delta, None, Reply]:
        """The caller holds the turn; whoever reads on takes it over."""
        self._desk.cancel.clear()
        self._get_ready()
        retrieved = self._retrieved(text, manifest, options.max_tokens)
        manifest = retrieved.manifest
        fitted = self._fit_found(text, retrieved, options)
        try:
            done = yield from self._run(operation, fitted, options, progress)
        except ContextOverflowError:
            if self._loom.counts_exactly or self._budget.policy_name(manifest) == "stop":
                raise
            # An endpoint counts more than was estimated. The estimate has learned that; nothing was said yet.
            fitted = self._fit_found(text, retrieved, options)
            done = yield from self._run(operation, fitted, options, progress)
        sampled = done.sampled
        sources = retrieved.sources_in(self._desk.manifest)  # before a compression that the turn sets off
        notices = (*retrieved.notices, *filter(None, (fitted.notice(),)), *done.notices)
        notices += (*self._notices(), *self.after_turn())
        notices += self._loom.guard.take_notices(self._loom)
        left, back = (tuple(dict.fromkeys(s.ref for s in slots)) for slots in (fitted.left, fitted.back))
        return Reply(
            sampled.answer, sampled.finish_reason, done.usage, sampled.reasoning, notices, left, back, sources
        )  # fmt: skip

    def _run(
        self, operation: str, fitted: Fitted, options: ReplyOptions, progress: ProgressCallback | None
    ) -> Generator[Delta, None, Finished]:
        def commit(manifest: Manifest, record: TurnRecord) -> None:
            if fitted.operation:
                # What left is a state of its own: undo takes the turn back first, then this.
                self._desk.snapshot_before(fitted.operation)
                self._desk.commit(fitted.operation, manifest.without({record.id}))
            self._desk.commit(operation, manifest, record)

        run = self.runner.run(fitted.question, fitted.max_tokens, options, progress, commit)
        try:
            return (yield from self._followed(run))
        finally:
            run.close()

    def _get_ready(self) -> None:
        """Raises MemoryPressureError while new work is refused, EngineMemoryError where the cells cannot be had."""
        self._loom.guard.check()
        self._loom.ensure_window(self._desk.manifest.window)

    def _followed(self, run: Generator[Delta, None, Finished]) -> Generator[Delta, None, Finished]:
        while True:
            try:
                delta = next(run)
            except StopIteration as end:
                finished: Finished = end.value
                return finished
            yield delta
            self._desk.taken_by_this_thread()

    def _retrieved(self, text: str, manifest: Manifest, max_tokens: int | None) -> Retrieved:
        if not manifest.libraries:
            return Retrieved(with_passages(manifest, ()))
        question = self.question(text, manifest)
        return self._retrieval.passages_for(text, question.manifest, max_tokens, len(question.tokens))

    def _fit(self, text: str, manifest: Manifest, max_tokens: int | None) -> Fitted:
        return self._budget.fit(text, manifest, max_tokens, self.question, self.before_overflow)

    def _fit_found(self, text: str, retrieved: Retrieved, options: ReplyOptions) -> Fitted:
        """Raises NothingFoundError where a passage must be found and none is left."""
        fitted = self._fit(text, retrieved.manifest, options.max_tokens)
        if options.must_find and not retrieved.sources_in(fitted.question.manifest):
            raise NothingFoundError(f"{'; '.join(retrieved.notices) or NOTHING_AT_HAND}; {WHAT_HELPS}")
        return fitted

    def _notices(self) -> tuple[str, ...]:
        manifest = self._desk.manifest
        if self._has_said_fidelity or manifest.fidelity is Fidelity.EXACT or not manifest.active_chunk_ids:
            return ()
        self._has_said_fidelity = True
        return (SPLICE_NOTICE.format(mode=manifest.fidelity.value),)

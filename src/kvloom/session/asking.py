"""Asking: from a question's text to its reply, within the window, one at a time. Knows manifests and token ids.

What is done on the engine is the runner's business; what is logged, the desk's.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Generator
from typing import TYPE_CHECKING

from kvloom.context.manifest import Manifest
from kvloom.errors import ContextOverflowError, NothingToUndoError
from kvloom.session.desk import Desk
from kvloom.session.history import TurnRecord
from kvloom.session.reply import ReplyOptions, ReplyStream
from kvloom.session.turn import Finished, Question, TurnRunner
from kvloom.session.values import Delta, ProgressCallback, Reply, Warmed
from kvloom.types import F32Array, Fidelity

if TYPE_CHECKING:
    from kvloom.session.loom import Loom

SPLICE_NOTICE = (
    "{mode}: chunks are placed from KV computed on their own, so replies may differ slightly from a full prefill "
    "(kvloom bench fidelity measures it; fidelity exact avoids it)"
)


class Asking:
    """The questions of one session."""

    def __init__(self, loom: Loom, desk: Desk) -> None:
        self._loom = loom
        self._desk = desk
        self.runner = TurnRunner(loom, desk.history.id, desk.cancel)
        self._has_said_fidelity = bool(desk.manifest.turns)
        # Weak: a reply that nobody reads any more gives its turn back when it is collected.
        self._streams: weakref.WeakSet[ReplyStream] = weakref.WeakSet()
        self._streams_lock = threading.Lock()

    def ask(self, text: str, options: ReplyOptions, progress: ProgressCallback | None) -> ReplyStream:
        return self._stream(self._reply(text, options, progress))

    def ask_again(self, options: ReplyOptions, progress: ProgressCallback | None) -> ReplyStream:
        """The last question once more, of the context before it."""
        return self._stream(self._reply_again(options, progress))

    def question(self, text: str, manifest: Manifest | None = None) -> Question:
        """The question's token ids, and the manifest (the session's by default) as the template wants it behind it."""
        manifest = self._desk.manifest if manifest is None else manifest
        records = [self._desk.history.turn(slot.ref) for slot in manifest.turns]
        rendered, tokens = self._loom.prompts.question(manifest, records, text)
        return Question(rendered, text, tokens)

    def next_logits(self, text: str) -> F32Array:
        question = self.question(text)
        self._check_fits(question, None)
        return self.runner.next_logits(question)

    def warm(self, progress: ProgressCallback | None) -> Warmed:
        self._desk.cancel.clear()
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
            return (yield from self._answer("turn", self.question(text), options, progress))

    def _reply_again(self, options: ReplyOptions, progress: ProgressCallback | None) -> Generator[Delta, None, Reply]:
        with self._desk.editing():
            turns = self._desk.manifest.turns
            if not turns:
                raise NothingToUndoError("there is no turn to try again; ask something first")
            text = self._desk.history.turn(turns[-1].ref).user
            question = self.question(text, self._desk.manifest.without({turns[-1].ref}))
            return (yield from self._answer("retry", question, options, progress))

    def _answer(
        self, operation: str, question: Question, options: ReplyOptions, progress: ProgressCallback | None
    ) -> Generator[Delta, None, Reply]:
        """The caller holds the turn; whoever reads on takes it over."""
        self._desk.cancel.clear()
        max_tokens = self._check_fits(question, options.max_tokens)

        def commit(manifest: Manifest, record: TurnRecord) -> None:
            self._desk.commit(operation, manifest, record)

        run = self.runner.run(question, max_tokens, options, progress, commit)
        try:
            done = yield from self._followed(run)
        finally:
            run.close()
        sampled = done.sampled
        return Reply(sampled.answer, sampled.finish_reason, done.usage, sampled.reasoning, self._notices())

    def _followed(self, run: Generator[Delta, None, Finished]) -> Generator[Delta, None, Finished]:
        while True:
            try:
                delta = next(run)
            except StopIteration as end:
                finished: Finished = end.value
                return finished
            yield delta
            self._desk.taken_by_this_thread()

    def _check_fits(self, question: Question, max_tokens: int | None) -> int:
        """Tokens that the reply may take. Raises ContextOverflowError with the numbers and the ways out."""
        used, num_prompt_tokens = question.manifest.num_tokens, len(question.tokens)
        free = self._loom.window - used - num_prompt_tokens
        needed = used + num_prompt_tokens + (max_tokens or 1)
        if free < (max_tokens or 1):
            reply = f" + {max_tokens} for the reply" if max_tokens else ""
            raise ContextOverflowError(
                f"maximum context length is {self._loom.window} tokens: {used} in use + {num_prompt_tokens} for the "
                f"question{reply} = {needed}; switch chunks off, clear turns, shorten it, or open with --context "
                f"{needed} or more",
                num_needed_tokens=needed,
                num_window_tokens=self._loom.window,
            )
        return min(free, max_tokens or self._loom.settings.sampling.max_tokens)

    def _notices(self) -> tuple[str, ...]:
        manifest = self._desk.manifest
        if self._has_said_fidelity or manifest.fidelity is Fidelity.EXACT or not manifest.active_chunk_ids:
            return ()
        self._has_said_fidelity = True
        return (SPLICE_NOTICE.format(mode=manifest.fidelity.value),)

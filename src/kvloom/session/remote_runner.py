"""Carries out one turn at an endpoint: sends the messages, hands on what streams back, makes the turn.

The counterpart of the embedded engine's runner: which manifest comes next and what is logged is the session's business.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

from kvloom.context.manifest import Manifest, Tokens
from kvloom.engine.remote.base import ALL_SAMPLING, ChatRequest, Ending, IsCancelled, Piece
from kvloom.engine.remote.engine import stand_in_ids
from kvloom.errors import CancelledError, ContextOverflowError, EngineError, EngineUnsupportedError
from kvloom.session.history import History, TurnRecord
from kvloom.session.remote_marks import broken_word
from kvloom.session.reply import ReplyOptions, Sampled
from kvloom.session.turn import MAX_RESTARTS, Commit, Finished, Patience, Question
from kvloom.session.values import Delta, ProgressCallback, Warmed
from kvloom.text.reasoning import DEFAULT_TAGS, ReasoningSplitter, ReplyText
from kvloom.types import Fidelity, Usage

if TYPE_CHECKING:
    from kvloom.session.remote_loom import RemoteLoom

TEMPLATE_TOKENS = 4
"""What a template puts around a message, where nobody counts it."""
CUT_SHARE = 0.75
"""A prompt of which the server has read less than this, close to its window, was cut by it."""


@dataclass
class _Said:
    """A reply as far as it has come. `began`, `first`: when it was asked for, and its first text."""

    began: float
    answer: str = ""
    reasoning: str = ""
    first: float = 0.0

    def note(self, text: ReplyText) -> Generator[Delta, None, None]:
        """Add to the reply and hand out what has become clear."""
        if text.reasoning:
            self.reasoning += text.reasoning
            yield Delta(text.reasoning, is_reasoning=True)
        if text.answer:
            self.answer += text.answer
            yield Delta(text.answer)


class RemoteRunner:
    """Runs the turns of one session at its loom's endpoint, one at a time. `history`: none for a completion's."""

    def __init__(self, loom: RemoteLoom, cancel: threading.Event, history: History | None) -> None:
        self._loom = loom
        self._cancel = cancel
        self._history = history
        self._has_said_estimate = False
        self._told_broken: set[str] = set()

    def run(
        self,
        question: Question,
        max_tokens: int,
        options: ReplyOptions,
        progress: ProgressCallback | None,
        commit: Commit,
    ) -> Generator[Delta, None, Finished]:
        """The deltas of the reply. Whatever is raised (or closing early), the session is as before the turn."""
        del progress  # the server does not say how far it has come
        said = _Said(time.perf_counter())
        request, notices = self._request(question, max_tokens, options)
        try:
            ending = yield from self._streamed(request, said, options, self._cancel.is_set)
        except ContextOverflowError as error:
            self._learn_from(error, request)
            raise
        if not said.answer and not said.reasoning:
            raise EngineError(
                f"{self._loom.endpoint.where} gave an empty reply (finish reason: {ending.finish_reason}); the context "
                "is as before, ask again or otherwise"
            )
        usage = self._usage(question, said, ending)
        self._learn(request, said, ending)
        commit(*self._turn(question, said, ending, usage))
        notices = (*notices, *self._notices(request, ending))
        return Finished(_sampled(said, ending, usage.completion_tokens), usage, notices)

    def warm(self, manifest: Manifest, progress: ProgressCallback | None) -> tuple[Manifest, Warmed]:
        """Nothing can be computed ahead: what the server keeps of a prompt is its own business."""
        del progress
        return manifest, Warmed(0, 0, 0, 0, 0.0)

    def complete(self, question: Question, max_tokens: int, options: ReplyOptions, patience: Patience) -> Sampled:
        """A reply that is part of nothing, maybe empty. It gives way to others: the request ends, and is made anew.

        Raises CancelledError where `patience` ends, EngineError where others never leave it time.
        """
        request, _ = self._request(question, max_tokens, options)
        for _ in range(MAX_RESTARTS):
            said = _Said(time.perf_counter())
            run = self._streamed(request, said, options, patience.is_interrupted)
            try:
                while True:
                    next(run)
            except StopIteration as end:
                ending: Ending = end.value
                return _sampled(said, ending, ending.completion_tokens)
            except CancelledError:
                if not patience.wait():
                    raise
            finally:
                run.close()
        raise EngineError(f"a request was begun {MAX_RESTARTS} times, and others came first each time")

    def next_logits(self, question: Question) -> NoReturn:
        del question
        raise EngineUnsupportedError(f"logits cannot be had: {self._loom.engine.capabilities.why_not}")

    def close(self) -> None:
        """There is nothing to give back."""

    # -- inside -------------------------------------------------------------------------------------------------

    def _request(
        self, question: Question, max_tokens: int, options: ReplyOptions
    ) -> tuple[ChatRequest, tuple[str, ...]]:
        """What is sent, and what has to be said of it."""
        manifest, endpoint = question.manifest, self._loom.endpoint
        records = [self._history.turn(slot.ref) for slot in manifest.turns] if self._history is not None else []
        sampling = options.sampling(self._loom.settings.sampling.params())
        unknown = sorted(name for name in ALL_SAMPLING - endpoint.sampling if getattr(options, name) is not None)
        left_out: dict[str, Any] = dict.fromkeys(ALL_SAMPLING - endpoint.sampling)
        request = ChatRequest(
            messages=self._loom.remote_prompts.messages(manifest, records, question.text),
            max_tokens=max_tokens,
            sampling=replace(sampling, **left_out),
            stop=options.stop,
            num_prompt_tokens=manifest.num_tokens + len(question.tokens),
            window=self._loom.pool.window,
        )
        notices = [f"{', '.join(unknown)} left out: {endpoint.where} is not known to take it"] if unknown else []
        return request, (*notices, *self._broken_notice(request))

    def _broken_notice(self, request: ChatRequest) -> tuple[str, ...]:
        """Which words of the content were changed so that they stay text; each is told once."""
        words = {word for message in request.messages for word in message.broken} - self._told_broken
        if not words:
            return ()
        self._told_broken |= words
        first, where = min(words), self._loom.endpoint.where
        why = (
            f"are special tokens at {where}"
            if self._loom.remote_prompts.marks.is_certain
            else f"look like special tokens, and whether {where} would read them so cannot be told"
        )
        return (
            f"{', '.join(sorted(words))} in the content {why}: sent with a space in it ({broken_word(first)}), so that "
            "content stays data",
        )

    def _streamed(
        self, request: ChatRequest, said: _Said, options: ReplyOptions, is_cancelled: IsCancelled
    ) -> Generator[Delta, None, Ending]:
        splitter = ReasoningSplitter(DEFAULT_TAGS)
        ending = Ending("cancelled")
        flow = self._loom.endpoint.chat(request, is_cancelled)
        try:
            for item in flow:
                if isinstance(item, Ending):
                    ending = item
                    continue
                said.first = said.first or time.perf_counter()
                yield from said.note(_split(splitter, item))
        except CancelledError:
            if not options.keep_partial or not (said.answer or said.reasoning):
                raise
        finally:
            flow.close()
        yield from said.note(splitter.finish())
        return ending

    def _usage(self, question: Question, said: _Said, ending: Ending) -> Usage:
        """The server's numbers; ours, marked, where it gives none."""
        ended = time.perf_counter()
        prompt = ending.prompt_tokens or question.manifest.num_tokens + len(question.tokens)
        completion = ending.completion_tokens or self._loom.counts.number(said.answer + said.reasoning, False)
        cached = min(ending.cached_tokens, prompt)
        is_given = bool(ending.prompt_tokens and ending.completion_tokens)
        return Usage(
            prompt_tokens=prompt,
            reused_tokens=cached,
            loaded_tokens=0,
            computed_tokens=prompt - cached,
            rotated_tokens=0,
            recomputed_tokens=0,
            dropped_tokens=0,
            completion_tokens=completion,
            fidelity=Fidelity.EXACT,
            ttft_s=(said.first or ended) - said.began,
            total_s=ended - said.began,
            is_estimate=not is_given and not self._loom.counts_exactly,
        )

    def _learn(self, request: ChatRequest, said: _Said, ending: Ending) -> None:
        """Counts that came back teach the estimate."""
        counts = self._loom.counts
        if ending.prompt_tokens:
            text = "\n".join(message.content for message in request.messages)
            counts.learn(text, ending.prompt_tokens - TEMPLATE_TOKENS * (len(request.messages) + 1))
        num_answer = ending.completion_tokens - ending.reasoning_tokens
        if num_answer > 0 and (ending.reasoning_tokens or not said.reasoning):
            counts.remember(said.answer, num_answer)
            counts.learn(said.answer, num_answer)

    def _learn_from(self, error: ContextOverflowError, request: ChatRequest) -> None:
        """The server counts more than was estimated: the next try must not estimate the same again."""
        needed, counted = error.num_needed_tokens, request.num_prompt_tokens
        if needed - request.max_tokens > counted:  # some count the room for the reply, too
            needed -= request.max_tokens
        if needed <= counted < request.window:  # nobody has said a number: it is more than the window at least
            needed = request.window + 1
        if needed > counted:
            self._loom.counts.learn("\n".join(message.content for message in request.messages), needed)

    def _turn(self, question: Question, said: _Said, ending: Ending, usage: Usage) -> tuple[Manifest, TurnRecord]:
        """The next manifest. Of the reply it holds what will be sent again: the answer, not the reasoning."""
        num_reply = usage.completion_tokens
        if said.reasoning:
            num_reply = self._loom.counts.number(said.answer, False)
        history = self._history
        record = TurnRecord(
            uuid.uuid4().hex, question.text, said.answer, said.reasoning, ending.finish_reason, len(question.tokens),
            time.time(), history.next_ordinal() if history is not None else 0,
        )  # fmt: skip
        tokens = Tokens((*question.tokens, *stand_in_ids(said.answer, num_reply)))
        return question.manifest.with_turn(tokens, record.id), record

    def _notices(self, request: ChatRequest, ending: Ending) -> tuple[str, ...]:
        said, endpoint = [], self._loom.endpoint
        if not self._loom.counts_exactly and not self._has_said_estimate:
            self._has_said_estimate = True
            said.append(
                f"token counts are estimates: {endpoint.where} counts none before it computes them; they come nearer "
                "with every reply"
            )
        reason = self._loom.pool.take_reload_reason()
        if reason and ending.load_s > 1:
            said.append(f"{reason}: it took {ending.load_s:.1f} s")
        counted, window = request.num_prompt_tokens, request.window
        if 0 < ending.prompt_tokens < CUT_SHARE * counted and window and counted > CUT_SHARE * window:
            said.append(
                f"the server has read {ending.prompt_tokens} tokens of a prompt of about {counted}: it may have cut "
                f"off its beginning (window {window}); make the context smaller or the window larger"
            )
        return tuple(said)


def _split(splitter: ReasoningSplitter, piece: Piece) -> ReplyText:
    """Reasoning that the server has told apart, or that still stands in the text."""
    if piece.reasoning:
        return ReplyText(reasoning=piece.reasoning)
    return splitter.push(piece.text)


def _sampled(said: _Said, ending: Ending, num_tokens: int) -> Sampled:
    return Sampled(list(stand_in_ids(said.answer, num_tokens)), 0, said.answer, said.reasoning, ending.finish_reason)

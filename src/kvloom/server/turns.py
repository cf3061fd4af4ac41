"""A session's turns and compressions in the form in which the service counts, queues, runs and settles requests.

A turn is a lease on one session: what the service does with a model's replies, it does with these. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvloom.errors import CancelledError
from kvloom.server.backend import ModelInfo, Prepared, ToolPlan, ToolUse
from kvloom.server.sessions_open import OpenSession
from kvloom.session.reply import ReplyStream
from kvloom.session.requests import Completion, Dropped, Request, TextDelta
from kvloom.session.session import Session
from kvloom.session.values import CompressionEstimate, CompressionResult, Progress, ProgressCallback, Reply, TurnPlan
from kvloom.types import F32Array, Usage


@dataclass(frozen=True)
class Counted:
    """What a turn will take, before any work."""

    num_prompt_tokens: int
    max_tokens: int
    dropped: tuple[Dropped, ...] = ()


@dataclass(frozen=True)
class TurnEnd:
    """A turn as it stands in the session. `number` counts the turns of the context from 1."""

    reply: Reply
    id: str
    number: int


class Work(ABC):
    """One thing that a session is asked and that the model works for. Used once.

    `run` and `cancel` may be called from different threads; a cancel that comes late touches nobody else's turn.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._is_cancelled = False

    @abstractmethod
    def count(self, session: Session) -> Counted:
        """Exact for a turn. Raises ContextOverflowError, and what else would be raised at once."""

    def run(self, session: Session) -> Iterator[TextDelta]:
        """Raises CancelledError; the session is as before then."""
        with self._lock:
            if self._is_cancelled:
                raise CancelledError("cancelled before it began; the session is as before")
            self._session = session
        try:
            for delta in self._steps(session):
                yield delta
                self._follow()
        finally:
            with self._lock:
                self._session = None

    @property
    def is_cancelled(self) -> bool:
        return self._is_cancelled

    def cancel(self) -> None:
        with self._lock:
            self._is_cancelled = True
            if self._session is not None:
                self._session.cancel()

    @property
    @abstractmethod
    def completion(self) -> Completion:
        """There once `run` has ended."""

    @abstractmethod
    def _steps(self, session: Session) -> Iterator[TextDelta]: ...

    def _follow(self, progress: Progress | None = None) -> None:  # noqa: ARG002 - a progress callback, too
        """A turn that begins forgets what cancelled the one before: say it again where it came a moment too early."""
        with self._lock:
            if self._is_cancelled and self._session is not None:
                self._session.cancel()


class TurnWork(Work):
    """A question, or (text None) the last one again. `options`: what `Session.stream` takes beside text and length."""

    def __init__(self, text: str | None, max_tokens: int | None, options: Mapping[str, Any]) -> None:
        super().__init__()
        self._text = text
        self._max_tokens = max_tokens
        self._options = dict(options)
        self._end: TurnEnd | None = None

    def count(self, session: Session) -> Counted:
        planned: TurnPlan = session.plan(self._text, self._max_tokens)
        if session.policy == "stop":
            # A compression in the background may make room meanwhile: the reply takes what was reserved, not more.
            self._max_tokens = planned.max_tokens
        return Counted(planned.num_prompt_tokens, planned.max_tokens)

    @property
    def is_kept(self) -> bool:
        """Whether the turn is part of the session: whole, or as far as it came."""
        return self._end is not None

    @property
    def end(self) -> TurnEnd:
        assert self._end is not None, "asked before the end"
        return self._end

    @property
    def completion(self) -> Completion:
        reply = self.end.reply
        return Completion(reply.text, reply.reasoning, reply.finish_reason, reply.usage, notices=reply.notices)

    def _steps(self, session: Session) -> Iterator[TextDelta]:
        with self._stream(session, self._follow) as stream:
            for delta in stream:
                yield TextDelta(delta.text, delta.is_reasoning)
            turns = session.manifest.turns
            self._end = TurnEnd(stream.reply, turns[-1].ref, len(turns))

    def _stream(self, session: Session, progress: ProgressCallback) -> ReplyStream:
        options = {**self._options, "max_tokens": self._max_tokens, "progress": progress}
        if self._text is None:
            return session.retry_stream(**options)
        return session.stream(self._text, **options)


class CompressWork(Work):
    """A compression: what it reads counts as prompt, its summary as reply."""

    def __init__(self, strategy: str | None) -> None:
        super().__init__()
        self._strategy = strategy
        self._result: CompressionResult | None = None
        self._completion: Completion | None = None

    def count(self, session: Session) -> Counted:
        estimate = session.compress(self._strategy, dry_run=True)
        assert isinstance(estimate, CompressionEstimate)
        num_read = estimate.num_tokens_before if estimate.num_summary_tokens else 0
        return Counted(num_read, estimate.num_summary_tokens)

    @property
    def result(self) -> CompressionResult:
        assert self._result is not None, "asked before the end"
        return self._result

    @property
    def completion(self) -> Completion:
        assert self._completion is not None, "asked before the end"
        return self._completion

    def _steps(self, session: Session) -> Iterator[TextDelta]:
        result = session.compress(self._strategy, progress=self._follow)
        assert isinstance(result, CompressionResult)
        num_tokens = session.loom.count(result.summary) if result.summary else 0
        computed = result.computed_tokens
        usage = Usage(computed, 0, 0, computed, 0, 0, 0, num_tokens, session.fidelity, result.seconds)
        self._result, self._completion = result, Completion(result.summary, "", "stop", usage)
        return iter(())


class _Stream:
    """A work as the service's threads read replies. `answered` is called in their thread, before its end is told."""

    def __init__(self, work: Work, session: Session, answered: Callable[[], None]) -> None:
        self._work = work
        self._session = session
        self._answered = answered

    def __iter__(self) -> Iterator[TextDelta]:
        try:
            yield from self._work.run(self._session)
        finally:
            self._answered()

    @property
    def result(self) -> Completion:
        return self._work.completion

    def close(self) -> None:
        self._work.cancel()


class TurnLease:
    """One work of an open session, made on the event loop. Beside that it is the session's own lease.

    `answered`: the session may be edited and asked again. It comes before the client hears of the end, `ended` after
    everything was settled; each once.
    """

    def __init__(
        self, opened: OpenSession, work: Work, answered: Callable[[], None], ended: Callable[[], None]
    ) -> None:
        self.opened = opened
        self._work = work
        self._loop = asyncio.get_running_loop()
        self._answered: Callable[[], None] | None = answered
        self._ended: Callable[[], None] | None = ended
        self.info: ModelInfo = opened.lease.info

    def prepare(self, request: Request) -> Counted:  # noqa: ARG002 - the work knows what is asked
        return self._work.count(self.opened.session)

    def complete(self, prepared: Prepared, seed: int | None) -> _Stream:  # noqa: ARG002 - so is the seed
        return _Stream(self._work, self.opened.session, self._free_from_thread)

    def release(self) -> None:
        self._free()
        ended, self._ended = self._ended, None
        if ended is not None:
            ended()

    def _free_from_thread(self) -> None:
        self._loop.call_soon_threadsafe(self._free)

    def _free(self) -> None:
        answered, self._answered = self._answered, None
        if answered is not None:
            answered()

    # -- the session's lease ----------------------------------------------------------------------------------------

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        return self.opened.lease.tokenize(text, add_special=add_special)

    def detokenize(self, tokens: Sequence[int]) -> str:
        return self.opened.lease.detokenize(tokens)

    def embedding_tokens(self, texts: Sequence[str | Sequence[int]]) -> list[list[int]]:
        return self.opened.lease.embedding_tokens(texts)

    def embed(self, tokens: Sequence[Sequence[int]], is_cancelled: Callable[[], bool]) -> list[F32Array]:
        return self.opened.lease.embed(tokens, is_cancelled)

    def grammar_for(self, schema: Mapping[str, Any]) -> str:
        return self.opened.lease.grammar_for(schema)

    def tool_plan(self, use: ToolUse) -> ToolPlan:
        return self.opened.lease.tool_plan(use)

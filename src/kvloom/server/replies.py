"""The replies of one HTTP request: each runs in a worker thread, their deltas come together on the event loop.

Knows tickets, streams and events; no HTTP and no shape. The engine is never held up by a reader: what a client has not
read yet waits here, which is at most the replies themselves.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from kvloom.errors import CancelledError
from kvloom.server.admission import Ticket
from kvloom.server.backend import CompletionStream, ModelLease, Prepared
from kvloom.session.requests import Completion, Dropped, TextDelta

CANCELLED = "cancelled"
"""The finish reason of a reply that was ended from outside."""


@dataclass(frozen=True)
class DeltaEvent:
    """More of one reply."""

    choice: int
    delta: TextDelta


@dataclass(frozen=True)
class EndEvent:
    """One reply is whole, or was cancelled. `num_reasoning_tokens` are among its completion tokens."""

    choice: int
    completion: Completion
    num_reasoning_tokens: int


@dataclass(frozen=True)
class _FailEvent:
    choice: int
    error: BaseException


ReplyEvent = DeltaEvent | EndEvent
_Posted = DeltaEvent | EndEvent | _FailEvent


@dataclass(frozen=True)
class Outcome:
    """How a request's replies ended. `num_tokens`: of all replies, those that were cancelled included.

    `has_worked`: the engine has given something for it. A failure by our own fault gives nothing that counts.
    """

    completions: tuple[Completion, ...]
    num_tokens: int
    has_worked: bool
    first_delta_s: float | None


@dataclass(frozen=True)
class Planned:
    """One reply to make: a prepared prompt, and how its tokens are drawn."""

    prepared: Prepared
    seed: int | None


class _Worker:
    """Runs one reply in the thread that calls `run`; may be cancelled from any."""

    def __init__(self, choice: int, lease: ModelLease, planned: Planned, post: Callable[[_Posted], None]) -> None:
        self._choice = choice
        self._lease = lease
        self._planned = planned
        self._post = post
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._stream: CompletionStream | None = None
        self.num_deltas = 0

    def run(self) -> None:
        try:
            completion = self._complete()
            reasoning = self._lease.tokenize(completion.reasoning, add_special=False)
            self._post(EndEvent(self._choice, completion, len(reasoning)))
        except BaseException as error:  # noqa: BLE001 - a thread's edge: the event loop hears of it
            self._post(_FailEvent(self._choice, error))

    def cancel(self) -> None:
        with self._lock:
            self._cancelled.set()
            stream = self._stream
        if stream is not None:
            stream.close()

    def _complete(self) -> Completion:
        if self._cancelled.is_set():
            raise CancelledError("cancelled before it began")
        stream = self._lease.complete(self._planned.prepared, self._planned.seed)
        with self._lock:
            self._stream = stream
            is_cancelled = self._cancelled.is_set()
        if is_cancelled:
            stream.close()
        for delta in stream:
            self.num_deltas += 1
            self._post(DeltaEvent(self._choice, delta))
        return stream.result


class Replies:
    """Runs `plans`, one ticket each. Created and read on the event loop.

    `run` is the work itself: it goes on until every reply has ended, whoever reads `events`.
    """

    def __init__(self, lease: ModelLease, plans: Sequence[Planned], tickets: Sequence[Ticket]) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[_Posted] = asyncio.Queue()
        self._tickets = tickets
        self._workers = [_Worker(i, lease, planned, self._from_thread) for i, planned in enumerate(plans)]
        self.dropped: tuple[Dropped, ...] = plans[0].prepared.dropped
        """What a policy left out of the first prompt; where there are several, none is left out of any."""
        self.num_reasoning_tokens = 0
        """Of the replies that have ended."""
        self._completions: dict[int, Completion] = {}
        self._is_failed = False
        self._first_delta_s: float | None = None
        self._first: ReplyEvent | None = None
        self._started_s = time.monotonic()

    @property
    def num_choices(self) -> int:
        return len(self._workers)

    @property
    def waits_s(self) -> tuple[float, ...]:
        """How long each waited for its slot; of those that got one."""
        return tuple(ticket.waited_s for ticket in self._tickets if ticket.is_running)

    async def run(self, pool: ThreadPoolExecutor) -> Outcome:
        """Wait for the slots, run, and give them back."""
        await asyncio.gather(*(self._one(i, pool) for i in range(self.num_choices)))
        # What the threads posted came before their ends did, in the loop's order: all of it is here.
        completions = tuple(self._completions[i] for i in sorted(self._completions))
        done = {i: completion.usage.completion_tokens for i, completion in self._completions.items()}
        num_tokens = sum(done.get(i, worker.num_deltas) for i, worker in enumerate(self._workers))
        has_worked = bool(completions or num_tokens) and not self._is_failed
        return Outcome(completions, num_tokens, has_worked, self._first_delta_s)

    def cancel(self) -> None:
        """End every reply within one step; those that wait never begin."""
        for worker, ticket in zip(self._workers, self._tickets, strict=True):
            worker.cancel()
            if not ticket.is_running:
                ticket.leave()

    async def began(self, patience_s: float) -> None:
        """Wait for the first event, at most so long: what fails before it can still be answered with a status."""
        with suppress(TimeoutError):
            self._first = await asyncio.wait_for(self._taken(), patience_s)

    async def events(self) -> AsyncIterator[ReplyEvent]:
        """Deltas as they come and one end for each reply. The first error ends them all, and is raised."""
        num_open = self.num_choices
        try:
            while num_open:
                event, self._first = self._first, None
                event = event or await self._taken()
                if isinstance(event, EndEvent):
                    num_open -= 1
                yield event
        finally:
            if num_open:
                self.cancel()

    async def completions(self) -> list[Completion]:
        """The replies, whole, by choice. Raises the first error."""
        ends = [event async for event in self.events() if isinstance(event, EndEvent)]
        return [end.completion for end in sorted(ends, key=lambda end: end.choice)]

    async def _taken(self) -> ReplyEvent:
        posted = await self._events.get()
        if isinstance(posted, _FailEvent):
            self.cancel()
            raise posted.error
        if isinstance(posted, EndEvent) and posted.completion.finish_reason == CANCELLED:
            # Whoever still reads did not cancel it: it must not look like a reply that is whole.
            self.cancel()
            raise CancelledError("the reply was cancelled")
        return posted

    async def _one(self, index: int, pool: ThreadPoolExecutor) -> None:
        ticket = self._tickets[index]
        try:
            if await ticket.admitted():
                await self._loop.run_in_executor(pool, self._workers[index].run)
            else:
                self._post(_FailEvent(index, CancelledError("cancelled before its turn")))
        except Exception as error:  # noqa: BLE001 - the edge of this reply: its reader hears of it
            self._post(_FailEvent(index, error))
        finally:
            ticket.leave()

    def _from_thread(self, posted: _Posted) -> None:
        self._loop.call_soon_threadsafe(self._post, posted)

    def _post(self, posted: _Posted) -> None:
        if isinstance(posted, DeltaEvent) and self._first_delta_s is None:
            self._first_delta_s = time.monotonic() - self._started_s
        if isinstance(posted, EndEvent):
            self._completions[posted.choice] = posted.completion
            self.num_reasoning_tokens += posted.num_reasoning_tokens
        if isinstance(posted, _FailEvent) and not isinstance(posted.error, CancelledError):
            self._is_failed = True
        self._events.put_nowait(posted)

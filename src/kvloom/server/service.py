"""From an accepted request to its running replies: lease, count, reserve, queue, run, settle. Knows no shape."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from kvloom.config import ServerSettings
from kvloom.errors import ContextOverflowError
from kvloom.server.admission import Admission
from kvloom.server.auth import Caller, Quota, Reservation
from kvloom.server.backend import Backend, ModelLease, Prepared
from kvloom.server.errors import context_overflow, invalid_value
from kvloom.server.lifecycle import Lifecycle
from kvloom.server.logs import RequestNotes
from kvloom.server.metrics import Metrics, RepliedRequest, operation_of
from kvloom.server.replies import Outcome, Planned, Replies
from kvloom.session.requests import Request

log = logging.getLogger(__name__)

NUM_SIDE_THREADS = 4
"""Threads for what is short beside a reply: counting prompts, tokenizing."""

CLOSING_S = 5.0
"""A cancelled reply ends within a step of the engine; what takes longer than this is given up."""

T = TypeVar("T")


class Service:
    """One server's parts, joined. Lives on one event loop."""

    def __init__(self, backend: Backend, settings: ServerSettings, quota: Quota) -> None:
        self.backend = backend
        self.settings = settings
        self.quota = quota
        self.lifecycle = Lifecycle()
        self.metrics = Metrics()
        self.admission = Admission(settings.slots, settings.queue_size, settings.queue_timeout_s)
        self._reply_threads = ThreadPoolExecutor(settings.slots, thread_name_prefix="kvloom-reply")
        self._side_threads = ThreadPoolExecutor(NUM_SIDE_THREADS, thread_name_prefix="kvloom-side")
        self._running: set[Replies] = set()
        self._is_closed = False
        self.before_close: list[Callable[[], Awaitable[None]]] = []
        """What others keep of the backend and give back before it is closed."""
        self.failure: Exception | None = None
        """Why the backend could not start."""

    async def start(self) -> None:
        """Start the backend; a failure is kept in `failure` for whoever runs the server."""
        try:
            await self.backend.start()
        except Exception as error:  # noqa: BLE001 - the edge of the program's start: it ends with this error
            self.failure = error
        else:
            self.lifecycle.serve()

    async def aside(self, work: Callable[..., T], *args: object) -> T:
        """Run something short that blocks, away from the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._side_threads, work, *args)

    async def in_slot(self, work: Callable[..., T], *args: object) -> T:
        """Run what computes, away from the event loop. The caller has been admitted: each slot has a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._reply_threads, work, *args)

    @asynccontextmanager
    async def call(self, model: str, caller: Caller, notes: RequestNotes) -> AsyncIterator[Call]:
        """A caller's use of a model. What it does not start is released when the block ends."""
        self.lifecycle.check()
        lease = await self.backend.acquire(model, caller.tenant)
        call = Call(self, lease, caller, notes)
        notes.tell(model=lease.info.id)
        try:
            yield call
        finally:
            if not call.is_started:
                lease.release()

    async def drain(self) -> None:
        """Take nothing new, let replies finish, cancel what is left after `drain_timeout_s`."""
        self.lifecycle.drain()
        if await self.lifecycle.idle(self.settings.drain_timeout_s):
            return
        log.warning("%d requests still run after %g s and are cancelled", self.lifecycle.num_running,
                    self.settings.drain_timeout_s)  # fmt: skip
        for replies in list(self._running):
            replies.cancel()
        await self.lifecycle.idle(CLOSING_S)

    async def close(self) -> None:
        """Cancel what runs, and free the backend. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        for replies in list(self._running):
            replies.cancel()
        await self.lifecycle.idle(CLOSING_S)
        for give_back in self.before_close:
            await give_back()
        await self.backend.close()
        self._side_threads.shutdown(wait=False, cancel_futures=True)
        self._reply_threads.shutdown(wait=False, cancel_futures=True)

    async def run(self, replies: Replies) -> Outcome:
        """Run replies to their end, and keep them where a drain finds them."""
        self._running.add(replies)
        try:
            return await replies.run(self._reply_threads)
        finally:
            self._running.discard(replies)


@dataclass
class Call:
    """A leased model, and what one HTTP request makes of it."""

    service: Service
    lease: ModelLease
    caller: Caller
    notes: RequestNotes
    is_started: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    """What goes out with the answer: the rate limits."""
    operation: str = ""
    choices_each: int = 1

    async def start(self, requests: Sequence[Request], seeds: Sequence[int | None]) -> Replies:
        """Count, reserve, queue; the replies run from here on, and are settled when they end, read or not.

        `requests`: one for each prompt; each gets as many choices as there are seeds, side by side. Raises ApiError for
        what does not fit the window, the quota or the queue.
        """
        prepared = [await self._prepare(request) for request in requests]
        plans = [Planned(one, seed) for one in prepared for seed in seeds]
        most = self.service.settings.max_choices
        if len(plans) > most:
            message = (
                f"{len(plans)} replies are asked for; at most {most} are made at once (setting server.max_choices)"
            )
            raise invalid_value("n", message)
        num_prompt_tokens = sum(one.num_prompt_tokens for one in prepared)
        num_reply_tokens = sum(planned.prepared.max_tokens for planned in plans)
        reservation = await self.reserve(num_prompt_tokens + num_reply_tokens)
        try:
            tickets = self.service.admission.enter(self.caller.tenant, len(plans))
        except BaseException:
            await reservation.release()
            raise
        replies = Replies(self.lease, plans, tickets)
        self.is_started = True
        self.choices_each, self.operation = len(seeds), operation_of(requests[0])
        self.notes.work = self.service.lifecycle.run(self._run(replies, reservation, num_prompt_tokens))
        return replies

    async def reserve(self, num_tokens: int) -> Reservation:
        """Set aside what the work may take at most. Whoever calls settles or releases it."""
        reservation = await self.service.quota.reserve(self.caller, num_tokens, self.notes.request_id)
        self.headers.update(reservation.headers)
        return reservation

    async def _prepare(self, request: Request) -> Prepared:
        try:
            return await self.service.aside(self.lease.prepare, request)
        except ContextOverflowError as exc:
            num_prompt_tokens = exc.num_needed_tokens - (request.max_tokens or 1)
            raise context_overflow(str(exc), num_prompt_tokens, exc.num_window_tokens) from exc

    async def _run(self, replies: Replies, reservation: Reservation, num_prompt_tokens: int) -> None:
        try:
            outcome = await self.service.run(replies)
            self.notes.tell(**report(outcome))
            self.service.metrics.replied(
                RepliedRequest(
                    self.lease.info.id, self.operation, outcome.completions, self.choices_each,
                    outcome.first_delta_s, replies.waits_s,
                )
            )  # fmt: skip
            if not outcome.has_worked:
                await reservation.release()
            else:
                await reservation.settle(num_prompt_tokens + outcome.num_tokens)
        except Exception:
            log.exception("request %s could not be settled", self.notes.request_id)
        finally:
            self.lease.release()


def report(outcome: Outcome) -> Mapping[str, object]:
    """What a log says of a request's replies."""
    first = outcome.completions[0].usage if outcome.completions else None
    return {
        "completion_tokens": outcome.num_tokens,
        "prompt_tokens": first.prompt_tokens if first else None,
        "cached_tokens": first.reused_tokens + first.loaded_tokens if first else None,
        "finish": ",".join(completion.finish_reason for completion in outcome.completions) or None,
        "first_delta_s": round(outcome.first_delta_s, 4) if outcome.first_delta_s is not None else None,
    }

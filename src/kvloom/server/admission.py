"""Who may run: a bounded queue before a bounded number of slots, fair between tenants. Knows no request and no model.

All of it lives on one event loop; nothing here blocks or locks.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable

from kvloom.server.errors import ApiError, unavailable

FIRST_GUESS_S = 5.0
"""How long a slot is held, before any reply has shown it."""

LEARNING_RATE = 0.2
"""Weight of the latest reply in the mean time that a slot is held."""

MAX_RETRY_S = 60.0
"""A client is never told to stay away longer than this: load changes faster than a mean."""


class Ticket:
    """A place in the queue, then a slot, until it leaves."""

    def __init__(self, admission: Admission, tenant: str) -> None:
        self.tenant = tenant
        self._admission = admission
        self._turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._entered_s = admission._clock()
        self._started_s: float | None = None

    @property
    def is_running(self) -> bool:
        """Whether it got a slot, which it may have given back since."""
        return self._started_s is not None

    @property
    def waited_s(self) -> float:
        """How long it waited for its slot; 0 before it has one."""
        return 0.0 if self._started_s is None else self._started_s - self._entered_s

    async def admitted(self) -> bool:
        """Wait for a slot; false where the ticket left before its turn. Raises ApiError (503) where that takes long."""
        try:
            # Shielded: a waiter that gives up must not take the turn of the ticket with it.
            return await asyncio.wait_for(asyncio.shield(self._turn), self._admission.patience_s)
        except TimeoutError:
            if self._turn.done():
                return self._turn.result()
            self.leave()
            raise self._admission.too_long() from None
        except asyncio.CancelledError:
            self.leave()
            raise

    def leave(self) -> None:
        """Give the slot back, or the place in the queue. Idempotent."""
        self._admission._leave(self)


class Admission:
    """`num_slots` run at once, `queue_size` wait; a tenant's turn comes around as often as any other's."""

    def __init__(
        self, num_slots: int, queue_size: int, patience_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.num_slots = num_slots
        self.queue_size = queue_size
        self.patience_s = patience_s
        self._clock = clock
        self._running: set[Ticket] = set()
        self._waiting: OrderedDict[str, deque[Ticket]] = OrderedDict()
        self._mean_hold_s = FIRST_GUESS_S

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return sum(len(queue) for queue in self._waiting.values())

    def enter(self, tenant: str, count: int = 1) -> list[Ticket]:
        """`count` tickets, or none: raises ApiError (503 with Retry-After) where they do not all fit the queue."""
        free = max(0, self.num_slots - self.num_running - self.num_waiting)
        if self.num_waiting + max(0, count - free) > self.queue_size:
            raise unavailable(
                f"the queue is full: {self.num_running} replies run and {self.num_waiting} of at most"
                f" {self.queue_size} requests wait; ask again after the time in Retry-After",
                "queue_full",
                self.retry_after_s(count),
            )
        tickets = [Ticket(self, tenant) for _ in range(count)]
        self._waiting.setdefault(tenant, deque()).extend(tickets)
        self._fill()
        return tickets

    def retry_after_s(self, count: int = 1) -> float:
        """When there is probably room for `count` more."""
        return min(MAX_RETRY_S, self._mean_hold_s * max(1, count) / self.num_slots)

    def too_long(self) -> ApiError:
        message = f"no slot became free within {self.patience_s:g} s; ask again after the time in Retry-After"
        return unavailable(message, "queue_timeout", self.retry_after_s())

    def _leave(self, ticket: Ticket) -> None:
        if ticket in self._running:
            self._running.discard(ticket)
            assert ticket._started_s is not None
            held_s = self._clock() - ticket._started_s
            self._mean_hold_s += LEARNING_RATE * (held_s - self._mean_hold_s)
        else:
            queue = self._waiting.get(ticket.tenant)
            if queue is not None and ticket in queue:
                queue.remove(ticket)
                if not queue:
                    del self._waiting[ticket.tenant]
        if not ticket._turn.done():
            ticket._turn.set_result(False)
        self._fill()

    def _fill(self) -> None:
        while self._waiting and self.num_running < self.num_slots:
            tenant, queue = next(iter(self._waiting.items()))
            ticket = queue.popleft()
            del self._waiting[tenant]
            if queue:
                self._waiting[tenant] = queue  # behind the others
            ticket._started_s = self._clock()
            self._running.add(ticket)
            if not ticket._turn.done():
                ticket._turn.set_result(True)

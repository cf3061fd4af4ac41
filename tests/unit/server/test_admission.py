"""Who runs and who waits: slots, a bounded queue, turns between tenants, places given back."""

from __future__ import annotations

import asyncio

import pytest

from kvloom.server.admission import Admission, Ticket
from kvloom.server.errors import ApiError

pytestmark = pytest.mark.anyio


async def settle() -> None:
    """Let every task that can go on go on."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_as_many_run_as_there_are_slots_and_the_next_waits_for_its_turn() -> None:
    admission = Admission(2, 10, 60.0)
    first, second, third = admission.enter("a", 3)
    assert await first.admitted() and await second.admitted()
    waiting = asyncio.ensure_future(third.admitted())
    await settle()
    assert not waiting.done()
    assert (admission.num_running, admission.num_waiting) == (2, 1)
    first.leave()
    assert await waiting
    assert (admission.num_running, admission.num_waiting) == (2, 0)


async def test_a_full_queue_refuses_all_or_nothing_and_says_when_to_come_again() -> None:
    admission = Admission(1, 2, 60.0)
    admission.enter("a", 2)  # one runs, one waits
    with pytest.raises(ApiError) as refused:
        admission.enter("b", 2)
    assert (refused.value.status, refused.value.code) == (503, "queue_full")
    assert int(refused.value.headers["retry-after"]) >= 1
    assert admission.num_waiting == 1  # none of the two came in
    admission.enter("b", 1)
    with pytest.raises(ApiError):
        admission.enter("c", 1)


async def test_tenants_take_turns_however_many_requests_one_of_them_has() -> None:
    admission = Admission(1, 100, 60.0)
    (running,) = admission.enter("greedy")
    tickets = [*admission.enter("greedy", 4), *admission.enter("modest", 2), *admission.enter("third", 1)]
    order = []
    current: Ticket = running
    for _ in tickets:
        current.leave()
        current = next(ticket for ticket in tickets if ticket.is_running and ticket not in order)
        order.append(current)
    names = [ticket.tenant for ticket in order]
    assert names == ["greedy", "modest", "third", "greedy", "modest", "greedy", "greedy"]


async def test_who_leaves_while_waiting_is_forgotten() -> None:
    admission = Admission(1, 10, 60.0)
    running, gone, stays = admission.enter("a", 3)
    waiting = asyncio.ensure_future(gone.admitted())
    await settle()
    gone.leave()
    assert await waiting is False
    running.leave()
    assert await stays.admitted()
    assert admission.num_waiting == 0


async def test_a_waiter_that_is_cancelled_gives_its_place_back() -> None:
    admission = Admission(1, 10, 60.0)
    running, cancelled, last = admission.enter("a", 3)
    waiting = asyncio.ensure_future(cancelled.admitted())
    await settle()
    waiting.cancel()
    await asyncio.wait({waiting})
    assert admission.num_waiting == 1
    running.leave()
    assert await last.admitted()


async def test_leaving_twice_gives_one_slot_back() -> None:
    admission = Admission(1, 10, 60.0)
    (first,) = admission.enter("a")
    first.leave()
    first.leave()
    (second,) = admission.enter("a")
    (third,) = admission.enter("a")
    first.leave()
    assert second.is_running and not third.is_running


async def test_patience_ends_with_an_answer() -> None:
    admission = Admission(1, 10, 0.01)
    running, waiting = admission.enter("a", 2)
    with pytest.raises(ApiError) as refused:
        await waiting.admitted()
    assert refused.value.code == "queue_timeout"
    assert admission.num_waiting == 0
    running.leave()
    assert admission.num_running == 0


async def test_the_time_to_come_again_is_learnt_from_how_long_slots_are_held() -> None:
    now = [0.0]
    admission = Admission(1, 0, 60.0, clock=lambda: now[0])
    for _ in range(30):
        (ticket,) = admission.enter("a")
        now[0] += 20.0
        ticket.leave()
    assert 15 < admission.retry_after_s() <= 20
    assert admission.retry_after_s(count=100) == 60.0

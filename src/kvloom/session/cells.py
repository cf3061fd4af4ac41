"""Waiting for cells: work that finds too few gives back what it holds, and begins anew when another has ended.

Requests and the turns of sessions stand in one line. Knows no manifest and no reply.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from kvloom.context.device import Holding
from kvloom.errors import CancelledError, EngineMemoryError
from kvloom.session.composer import Composed

if TYPE_CHECKING:
    from kvloom.session.loom import Loom


def begun(
    loom: Loom,
    owner: str,
    compose: Callable[[Holding], Composed],
    is_cancelled: Callable[[], bool],
    on_wait: Callable[[int], None] = lambda _: None,
    before: Callable[[], None] = lambda: None,
) -> tuple[Holding, Composed]:
    """The owner's holding as `compose` has made it, at work: nobody takes it away before it ends.

    Whoever waits holds no cell and no sequence, so no two wait for each other. `on_wait` is told how many replies are
    under way before each wait, `before` is called before the owner gets its holding. The caller holds the device's
    lock. Raises CancelledError, and EngineMemoryError where all cells together are too few, or where none became free
    within `server.queue_timeout_s`.
    """
    device, patience_s = loom.device, loom.settings.server.queue_timeout_s
    end_s = time.monotonic() + patience_s

    def must_end() -> bool:
        return is_cancelled() or time.monotonic() >= end_s

    with device.line.place() as place:
        while True:
            device.line.wait(place, must_end)
            if is_cancelled():
                raise CancelledError("cancelled while it waited for others to end")
            try:
                if loom.pool.is_released:  # memory was short, and the guard lets new work in again
                    loom.pool.ensure(loom.pool.window)
                before()
                holding = device.holding(owner)
                composed = compose(holding)
            except EngineMemoryError as error:
                device.release_owner(owner)
                num_busy = device.num_busy()
                if not num_busy:
                    raise
                if time.monotonic() >= end_s:
                    raise EngineMemoryError(
                        f"no cells became free within {patience_s:g} s, {num_busy} replies are under way ({error}); "
                        "ask again, let replies end that nobody reads, or raise server.queue_timeout_s"
                    ) from error
                device.line.found_too_few(place)
                on_wait(num_busy)
                device.wait_for_another(must_end)
                continue
            holding.is_busy = True
            device.line.was_let_in(place)
            return holding, composed

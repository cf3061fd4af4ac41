"""Whether the server loads, serves or drains, and what still runs. Knows no request."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from enum import Enum
from typing import Any, TypeVar

from kvloom.server.errors import unavailable

T = TypeVar("T")

LOADING_RETRY_S = 5
"""A model takes seconds to load."""


class Phase(Enum):
    """LOADING answers nothing but /health, SERVING everything, DRAINING finishes what runs and takes nothing new."""

    LOADING = "loading"
    SERVING = "ok"
    DRAINING = "draining"


class Lifecycle:
    """One server's phase, and its running work."""

    def __init__(self) -> None:
        self._phase = Phase.LOADING
        self._loaded = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def phase(self) -> Phase:
        return self._phase

    def serve(self) -> None:
        """What was to be loaded is there. A server that drains already goes on draining."""
        if self._phase is Phase.LOADING:
            self._phase = Phase.SERVING
        self._loaded.set()

    def drain(self) -> None:
        """Nothing new from here on."""
        self._phase = Phase.DRAINING

    async def loaded(self) -> None:
        """Wait for `serve`."""
        await self._loaded.wait()

    def check(self) -> None:
        """Raises ApiError (503) while nothing new is taken."""
        if self.phase is Phase.LOADING:
            raise unavailable("the server is loading its model; ask again", "loading", LOADING_RETRY_S)
        if self.phase is Phase.DRAINING:
            raise unavailable("the server is shutting down and takes nothing new", "draining", LOADING_RETRY_S)

    def run(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Work that a draining server waits for, whoever asked for it may leave."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @property
    def num_running(self) -> int:
        return len(self._tasks)

    async def idle(self, timeout_s: float) -> bool:
        """Wait until nothing runs; whether that was so before the time was over."""
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        while self._tasks:
            left = until - loop.time()
            if left <= 0:
                return False
            await asyncio.wait(set(self._tasks), timeout=left)
        return True

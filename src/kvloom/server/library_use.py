"""Who uses which library now, so that none is deleted under a reader and not too much is read at once.

Lives on one event loop; nothing here blocks. Knows no route and no index.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from kvloom.server.errors import ApiError

NUM_READERS = 2
"""Documents that are read and cut at once: each may take seconds, and sessions' edits need threads, too."""

Key = tuple[str, str]
"""A tenant, and a library's name."""


class LibraryUse:
    """The uses of one server's libraries."""

    def __init__(self) -> None:
        self._users: Counter[Key] = Counter()
        self._alone: set[Key] = set()
        self._computing: set[str] = set()
        self._turn = asyncio.Lock()
        self.reading = asyncio.Semaphore(NUM_READERS)

    @contextmanager
    def using(self, key: Key) -> Iterator[None]:
        """Beside others that use it. Raises ApiError (409) while it is made or deleted."""
        if key in self._alone:
            raise _busy(f"library {key[1]!r} is being made or deleted: ask again in a moment")
        self._users[key] += 1
        try:
            yield
        finally:
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key]

    @contextmanager
    def alone(self, key: Key) -> Iterator[None]:
        """With nobody else using it. Raises ApiError (409)."""
        if key in self._alone or self._users[key]:
            raise _busy(f"library {key[1]!r} is in use: ask again when its other requests have ended")
        self._alone.add(key)
        try:
            yield
        finally:
            self._alone.discard(key)

    @asynccontextmanager
    async def computing(self, tenant: str) -> AsyncIterator[None]:
        """For computing ahead: one at a time, since all use the same rows of the device. A tenant waits with one only.

        Raises ApiError (409) where the tenant has one already.
        """
        if tenant in self._computing:
            raise _busy("passages are being computed for you already: wait for that answer")
        self._computing.add(tenant)
        try:
            async with self._turn:
                yield
        finally:
            self._computing.discard(tenant)


def _busy(message: str) -> ApiError:
    return ApiError(409, message, code="library_busy")

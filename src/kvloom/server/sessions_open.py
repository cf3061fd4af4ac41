"""The sessions that are open on this server, each tenant's apart: opened when asked for, closed when idle.

Lives on one event loop; everything of the session room runs in threads of its own here. Knows no route and no shape.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable

from kvloom.errors import EngineUnsupportedError, KvloomError, SessionBusyError, SessionClosedError, UnknownSessionError
from kvloom.server.backend import Backend, ModelLease
from kvloom.server.errors import ApiError, unavailable
from kvloom.session.loom import Loom
from kvloom.session.session import Session
from kvloom.types import SessionId

NUM_THREADS = 8
"""Edits and looks that run at once; each takes milliseconds. Replies have the slots' threads."""

MAX_OPEN = 64
"""Open sessions of all tenants: each holds a lock file, its log's index and, while there is room, its cells."""

LONGEST_NAP_S = 30.0
SHORTEST_NAP_S = 0.005

T = TypeVar("T")
Key = tuple[str, SessionId]

log = logging.getLogger(__name__)


@runtime_checkable
class HasLoom(Protocol):
    """A lease that can do more than OpenAI's API needs: it gives the tenant's own loom."""

    @property
    def loom(self) -> Loom: ...


@runtime_checkable
class AsksBack(Protocol):
    """A backend that may need back what is kept open for nobody, before it refuses a model."""

    @property
    def keepers(self) -> list[Callable[[], Awaitable[None]]]: ...


class Cancellable(Protocol):
    """Something under way, which ends within one step when it is told to."""

    def cancel(self) -> None: ...


def loom_of(lease: ModelLease) -> Loom:
    """The tenant's loom behind a lease. Raises EngineUnsupportedError."""
    if not isinstance(lease, HasLoom):
        raise EngineUnsupportedError(f"the model {lease.info.id} keeps no chunks and no sessions here")
    return lease.loom


class OpenSession:
    """A session while it is open here, and the lease that its model is kept loaded by."""

    def __init__(self, key: Key, session: Session, lease: ModelLease) -> None:
        self.key = key
        self.session = session
        self.lease = lease
        self.editing = asyncio.Lock()
        self.num_users = 0
        self.is_asked = False
        """Whether a turn runs or waits for its slot. Nobody edits meanwhile."""
        self.work: Cancellable | None = None
        self.last_used_s = 0.0

    @property
    def is_idle(self) -> bool:
        return not self.num_users and not self.session.is_compressing

    def check_not_asked(self) -> None:
        if self.is_asked:
            raise SessionBusyError(
                f"session {self.session.id} is answering: wait for its reply, or end it with POST "
                f"/v1/kvloom/sessions/{self.session.id}/cancel"
            )


class OpenSessions:
    """`idle_s`: a session that nobody asks for so long is closed; it opens again by itself."""

    def __init__(
        self, backend: Backend, idle_s: float, max_open: int = MAX_OPEN, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._backend = backend
        self._idle_s = idle_s
        self._max_open = max_open
        self._clock = clock
        self._open: dict[Key, OpenSession] = {}
        self._changing: dict[Key, asyncio.Task[Any]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._creating: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._reaper: asyncio.Task[None] | None = None
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="kvloom-session")
        self._is_closed = False
        if isinstance(backend, AsksBack):
            backend.keepers.append(self.close_idle)

    @property
    def num_open(self) -> int:
        return len(self._open)

    async def run(self, work: Callable[..., T], *args: Any, **options: Any) -> T:
        """Something of the session room that blocks, away from the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *args, **options))

    async def whole(self, work: Coroutine[Any, Any, T]) -> T:
        """Work that goes on to its end, whoever asked for it may leave."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    # -- using ----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def looking(self, tenant: str, session: SessionId, model: str) -> AsyncIterator[OpenSession]:
        """A stored session, opened; `model` "": its own. Raises UnknownSessionError, SessionBusyError."""
        opened = await self._find((tenant, session), model)
        self._use(opened)
        try:
            yield opened
        finally:
            self._leave(opened)

    @asynccontextmanager
    async def editing(self, tenant: str, session: SessionId, model: str) -> AsyncIterator[OpenSession]:
        """The same with nobody else editing. Raises SessionBusyError while it answers: an edit would wait for that."""
        async with self.looking(tenant, session, model) as opened:
            opened.check_not_asked()
            async with opened.editing:
                opened.check_not_asked()
                _check_open(opened)
                yield opened

    async def begin(self, tenant: str, session: SessionId, model: str) -> OpenSession:
        """A session for one turn, until `end`."""
        async with self.editing(tenant, session, model) as opened:
            opened.is_asked = True
            self._use(opened)
            return opened

    def answered(self, opened: OpenSession) -> None:
        """The turn is over."""
        opened.is_asked, opened.work = False, None

    def end(self, opened: OpenSession) -> None:
        """What `begin` took is given back: the turn is settled."""
        self._leave(opened)

    def cancel(self, tenant: str, session: SessionId) -> bool:
        """End the turn that runs; whether one did."""
        opened = self._open.get((tenant, session))
        if opened is None or not opened.is_asked:
            return False
        if opened.work is not None:
            opened.work.cancel()
        return opened.work is not None

    def check_nobody_asks(self, tenant: str) -> None:
        """Raises SessionBusyError while any of a tenant's sessions answers."""
        for key, opened in self._open.items():
            if key[0] == tenant:
                opened.check_not_asked()

    async def create(self, tenant: str, model: str, make: Callable[[Loom], Session]) -> OpenSession:
        """A new session. `make` runs in a thread, one of a tenant at a time: it may look for what is there already."""
        return await self.whole(self._create(tenant, model, make))

    async def delete(self, tenant: str, session: SessionId, model: str) -> None:
        """Raises UnknownSessionError, SessionBusyError while it answers, or where another process has it open."""
        key = (tenant, session)
        await self._settled(key)
        opened = self._open.get(key)
        if opened is not None:
            opened.check_not_asked()
        await self._change(key, self._delete(key, model))

    # -- opening and closing --------------------------------------------------------------------------------------

    async def _find(self, key: Key, model: str) -> OpenSession:
        await self._settled(key)
        found = self._open.get(key)
        if found is not None and not found.session.is_closed:
            if not model or model in (found.lease.info.id, *found.lease.info.aliases):
                return found
            if found.num_users:
                raise SessionBusyError(
                    f"session {key[1]} is in use with the model {found.lease.info.id}: ask again when it is idle"
                )
        return await self._change(key, self._open_one(key, model))

    async def _settled(self, key: Key) -> None:
        """Until nobody opens or closes it."""
        while (task := self._changing.get(key)) is not None:
            await asyncio.wait({task})

    async def _change(self, key: Key, work: Coroutine[Any, Any, T]) -> T:
        """Open or close, one at a time for each session, to the end. Call it with no await since `_settled`."""
        task = asyncio.ensure_future(work)
        self._changing[key] = task
        task.add_done_callback(lambda _: self._changing.pop(key, None))
        return await asyncio.shield(task)

    async def _open_one(self, key: Key, model: str) -> OpenSession:
        if key in self._open:
            await self._close_one(key)
        lease = await self._lease_for(key, model)
        try:
            await self._make_room()
            session = await self.run(loom_of(lease).session, id=key[1])
            return self._keep(OpenSession(key, session, lease))
        except BaseException:
            lease.release()
            raise

    async def _lease_for(self, key: Key, model: str) -> ModelLease:
        """A lease on the model that was asked for, else on the one that the session was held with."""
        lease = await self._backend.acquire(model or default_model(self._backend), key[0])
        try:
            info = await self.run(loom_of(lease).session_info, key[1])
            if model or info.model == lease.info.id or info.model not in {one.id for one in self._backend.models()}:
                return lease
        except UnknownSessionError:
            lease.release()
            raise unknown_session(key[1]) from None
        except BaseException:
            lease.release()
            raise
        lease.release()
        return await self._backend.acquire(info.model, key[0])

    async def _create(self, tenant: str, model: str, make: Callable[[Loom], Session]) -> OpenSession:
        lease = await self._backend.acquire(model or default_model(self._backend), tenant)
        try:
            await self._make_room()
            async with self._creating[tenant]:
                session = await self.run(make, loom_of(lease))
            return self._keep(OpenSession((tenant, session.id), session, lease))
        except BaseException:
            lease.release()
            raise

    def _keep(self, opened: OpenSession) -> OpenSession:
        if self._is_closed:
            raise unavailable("the server is shutting down and takes nothing new", "draining")
        opened.last_used_s = self._clock()
        self._open[opened.key] = opened
        if self._reaper is None or self._reaper.done():
            self._reaper = asyncio.ensure_future(self._reap())
        return opened

    async def _close_one(self, key: Key) -> None:
        opened = self._open.pop(key)
        try:
            await self.run(opened.session.close)
        finally:
            opened.lease.release()

    async def _delete(self, key: Key, model: str) -> None:
        if key in self._open:
            await self._close_one(key)
        lease = await self._lease_for(key, model)
        try:
            await self.run(loom_of(lease).delete_session, key[1])
        finally:
            lease.release()

    async def _make_room(self) -> None:
        """Close the sessions that nobody has used for the longest. Raises ApiError (503) where all are in use."""
        while len(self._open) >= self._max_open:
            idle = [one for key, one in self._open.items() if one.is_idle and key not in self._changing]
            if not idle:
                raise unavailable(
                    f"{self._max_open} sessions are in use; ask again when one is idle", "too_many_sessions"
                )
            oldest = min(idle, key=lambda one: one.last_used_s)
            await self._change(oldest.key, self._close_one(oldest.key))

    async def _reap(self) -> None:
        while self._open:
            await asyncio.sleep(min(LONGEST_NAP_S, max(SHORTEST_NAP_S, self._idle_s / 4)))
            await self.close_idle(self._idle_s)

    async def _closed_quietly(self, key: Key) -> None:
        try:
            await self._change(key, self._close_one(key))
        except KvloomError as error:  # everything of it is stored already
            log.warning("an idle session could not be closed: %s", error)

    async def close_idle(self, idle_s: float = 0.0) -> None:
        """Close the sessions that nobody has used for so long, and give back their models."""
        now = self._clock()
        for key, opened in list(self._open.items()):
            is_still = self._open.get(key) is opened and key not in self._changing
            if is_still and opened.is_idle and now - opened.last_used_s >= idle_s:
                await self._closed_quietly(key)

    async def close(self) -> None:
        """Close them all; running turns are cancelled. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._reaper is not None:
            self._reaper.cancel()
        under_way = {*self._tasks, *self._changing.values()}
        if under_way:
            await asyncio.wait(under_way)
        for key in list(self._open):
            await self._closed_quietly(key)
        self._threads.shutdown(wait=False)

    # -- books ----------------------------------------------------------------------------------------------------

    def _use(self, opened: OpenSession) -> None:
        opened.num_users += 1

    def _leave(self, opened: OpenSession) -> None:
        opened.num_users -= 1
        opened.last_used_s = self._clock()


def default_model(backend: Backend) -> str:
    """The first model that is served."""
    models = backend.models()
    if not models:
        raise ApiError(404, "this server has no model", code="model_not_found", param="model")
    return models[0].id


def unknown_session(session: SessionId) -> UnknownSessionError:
    return UnknownSessionError(f"there is no session {session}; GET /v1/kvloom/sessions lists them")


def _check_open(opened: OpenSession) -> None:
    if opened.session.is_closed:
        raise SessionClosedError(f"session {opened.session.id} was closed meanwhile; ask again")

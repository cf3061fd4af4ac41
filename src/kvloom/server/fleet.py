"""A backend over several models: loaded when they are asked for, as many as memory holds, unloaded when idle.

Knows the registry and looms; no HTTP but the statuses of its refusals. All of it lives on one event loop, what takes
long runs in threads. KV entries and sessions are on disk: a model that was unloaded finds them again.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path

from kvloom.config import Settings, nearest, paths
from kvloom.errors import ConfigError, EngineMemoryError, KvloomError, ModelNotFoundError
from kvloom.model.pull import ensure_model
from kvloom.model.registry import find_model
from kvloom.server.auth import LOCAL_TENANT
from kvloom.server.backend import ModelInfo
from kvloom.server.errors import ApiError, printable, unavailable
from kvloom.server.lifecycle import LOADING_RETRY_S
from kvloom.server.loads import LoadLog
from kvloom.server.local import LoomLease
from kvloom.server.registry_file import Registry, ServedModel, read_registry, single
from kvloom.session.checkup import is_address
from kvloom.session.loom import Loom
from kvloom.session.model_plan import ModelLimits, Others, Planner, share_cores
from kvloom.session.rooms import open_loom
from kvloom.session.values import Progress, ProgressCallback

log = logging.getLogger(f"{__name__.rpartition('.')[0]}.models")

BUSY_RETRY_S = 10
"""How soon a client may ask again for a model that had no room beside those in use: replies take that long."""

Opener = Callable[[str, Settings, ProgressCallback], Loom]
"""Loads a model by its name. Raises KvloomError."""


class Standing:
    """One model of the fleet: its loom where it is loaded, and who uses it. `planner`: once its file is known."""

    def __init__(self, model: ServedModel, now_s: float) -> None:
        self.model = model
        self.planner: Planner | None = None
        self.loom: Loom | None = None
        self.needed_bytes = 0
        self.created_s = int(time.time())
        self.last_used_s = now_s
        self.loading: asyncio.Task[None] | None = None
        self.tenants: set[str] = set()
        self._lock = threading.Lock()
        self._num_leases = 0

    @property
    def num_leases(self) -> int:
        """Uses under way, those that wait for the model to be loaded included."""
        return self._num_leases

    @property
    def is_idle(self) -> bool:
        return self.loom is not None and not self._num_leases

    def take(self) -> None:
        with self._lock:
            self._num_leases += 1

    def give_back(self, now_s: float) -> None:
        with self._lock:
            self._num_leases -= 1
            self.last_used_s = now_s

    def info(self) -> ModelInfo:
        entry, planner, loom = self.model.entry, self.planner, self.loom
        if loom is not None:
            window = min(loom.window, loom.pool.window)
        else:
            window = planner.longest_window if planner is not None else entry.context or 0
        return ModelInfo(
            id=entry.id,
            window=window,
            aliases=entry.aliases,
            created_s=self.created_s,
            owned_by=entry.owned_by,
            is_loaded=loom is not None,
            # All that can reply can, but for models that rank: these say so when they are loaded.
            has_embeddings=loom.embeddings.is_possible if loom is not None else planner is not None,
            tool_form=planner.facts.tool_form if planner is not None else "",
        )


class FleetLease(LoomLease):
    """A use of a model of the fleet, which stays loaded meanwhile."""

    def __init__(self, loom: Loom, info: ModelInfo, give_back: Callable[[], None]) -> None:
        super().__init__(loom, info)
        self._give_back: Callable[[], None] | None = give_back
        self._lock = threading.Lock()

    @property
    def loom(self) -> Loom:
        """The tenant's."""
        return self._loom

    def release(self) -> None:
        with self._lock:
            give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back()


class Fleet:
    """The models of a registry.

    `settings.server.models_memory_bytes` is what they may take together. `progress` sees what is loaded by `start`, the
    log what is loaded later; `open_model` loads one of them.
    """

    def __init__(
        self,
        registry: Registry,
        settings: Settings,
        home: Path | str | None = None,
        *,
        progress: ProgressCallback | None = None,
        open_model: Opener | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._settings = settings
        self._home = home
        self._progress = progress
        self._where = paths(home)
        self._open_model = open_model or self._open
        self._clock = clock
        self._standings = {model.id: Standing(model, clock()) for model in registry.models}
        self._making_room = asyncio.Lock()
        self._watch: asyncio.Task[None] | None = None
        self._is_starting = False
        self._is_closed = False
        self.keepers: list[Callable[[], Awaitable[None]]] = []
        """What others do to give back leases that nobody needs at the moment, before a model is refused."""
        self.num_loads = 0
        self.num_unloads = 0

    # -- the backend --------------------------------------------------------------------------------------------

    def models(self) -> list[ModelInfo]:
        return [standing.info() for standing in self._standings.values()]

    async def start(self) -> None:
        """Look at all files, load the models that are to be there from the beginning, and watch for idle ones.

        Raises what a model that is to be there cannot be loaded for; ConfigError for limits that no window fits.
        """
        await asyncio.to_thread(self._look)
        self._is_starting = True
        for standing in self._standings.values():
            if standing.model.entry.preload:
                await self._load(standing)
        self._is_starting = False
        if self._settings.server.idle_unload_s and len(self._standings) > 1:
            self._watch = asyncio.create_task(self._watching())

    async def acquire(self, model: str, tenant: str) -> FleetLease:
        """Raises ModelNotFoundError; ApiError (503 with Retry-After) where the model cannot be loaded now, 507 where it
        never fits."""
        standing = self._named(model)
        standing.take()
        try:
            loom = await self._loaded(standing)
            if tenant != LOCAL_TENANT:
                # Its home may have to be made: the first time that takes a while.
                is_known = tenant in standing.tenants
                loom = loom.tenant(tenant) if is_known else await asyncio.to_thread(loom.tenant, tenant)
                standing.tenants.add(tenant)
        except BaseException:
            standing.give_back(self._clock())
            raise
        return FleetLease(loom, standing.info(), lambda: standing.give_back(self._clock()))

    async def close(self) -> None:
        self._is_closed = True
        if self._watch is not None:
            self._watch.cancel()
        loading = [one.loading for one in self._standings.values() if one.loading is not None]
        if loading:
            await asyncio.wait(loading)
        async with self._making_room:
            for standing in self._standings.values():
                await self._unload(standing, "the server ends")

    # -- for metrics and upkeep -----------------------------------------------------------------------------------

    def looms(self) -> dict[str, Loom]:
        """The loaded models, by id."""
        return {id_: one.loom for id_, one in self._standings.items() if one.loom is not None}

    async def unload_idle(self) -> list[str]:
        """Unload what nobody has asked for long enough; the ids."""
        patience_s, unloaded = self._settings.server.idle_unload_s, []
        async with self._making_room:
            for standing in self._standings.values():
                idle_s = self._clock() - standing.last_used_s
                if patience_s and standing.is_idle and idle_s >= patience_s:
                    await self._unload(standing, f"nobody has asked it for {idle_s:.0f} s")
                    unloaded.append(standing.model.id)
        return unloaded

    # -- loading ------------------------------------------------------------------------------------------------

    def _named(self, name: str) -> Standing:
        model = self._registry.find(name)
        if model is None:
            ids = self._registry.ids
            hint = (
                "" if len(ids) == 1 else nearest(name[:128], [n for m in self._registry.models for n in m.entry.names])
            )
            shown = f"; {hint}" if hint.startswith("did") else ""
            raise ModelNotFoundError(f"there is no model `{printable(name)}` here{shown}; known: {', '.join(ids)}")
        return self._standings[model.id]

    async def _loaded(self, standing: Standing) -> Loom:
        """Its loom; the caller has taken a lease, so it stays."""
        while standing.loom is None:
            await self._load(standing)
        return standing.loom

    async def _load(self, standing: Standing) -> None:
        """Load it once, whoever waits; a waiter that leaves does not end it."""
        if self._is_closed:
            raise unavailable("the server is shutting down and takes nothing new", "draining", LOADING_RETRY_S)
        if standing.loading is None:
            standing.loading = asyncio.create_task(self._loading(standing))
            standing.loading.add_done_callback(lambda task: self._has_loaded(standing, task))
        await asyncio.shield(standing.loading)

    @staticmethod
    def _has_loaded(standing: Standing, task: asyncio.Task[None]) -> None:
        standing.loading = None
        if not task.cancelled():
            task.exception()  # it was told in the log, and to whoever still waits

    async def _loading(self, standing: Standing) -> None:
        async with self._making_room:  # one at a time: two forecasts would count on the same memory
            if standing.loom is not None:
                return
            try:
                await self._make_room_and_load(standing)
            except ApiError:
                raise
            except KvloomError as error:
                if self._is_starting:
                    raise  # the server begins with this model, or not at all
                log.error("%s cannot be loaded: %s", standing.model.id, error)
                raise unavailable(
                    f"the model {standing.model.id} cannot be loaded now; the server's log says why",
                    "model_unavailable",
                    LOADING_RETRY_S,
                ) from error

    async def _make_room_and_load(self, standing: Standing) -> None:
        planner = standing.planner
        if planner is None:
            planner = await asyncio.to_thread(self._planner, standing)
        budget, slots = self._settings.server.models_memory_bytes, self._settings.server.slots
        most = await asyncio.to_thread(planner.most_bytes, self._others(standing, planner), budget)
        if most is not None and planner.least_bytes > most and not self._is_starting:
            log.error("%s needs %d bytes at least, %d are allowed", standing.model.id, planner.least_bytes, most)
            raise ApiError(
                HTTPStatus.INSUFFICIENT_STORAGE,
                f"the model {standing.model.id} is larger than the memory that this server may use; ask another model",
                code="model_too_large",
                param="model",
            )
        while True:
            try:
                plan = await asyncio.to_thread(planner.plan, self._others(standing, planner), budget, slots)
                await self._open_as(standing, plan.settings, plan.needed_bytes)
            except EngineMemoryError as error:
                if self._is_starting:
                    raise  # with its numbers; none of those that are to be there goes for another one
                if not await self._unload_oldest() and not await self._asked_back():
                    raise self._no_room(standing, error) from error
            else:
                return

    async def _open_as(self, standing: Standing, settings: Settings, needed_bytes: int) -> None:
        model = standing.model
        log.info("loading %s: a window of %s tokens, about %.0f MiB", model.id, settings.context, needed_bytes / 2**20)
        started_s = self._clock()
        loom = await asyncio.to_thread(self._open_model, model.name, settings, self._told(standing))
        if len(self._standings) > 1:
            share_cores(loom)
        loom.model_name = model.id  # under which its sessions are found again; a path is shown to nobody
        standing.loom, standing.needed_bytes, standing.last_used_s = loom, needed_bytes, self._clock()
        self.num_loads += 1
        log.info("%s is loaded, in %.1f s", model.id, self._clock() - started_s)

    def _no_room(self, standing: Standing, error: EngineMemoryError) -> ApiError:
        log.warning("%s has no room now: %s", standing.model.id, error)
        used = ", ".join(id_ for id_, one in self._standings.items() if one.loom is not None)
        beside = f" beside the models in use ({used})" if used else ""
        return unavailable(
            f"there is no memory for the model {standing.model.id}{beside} now; ask again, or ask one of those",
            "model_no_room",
            BUSY_RETRY_S,
        )

    def _others(self, standing: Standing, planner: Planner) -> Others:
        others = [one for one in self._standings.values() if one is not standing]
        # One whose file is not here yet counts as if it were like this one.
        waiting = [(one.planner or planner).least_bytes for one in others if one.loom is None]
        return Others(sum(one.needed_bytes for one in others), sum(waiting), len(others))

    # -- unloading ----------------------------------------------------------------------------------------------

    async def _unload_oldest(self) -> bool:
        """Unload the idle model that was used longest ago; whether there was one. The caller makes room."""
        idle = [one for one in self._standings.values() if one.is_idle]
        if not idle:
            return False
        await self._unload(min(idle, key=lambda one: one.last_used_s), "another model needs its memory")
        return True

    async def _asked_back(self) -> bool:
        """Whether a model is idle now that those who keep leases for nothing have given them back."""
        for give_back in self.keepers:
            await give_back()
        return any(one.is_idle for one in self._standings.values())

    async def _unload(self, standing: Standing, why: str) -> None:
        loom, standing.loom, standing.needed_bytes = standing.loom, None, 0
        standing.tenants.clear()
        if loom is None:
            return
        log.info("unloading %s: %s", standing.model.id, why)
        try:
            await asyncio.to_thread(loom.close)
        except KvloomError:
            log.exception("%s could not be closed", standing.model.id)
        self.num_unloads += 1

    async def _watching(self) -> None:
        while True:
            now, patience_s = self._clock(), self._settings.server.idle_unload_s
            # Whoever becomes idle later than now has a later deadline than `patience_s` from now.
            idle = [one.last_used_s + patience_s - now for one in self._standings.values() if one.is_idle]
            await asyncio.sleep(max(0.1, min([patience_s, *idle])))
            await self.unload_idle()

    def _told(self, standing: Standing) -> ProgressCallback:
        if self._is_starting and self._progress is not None:
            return self._progress
        return LoadLog(log, standing.model.id)

    # -- in threads ---------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Read the headers of the files that are here; what is still to be fetched is only named."""
        for standing in self._standings.values():
            try:
                self._planner(standing, fetch=False).check_limits()
            except ModelNotFoundError as error:
                if standing.model.entry.preload:
                    continue  # it is fetched right now
                log.warning("%s is fetched when it is first asked for: %s", standing.model.id, error)

    def _planner(self, standing: Standing, *, fetch: bool = True) -> Planner:
        model, settings = standing.model, standing.model.entry.settings(self._settings)
        if fetch:
            tell = self._told(standing)
            path = ensure_model(
                model.name, self._where, lambda task, done, total: tell(Progress(task, done, total, "bytes"))
            ).path
        else:
            path = find_model(model.name, self._where).path
        limits = ModelLimits(model.entry.limit_bytes("max_ram_mb"), model.entry.limit_bytes("kv_cache_ram_mb"))
        standing.planner = Planner(path, settings, limits, model.config)
        return standing.planner

    def _open(self, name: str, settings: Settings, progress: ProgressCallback) -> Loom:
        return open_loom(settings=settings.model_copy(update={"model": name}), home=self._home, progress=progress)


def make_fleet(settings: Settings, home: Path | str | None = None, progress: ProgressCallback | None = None) -> Fleet:
    """The fleet that the settings name: their registry file's, else of their one model. Raises ConfigError."""
    file = settings.server.models
    registry = single(settings.model) if file is None else read_registry(file)
    for model in registry.models:
        _check_is_here(model)
    return Fleet(registry, settings, home, progress=progress)


def _check_is_here(model: ServedModel) -> None:
    """Raises ConfigError for a model that is served elsewhere already."""
    if is_address(model.name):
        where = f"{model.where}: " if model.where else ""
        raise ConfigError(
            f"{where}{model.name} runs behind an endpoint, and a server computes what it serves: give your clients "
            "that endpoint's address, or name a GGUF file, a registry id or a hub model here; kvloom chat and kvloom "
            f"ask take --model {model.name}"
        )

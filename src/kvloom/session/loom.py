"""The loom: one loaded model, its tiers, the known chunks, and the sessions over them. What `kvloom.open` returns.

Joins all rooms, its chunk side and its memory side are bases of it; the edges call this and `Session`, and nothing
below.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

from kvloom.chunk.catalog import Catalog
from kvloom.chunk.database import Database
from kvloom.chunk.profiles import Profile, ProfileStore
from kvloom.config import Settings
from kvloom.context.device import Device
from kvloom.context.manifest import Manifest
from kvloom.engine.base import Engine
from kvloom.errors import EngineMemoryError, EngineUnsupportedError, LoomClosedError, SessionBusyError, UsageError
from kvloom.kv.rotate import Rotator
from kvloom.kv.store import TieredStore
from kvloom.memory.monitor import MemoryMonitor, Pace
from kvloom.memory.sizing import Bound, Sizing
from kvloom.session.completions import Completions, CompletionStream
from kvloom.session.composer import Composer
from kvloom.session.embeddings import Embeddings
from kvloom.session.foreground import Foreground
from kvloom.session.gc import collect
from kvloom.session.guard import MemoryGuard
from kvloom.session.history import History, TurnRecord
from kvloom.session.home import session_info
from kvloom.session.log import SessionLog
from kvloom.session.loom_chunks import LoomChunks
from kvloom.session.loom_libraries import LoomLibraries
from kvloom.session.loom_memory import LoomMemory
from kvloom.session.neighbours import neighbourhood_of
from kvloom.session.pool import Pool
from kvloom.session.presets import bring_in, profile_of
from kvloom.session.prompts import Prompts
from kvloom.session.purge import purge
from kvloom.session.rates import KeptRates
from kvloom.session.request_prompts import Prepared
from kvloom.session.requests import Request
from kvloom.session.session import Session
from kvloom.session.shelf import Shelf
from kvloom.session.snapshots import SnapshotStore
from kvloom.session.status import device_status
from kvloom.session.traces import Traces
from kvloom.session.transfer import export_session, import_session
from kvloom.session.turn import Runner, TurnRunner
from kvloom.session.values import Chunk, GcReport, LoomStatus, SessionInfo, TierStatus
from kvloom.text.pieces import PromptBuilder
from kvloom.text.preamble import alone_prefix
from kvloom.types import EntryId, F32Array, Fidelity, SessionId


class Loom(LoomChunks, LoomLibraries, LoomMemory):
    """A loaded model over a home. Safe to use from several threads; a context manager that closes itself.

    Every method raises LoomClosedError after `close()`.
    """

    session_kind: ClassVar[type[Session]] = Session
    """What `session` opens."""

    def __init__(
        self,
        engine: Engine,
        store: TieredStore,
        rotator: Rotator,
        settings: Settings,
        home: Path,
        model: tuple[str, Path],
    ) -> None:
        self.engine = engine
        self.store = store
        self.settings = settings
        self.window = settings.context or settings.context_target
        self.sizing: Sizing | None = None
        """How the window was chosen; None where the engine was loaded by someone else."""
        self.policy: str = settings.overflow.policy or "stop"
        """What leaves a window that overflows, where a session has not chosen."""
        self.foreground = Foreground()
        self.device = Device(engine, settings.step_tokens)
        self.pool = Pool(self.device, self.window, self._spare_bytes, settings.pool_tokens)
        self.embeddings = Embeddings(self.device, self._spare_bytes)
        self.guard = MemoryGuard(self)
        """What is done when memory runs low, and how much may still be taken."""
        self.monitor = MemoryMonitor(pace=Pace(busy_s=settings.guard.poll_s, rest_s=6 * settings.guard.poll_s))
        self.builder = PromptBuilder(engine.vocabulary, default_system=settings.system)
        self.model_name, self._model_path = model
        self._rotator = rotator
        self._tenants: dict[str, Loom] = {}
        self._open_home(home)
        self.rates = KeptRates(self._database, engine)
        if settings.guard.enabled:
            self.monitor.on_reading(self.guard.on_picture)
            self.monitor.start()

    @property
    def is_window_asked(self) -> bool:
        """Whether somebody asked for this window, by an option or in the settings; else it is the automatic one."""
        if self.sizing is not None:
            return self.sizing.bound is Bound.EXPLICIT
        return self.settings.context is not None

    def _open_home(self, home: Path, tenant: str = "") -> None:
        """What is this home's own: chunks, sessions, and entries that no other tenant finds."""
        self.home = home
        engine = self.engine
        # By the model alone: were the window in it, another window would find none of the stored KV.
        prefix = alone_prefix(engine.sink_token, engine.train_context, self.builder.tokenizer.content)
        self.composer = Composer(engine, self.device, self.store, self._rotator.lay, prefix, tenant)
        self._database = Database(home)
        self.catalog = Catalog(self._database)
        self.log = SessionLog(self._database)
        self.snapshot_store = SnapshotStore(self._database)
        self._profiles = ProfileStore(self._database)
        self.shelf = Shelf(self.catalog, Traces(self._database), self.builder, self.composer)
        self.composer.before_weave = self.shelf.record
        self.prompts = Prompts(self.builder, self.shelf, engine.fingerprint)
        self._completions = Completions(self)
        self._open_libraries()
        self._sessions: dict[SessionId, Session] = {}
        self._pinned: set[EntryId] = set()
        self._lock = threading.RLock()
        self._closed = False
        self.neighbourhood = neighbourhood_of(home)
        """The looms of this process over the same home, this one among them."""
        self.neighbourhood.join(self)

    # -- chunks, in all sessions --------------------------------------------------------------------------------

    def purge(self, ref: str) -> int:
        """A chunk really gone: its KV from every tier, its text, its names, and its tokens from every session's log.

        Turns and requests that were computed behind it lose their KV (it carries the chunk's trace) and are computed
        again when they are needed; their text stays. So it is under every model: what other looms of this process
        hold of it, and what is stored. Bytes freed. Not undoable. Raises SessionBusyError where another process has a
        session open that holds it.
        """
        return purge(self, self._resolve_erased(ref))

    def gc(self) -> GcReport:
        """Remove stored entries that no chunk and no session of any model names any more."""
        self._check_open()
        self.store.flush()
        return collect(self)

    # -- requests without a session -----------------------------------------------------------------------------

    def prepare(self, request: Request) -> Prepared:
        """A request checked and cut, before any work: `num_prompt_tokens` is exact.

        Raises ContextOverflowError with the numbers, TemplateError, UnknownChunkError.
        """
        self._check_open()
        return self._completions.preparer.prepare(request)

    def complete(self, request: Request | Prepared) -> CompletionStream:
        """The reply to a request, delta by delta. Requests of several threads share native batches."""
        self._check_open()
        return self._completions.complete(request)

    def embed(
        self, texts: Sequence[str | Sequence[int]], is_cancelled: Callable[[], bool] = lambda: False
    ) -> tuple[list[F32Array], int]:
        """A vector of length 1 for each text (or its token ids), and the tokens that were read.

        Made in a context of its own, which memory must have and which goes again when it is idle. Raises
        EngineUnsupportedError where the model makes none, ContextOverflowError for a text longer than the window,
        EngineMemoryError with the numbers, MemoryPressureError while new work is refused.
        """
        self._check_open()
        if not self.embeddings.is_possible:
            raise EngineUnsupportedError(f"{self.model_name} makes no embeddings")
        self.guard.check()
        with self.foreground.busy(), self.monitor.busy():
            tokens = self.embeddings.tokens(texts)
            vectors = self.embeddings.embed(tokens, min(self.window, self.pool.window), is_cancelled)
        return vectors, sum(map(len, tokens))

    # -- tenants ------------------------------------------------------------------------------------------------

    def tenant(self, name: str) -> Loom:
        """The same loaded model for somebody else: chunks, sessions and KV apart, in a home of its own below this one.

        Closed with this one, or before. Raises UsageError for a name without any letter.
        """
        from kvloom.session.tenants import TenantLoom

        with self._lock:
            self._check_open()
            found = self._tenants.get(name)
            if found is None or found._closed:
                found = self._tenants[name] = TenantLoom(self, name)
            return found

    def open_tenants(self) -> list[Loom]:
        """The tenants that have been asked for in this process."""
        with self._lock:
            return [tenant for tenant in self._tenants.values() if not tenant._closed]

    # -- sessions -----------------------------------------------------------------------------------------------

    def session(
        self,
        system: str | None = None,
        *,
        id: str | None = None,  # noqa: A002 - the name that callers know
        name: str | None = None,
        fidelity: Fidelity | str | None = None,
    ) -> Session:
        """A new session, or a stored one by id or (existing) name, with its KV: nothing is prefilled again.

        Raises UnknownSessionError for an unknown id, SessionBusyError where another process has it open.
        """
        self._check_open()
        with self._lock:
            self._check_open()
            mode = self.usable_fidelity(self.settings.fidelity if fidelity is None else fidelity)
            found = self._find(id, name)
            session = self._sessions.get(found) if found is not None else None
            if session is None or session.is_closed:
                text = "" if system is None else system
                first = Manifest(fidelity=mode, model=self.engine.fingerprint)
                first = first.with_head(self.prompts.head(text), text)
                asked = self.window if self.is_window_asked else 0
                found = found or self.log.create(self.model_name, name or "", asked)
                session = self.session_kind(self, History(self.log, found, lambda: first))
                self._note_window(found, asked)
                self._sessions[found] = session
                self._pin_entries()
                with suppress(EngineMemoryError, UsageError):  # then it goes on in the window that there is
                    self.ensure_window(session.manifest.window)
        if system is not None and session.system != system:
            session.set_system(system)
        if fidelity is not None and session.fidelity is not mode:
            session.set_fidelity(mode)
        return session

    def sessions(self) -> list[SessionInfo]:
        """All stored sessions, the last used first."""
        self._check_open()
        with self.log.snapshot():
            return [self._info(record.id) for record in self.log.list()]

    def session_info(self, ref: str) -> SessionInfo:
        """One stored session, by its name or the beginning of its id. Raises UnknownSessionError."""
        self._check_open()
        return self._info(self.log.resolve(ref))

    def latest_session(self) -> SessionInfo | None:
        """The session that was used last."""
        self._check_open()
        known = self.log.list()
        return self._info(known[0].id) if known else None

    def rename_session(self, ref: str, name: str) -> None:
        """Raises UnknownSessionError, UsageError where the name is taken."""
        session = self._opened(ref)
        if isinstance(session, Session):
            session.rename(name)
        else:
            self.log.rename(session, name)

    def delete_session(self, ref: str) -> None:
        """Remove a session and its log; an open one is closed first. Raises SessionBusyError where another process
        has it open."""
        session = self._opened(ref)
        if isinstance(session, Session):
            session.close()
            session = session.id
        self.log.delete(session)

    def export_session(self, ref: str) -> dict[str, Any]:
        """The whole session as JSON-able values, the texts of its chunks included."""
        self._check_open()
        return export_session(self, self.log.resolve(ref))

    def import_session(self, data: Mapping[str, Any]) -> SessionInfo:
        """A session out of `export_session`'s values, its chunks too. Raises UsageError where they are none."""
        self._check_open()
        return self._info(import_session(self, data))

    # -- profiles -----------------------------------------------------------------------------------------------

    def save_profile(self, name: str, session: Session, sources: Sequence[str] | None = None) -> Profile:
        """The session's chunks (their files, where they came from files), system prompt and fidelity under a name."""
        self._check_open()
        profile = profile_of(self, name, session, sources)
        self._profiles.save(profile)
        return profile

    def use_profile(self, name: str, session: Session, slots: Mapping[str, str] | None = None) -> list[Chunk]:
        """Bring a profile's chunks, read afresh, its system prompt and settings into a session."""
        self._check_open()
        return bring_in(self, self._profiles.get(name).fill(slots), session)

    def profiles(self) -> tuple[Profile, ...]:
        self._check_open()
        return self._profiles.list()

    def delete_profile(self, name: str) -> None:
        self._check_open()
        self._profiles.delete(name)

    # -- the whole ----------------------------------------------------------------------------------------------

    def status(self) -> LoomStatus:
        """The loaded model, its cells, the tiers, and what was refused."""
        self._check_open()
        capabilities = self.engine.capabilities
        k, v = self.engine.layout.k_type.value, self.engine.layout.v_type.value
        return LoomStatus(
            model=self.model_name,
            model_path=str(self._model_path),
            fingerprint=self.engine.fingerprint,
            engine=type(self.engine).__name__,
            kv_type=k if k == v else f"{k}/{v}",
            window=self.window,
            num_cells=self.engine.num_cells,
            used_cells=self.engine.used_cells(),
            train_context=self.engine.train_context,
            fidelity=self.usable_fidelity(self.settings.fidelity),
            can_move_kv=capabilities.can_move_kv,
            can_rotate=capabilities.can_rotate,
            why_not=capabilities.why_not,
            tiers=(device_status(self), *self._tier_statuses()),
            faults=self._faults(),
            home=str(self.home),
        )

    def flush(self) -> None:
        """Wait until everything that was stored is on disk."""
        self.store.flush()

    def close(self) -> None:
        """Close the sessions, write what waits, free the model. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True  # nothing new begins
        try:
            for tenant in self._tenants.values():
                tenant.close()
            for session in self.open_sessions():
                session.close()
        except SessionBusyError:
            self._closed = False  # called from inside a reply's own step: nothing was closed
            raise
        with self.neighbourhood.leaving(self):
            self._close_libraries()
            self._close_rooms()

    def _close_rooms(self) -> None:
        with ExitStack() as last_things:
            last_things.callback(self._close_engine)
            last_things.callback(self.guard.wait)
            last_things.callback(self.monitor.close)
            last_things.callback(self._database.close)
            last_things.callback(self.rates.save)
            last_things.callback(self._rotator.close)
            last_things.callback(self.store.close)

    def __enter__(self) -> Loom:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def forget_replies(self) -> None:
        """Replies to requests are tokenized anew when they come back: what they quote is no longer in memory."""
        self._completions.preparer.replies.clear()

    # -- for sessions -------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise LoomClosedError("the loom is closed; open it again with kvloom.open(…)")

    def _forget(self, session: Session) -> None:
        with self._lock:
            if self._sessions.get(session.id) is session:
                del self._sessions[session.id]
        self._pin_entries()

    def own_sessions(self) -> list[Session]:
        """The sessions of this home that are open with this model."""
        with self._lock:
            return list(self._sessions.values())

    def open_sessions(self) -> list[Session]:
        """The sessions that are open in this process."""
        with self._lock:
            others = [session for tenant in self._tenants.values() for session in tenant.open_sessions()]
            return [*self._sessions.values(), *others]

    def usable_fidelity(self, wanted: Fidelity | str) -> Fidelity:
        """Exact where the model's KV cannot be moved to another position; the status says why.

        Raises UsageError for a mode that there is not.
        """
        try:
            mode = Fidelity(wanted)
        except ValueError as exc:
            known = ", ".join(one.value for one in Fidelity)
            raise UsageError(f"there is no fidelity {wanted!r}; choose one of {known}") from exc
        capabilities = self.engine.capabilities
        return mode if capabilities.can_rotate and capabilities.can_move_kv else Fidelity.EXACT

    def _adopted(self, manifest: Manifest, records: Sequence[TurnRecord]) -> Manifest:
        """A manifest of the log as it can go on here: this model's token ids, a mode it can do."""
        manifest = self.prompts.adopted(manifest, records)
        mode = self.usable_fidelity(manifest.fidelity)
        return manifest if mode is manifest.fidelity else manifest.with_fidelity(mode)

    def runner(self, owner: SessionId, cancel: threading.Event, history: History | None = None) -> Runner:
        """What runs turns here; `history`: of the session whose turns they are, none for what is part of nothing."""
        return TurnRunner(self, owner, cancel, history.next_ordinal if history is not None else None)

    def _close_engine(self) -> None:
        self.device.batcher.close()
        self.embeddings.close()
        with self.device.lock:
            self.engine.close()

    def _pin_entries(self) -> None:
        """Tell the RAM tier what every open session has pinned."""
        with self._lock:
            pinned = {
                self.composer.entry_id(slot.tokens, slot.lineage)
                for session in self._sessions.values()
                for slot in session.manifest.slots
                if slot.pinned
            }
            for entry in pinned - self._pinned:
                self.store.pin(entry)
            for entry in self._pinned - pinned:
                self.store.unpin(entry)
            self._pinned = pinned

    # -- inside -------------------------------------------------------------------------------------------------

    def _opened(self, ref: str) -> Session | SessionId:
        """The session of a name or id prefix, as an object where it is open here."""
        self._check_open()
        session = self.log.resolve(ref)
        with self._lock:
            return self._sessions.get(session, session)

    def _note_window(self, session: SessionId, asked: int) -> None:
        """What a session is open with, for those who look at it when it is not."""
        self.log.note_window(session, asked)

    def _find(self, ref: str | None, name: str | None) -> SessionId | None:
        if ref is not None:
            return self.log.resolve(ref)
        known = {record.name: record.id for record in self.log.list()} if name else {}
        return known.get(name or "")

    def _info(self, session: SessionId) -> SessionInfo:
        return session_info(self.log, session, is_open_here=session in self._sessions)

    def _tier_statuses(self) -> Iterator[TierStatus]:
        for tier in self.store.stats().tiers:
            yield TierStatus(tier.name, tier.num_entries, tier.nbytes, tier.budget_bytes)

    def _faults(self) -> Mapping[str, int]:
        return self.store.stats().faults

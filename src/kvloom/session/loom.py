"""The loom: one loaded model, its tiers, the known chunks, and the sessions over them. What `kvloom.open` returns.

Joins all rooms; the edges call this and `Session`, and nothing below.
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
from kvloom.errors import (
    AmbiguousChunkError,
    EngineMemoryError,
    LoomClosedError,
    SessionBusyError,
    UnknownChunkError,
    UsageError,
)
from kvloom.kv.rotate import Rotator
from kvloom.kv.store import TieredStore
from kvloom.memory.monitor import LowMemory, MemoryMonitor, Pace
from kvloom.memory.reading import MemoryPicture
from kvloom.memory.sizing import WINDOW_STEP, Room, Sizing, budget_bytes
from kvloom.model.footprint import largest_fitting
from kvloom.session.composer import Composer
from kvloom.session.foreground import Foreground
from kvloom.session.gc import collect
from kvloom.session.guard import MemoryGuard
from kvloom.session.history import History, TurnRecord
from kvloom.session.library import Library
from kvloom.session.log import SessionLog
from kvloom.session.pool import Pool, num_cells
from kvloom.session.presets import bring_in, profile_of
from kvloom.session.prompts import Prompts
from kvloom.session.purge import purge
from kvloom.session.session import Session
from kvloom.session.sizing import limits_of, reading_for
from kvloom.session.snapshots import SnapshotStore
from kvloom.session.status import Rates, device_status
from kvloom.session.transfer import export_session, import_session
from kvloom.session.turn import Runner, TurnRunner
from kvloom.session.values import (
    Chunk,
    ChunkDetail,
    ChunkPart,
    ChunkPlace,
    ChunkStatus,
    GcReport,
    LoomStatus,
    Progress,
    ProgressCallback,
    Reloaded,
    SessionInfo,
    TierStatus,
    VerifyResult,
)
from kvloom.text.counter import TokenCount
from kvloom.text.pieces import PromptBuilder
from kvloom.text.preamble import alone_prefix
from kvloom.types import ChunkId, EntryId, Fidelity, SessionId, TierName


class Loom:
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
        self.home = home
        self.window = settings.context or settings.context_target
        self.sizing: Sizing | None = None
        """How the window was chosen; None where the engine was loaded by someone else."""
        self.policy: str = settings.overflow.policy or "stop"
        """What leaves a window that overflows, where a session has not chosen."""
        self.foreground = Foreground()
        self.rates = Rates()
        self.device = Device(engine)
        self.pool = Pool(self.device, self.window, self._spare_bytes)
        self.guard = MemoryGuard(self)
        """What is done when memory runs low, and how much may still be taken."""
        self.monitor = MemoryMonitor(pace=Pace(busy_s=settings.guard.poll_s, rest_s=6 * settings.guard.poll_s))
        self.builder = PromptBuilder(engine.vocabulary, default_system=settings.system)
        # By the model alone: were the window in it, another window would find none of the stored KV.
        prefix = alone_prefix(engine.sink_token, engine.train_context, self.builder.tokenizer.content)
        self.composer = Composer(engine, self.device, store, rotator.lay, prefix)
        self.model_name, self._model_path = model
        self._rotator = rotator
        self._database = Database(home)
        self.catalog = Catalog(self._database)
        self.log = SessionLog(self._database)
        self.snapshot_store = SnapshotStore(self._database)
        self._profiles = ProfileStore(self._database)
        self.library = Library(self.catalog, self.builder, self.composer, store)
        self.prompts = Prompts(self.builder, self.library, engine.fingerprint)
        self._sessions: dict[SessionId, Session] = {}
        self._pinned: set[EntryId] = set()
        self._lock = threading.RLock()
        self._closed = False
        if settings.guard.enabled:
            self.monitor.on_reading(self.guard.on_picture)
            self.monitor.start()

    # -- chunks -------------------------------------------------------------------------------------------------

    def load(self, path: str | Path, *, name: str | None = None, repair: bool = False) -> Chunk:
        """A text file as a chunk; its id is the SHA-256 of the file. Loading it again stores nothing twice.

        Raises ContentError saying what is wrong with the file and what to do; `repair` replaces invalid UTF-8.
        """
        self._check_open()
        return self.library.load(Path(path).expanduser(), name, repair)

    def load_text(self, text: str, *, name: str) -> Chunk:
        """A text as a chunk under a name."""
        self._check_open()
        return self.library.load_text(text, name)

    def resolve(self, ref: str) -> ChunkId:
        """The chunk of a name or of an unambiguous prefix of 6 hex digits or more.

        Raises UnknownChunkError (with near names) and AmbiguousChunkError (with the candidates).
        """
        self._check_open()
        return self.catalog.resolve(ref)

    def chunks(self, *, erased: bool = False) -> list[ChunkStatus]:
        """Every known chunk with its tier and bytes, in the order of loading."""
        self._check_open()
        return self.library.statuses(erased=erased)

    def chunk(self, ref: str) -> ChunkDetail:
        """Everything about one chunk."""
        chunk = self.resolve(ref)
        with self.device.lock:
            residents = list(self.device.residents())
        on_device = {resident.entry for _, resident in residents}
        parts = []
        runs = self.library.parts(chunk, self.catalog.get(chunk).name)
        for part, entry in self.library.entries(chunk):
            cells = {r.position for _, r in residents if r.entry == entry}
            tokens = runs[part].ids if part < len(runs) else ()
            tier = self.library.tier(entry, on_device)
            size = len(tokens) * self.engine.layout.token_bytes if tier is not TierName.NONE else 0
            parts.append(ChunkPart(part, entry, len(tokens), tier, size, len(cells) * len(tokens), tokens))
        places = tuple(self._places(chunk))
        return ChunkDetail(self.library.status(chunk), tuple(parts), places, len(places), self.catalog.metadata(chunk))

    def set_metadata(self, ref: str, key: str, value: str | None) -> None:
        """Set a chunk's metadata; None or "" takes the key away."""
        self.catalog.set_metadata(self.resolve(ref), key, value or "")

    def reload(self, ref: str | None = None) -> list[Reloaded]:
        """Names whose files changed move to what the files hold now, in the catalog; `Session.reload` swaps them in."""
        self._check_open()
        return self.library.reload(None if ref is None else [self.resolve(ref)])

    def offload(self, ref: str) -> int:
        """A chunk's KV from device and RAM to disk; bytes that were moved."""
        entries = [entry for _, entry in self.library.entries(self.resolve(ref))]
        with self.device.lock:
            self.device.drop_entries(set(entries))
        return sum(self.store.size_of(entry) for entry in entries if self.store.offload(entry))

    def save(self, ref: str) -> int:
        """A chunk's KV on disk now, synced; bytes."""
        entries = [entry for _, entry in self.library.entries(self.resolve(ref))]
        return sum(self.store.size_of(entry) for entry in entries if self.store.save(entry))

    def restore(self, ref: str) -> int:
        """A chunk's KV from disk back into RAM; an erased chunk comes back too. Bytes that are warm now."""
        self._check_open()
        chunk = self._resolve_erased(ref)
        self.catalog.restore(chunk)
        loaded = (self.store.get(entry) for _, entry in self.library.entries(chunk))
        return sum(entry.rows.nbytes for entry in loaded if entry is not None)

    def erase(self, ref: str) -> None:
        """Hide a chunk; `restore` (or a session's undo) brings it back. Contexts that hold it keep it."""
        self.catalog.erase(self.resolve(ref))

    def restore_erased(self, chunk: ChunkId) -> None:
        """Undo `erase`."""
        self.catalog.restore(chunk)

    def purge(self, ref: str) -> int:
        """A chunk really gone: its KV from every tier, its text, its names, and its tokens from every session's log.

        Turns that were computed behind it lose their KV (it carries the chunk's trace) and are computed again when
        they are needed; their text stays. Bytes freed. Not undoable. Raises SessionBusyError where another process
        has a session open that holds it.
        """
        return purge(self, self._resolve_erased(ref))

    def verify(self, progress: ProgressCallback | None = None) -> Iterator[VerifyResult]:
        """Read and check every stored entry; a damaged one is reported (and becomes a miss when it is wanted)."""
        self._check_open()
        total = len(self.store.ids())
        for number, found in enumerate(self.store.verify(), 1):
            if progress is not None:
                progress(Progress("verify", number, total, "entries"))
            yield VerifyResult(found.entry_id, found.nbytes, found.fault)

    def gc(self) -> GcReport:
        """Remove stored entries that no chunk and no session of any model names any more."""
        self._check_open()
        self.store.flush()
        return collect(self)

    def count(self, text: str) -> int:
        """The exact number of tokens of `text` under the loaded model, special tokens read as text."""
        self._check_open()
        return len(self.builder.tokenizer.content(text))

    def counted(self, text: str) -> TokenCount:
        """`count`, and whether it is only an estimate: of a model behind an endpoint that counts nothing, it is."""
        return TokenCount(self.count(text), is_estimate=False)

    @property
    def counts_exactly(self) -> bool:
        """Whether numbers of tokens are exact, or estimates that are marked as such."""
        return True

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
                found = found or self.log.create(self.model_name, name or "")
                session = self.session_kind(self, History(self.log, found, lambda: first))
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
        return [self._info(record.id) for record in self.log.list()]

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
            for session in self.open_sessions():
                session.close()
        except SessionBusyError:
            self._closed = False  # called from inside a reply's own step: nothing was closed
            raise
        with ExitStack() as last_things:
            last_things.callback(self._close_engine)
            last_things.callback(self.guard.wait)
            last_things.callback(self.monitor.close)
            last_things.callback(self._database.close)
            last_things.callback(self._rotator.close)
            last_things.callback(self.store.close)

    def __enter__(self) -> Loom:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- for sessions -------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise LoomClosedError("the loom is closed; open it again with kvloom.open(…)")

    def _forget(self, session: Session) -> None:
        with self._lock:
            if self._sessions.get(session.id) is session:
                del self._sessions[session.id]
        self._pin_entries()

    def open_sessions(self) -> list[Session]:
        """The sessions that are open in this process."""
        with self._lock:
            return list(self._sessions.values())

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
        return TurnRunner(self, owner, cancel, history.next_ordinal if history is not None else lambda: 0)

    # -- the pool -----------------------------------------------------------------------------------------------

    def ensure_window(self, window: int) -> None:
        """Cells for a session of `window` tokens (0: the loom's own). Raises EngineMemoryError, UsageError."""
        self._check_open()
        self.pool.ensure(window or self.window)

    def shrink_pool(self) -> bool:
        """Give back cells that no open session's window needs."""
        windows = [session.window for session in self.open_sessions()]
        return self.pool.shrink(max(windows, default=self.window))

    def automatic_window(self) -> int:
        """The window that the settings, the model and memory allow now, the present pool's cells given back."""
        limits = limits_of(self.settings)
        most = min(filter(None, (limits.target, limits.maximum, self.engine.train_context)))
        reading = reading_for(self.monitor.poll(), on_accelerator=self.engine.uses_accelerator)
        if reading is None:
            return most
        token_bytes = self.engine.layout.token_bytes
        budget = budget_bytes(Room.of(reading), limits) + self.engine.num_cells * token_bytes
        return largest_fitting(lambda tokens: num_cells(tokens) * token_bytes <= budget, most, WINDOW_STEP)

    # -- memory -------------------------------------------------------------------------------------------------

    def memory(self) -> MemoryPicture:
        """All memories of this machine, read now."""
        return self.monitor.poll()

    def on_low_memory(self, callback: Callable[[LowMemory], None], share: float = 0.8) -> Callable[[], None]:
        """Call `callback` when a memory's used share reaches `share`, once a crossing; returns what ends that."""
        return self.monitor.on_low_memory(callback, share)

    def _spare_bytes(self) -> int | None:
        """What may be taken below the guard's soft limit, as of now; None where the guard is off."""
        if not self.settings.guard.enabled:
            return None
        self.monitor.poll()
        return self.guard.spare_bytes()

    def _close_engine(self) -> None:
        with self.device.lock:
            self.engine.close()

    def _resolve_among(self, ref: str, manifest: Manifest) -> ChunkId:
        """`resolve`, looking first at what a context holds: an erased or renamed chunk may still stand in it."""
        here = {s.ref for s in manifest.chunks if s.name == ref or (len(ref) >= 6 and s.ref.startswith(ref.lower()))}
        if len(here) == 1:
            return ChunkId(here.pop())
        if len(here) > 1:
            names = {s.ref: s.name for s in manifest.chunks}
            listed = ", ".join(f"{chunk[:12]} ({names[chunk]})" for chunk in sorted(here))
            raise AmbiguousChunkError(f"{ref!r} fits {len(here)} chunks here: {listed}", [(c, names[c]) for c in here])
        return self.resolve(ref)

    def _resolve_erased(self, ref: str) -> ChunkId:
        """`resolve`, erased chunks too."""
        self._check_open()
        try:
            return self.catalog.resolve(ref)
        except UnknownChunkError:
            fits = [c for c in self.catalog.ls(erased=True) if ref in c.names or c.id.startswith(ref.lower())]
            if len(fits) != 1 or (len(ref) < 6 and ref not in fits[0].names):
                raise
            return fits[0].id

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

    def _find(self, ref: str | None, name: str | None) -> SessionId | None:
        if ref is not None:
            return self.log.resolve(ref)
        known = {record.name: record.id for record in self.log.list()} if name else {}
        return known.get(name or "")

    def _info(self, session: SessionId) -> SessionInfo:
        record = self.log.get(session)
        manifest = Manifest()
        if record.head:
            manifest = Manifest.decode(self.log.manifest(record.head[0]).body, self.log.tokens)
        return SessionInfo(
            record.id, record.name, record.model, record.created_s, record.updated_s, len(manifest.turns),
            len(manifest.chunk_ids), manifest.num_tokens, session in self._sessions or self.log.is_open(session),
        )  # fmt: skip

    def _places(self, chunk: ChunkId) -> Iterator[ChunkPlace]:
        for record in self.log.list():
            if not record.head:
                continue
            manifest = Manifest.decode(self.log.manifest(record.head[0]).body, self.log.tokens)
            slots = [slot for slot in manifest.chunks if slot.ref == chunk]
            if slots:
                first = slots[0]
                yield ChunkPlace(record.id, record.name, first.active, first.pinned, first.position, slots[-1].stop)

    def _tier_statuses(self) -> Iterator[TierStatus]:
        for tier in self.store.stats().tiers:
            yield TierStatus(tier.name, tier.num_entries, tier.nbytes, tier.budget_bytes)

    def _faults(self) -> Mapping[str, int]:
        return self.store.stats().faults

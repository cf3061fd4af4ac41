"""Acts when memory runs low: cold entries leave RAM, the window shrinks, new work waits. The conversation stays.

What is low is decided in the memory room; what is done to a session goes through the session itself.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvloom.errors import CompressionError, KvloomError, MemoryPressureError
from kvloom.memory.guard import Crossing, Guard, Level, Thresholds
from kvloom.memory.reading import MemoryPicture, MemoryReading
from kvloom.session.events import Signal
from kvloom.session.values import GuardNotice

if TYPE_CHECKING:
    from kvloom.session.loom import Loom
    from kvloom.session.session import Session

_LOG = logging.getLogger(__name__)

SHRINK_SHARE = 0.5
"""What HARD leaves of a window, where the conversation fits into it."""
MAX_NOTICES = 20
MIB = 1024**2


class _Board:
    """What one loom is told: `notices`, the newest last, and those of them that no reply has told yet."""

    def __init__(self) -> None:
        self.notices: deque[GuardNotice] = deque(maxlen=MAX_NOTICES)
        self.untold: deque[GuardNotice] = deque(maxlen=MAX_NOTICES)


@dataclass
class _Done:
    """What was done at a crossing: to the machine, which everybody is told, and to each loom's own conversations."""

    machine: list[str] = field(default_factory=list)
    own: dict[Loom, list[str]] = field(default_factory=dict)

    def said_to(self, loom: Loom) -> str:
        return "; ".join(filter(None, (*self.machine, *self.own.get(loom, ()))))


class MemoryGuard:
    """Watches the memories that the model and the tiers live in, for a loom and the tenants over it.

    One notice a crossing for each of them: what concerns the machine is in all, what was done to a conversation only
    in that of the loom it belongs to.
    """

    def __init__(self, loom: Loom) -> None:
        settings = loom.settings.guard
        self._loom = loom
        self._thresholds = Thresholds(settings.soft, settings.hard, settings.critical, settings.hysteresis)
        self._guards: dict[str, Guard] = {}
        self._lock = threading.RLock()
        self._boards: dict[Loom, _Board] = {loom: _Board()}
        self.acted: Signal[GuardNotice] = Signal()
        """Told of every notice to the loom itself."""
        self._work: threading.Thread | None = None
        self._owed: tuple[str, Crossing] | None = None
        """A release that a reply under way held up."""

    # -- looking ------------------------------------------------------------------------------------------------

    @property
    def level(self) -> Level:
        """The worst of all watched memories."""
        return max((guard.level for guard in self._guards.values()), default=Level.NORMAL)

    @property
    def is_refusing(self) -> bool:
        """Whether new work is refused."""
        return self.level is Level.CRITICAL

    def spare_bytes(self) -> int | None:
        """Bytes that may be taken while every watched memory stays below soft; None where nothing is known."""
        limits = [limit for guard in self._guards.values() if (limit := guard.safe_limit_bytes()) is not None]
        return min(limits, default=None)

    def can_allocate(self, num_tokens: int) -> bool:
        """Whether the KV of so many more tokens would fit below the soft limit."""
        spare = self.spare_bytes()
        return not self.is_refusing and (spare is None or num_tokens * self._loom.engine.layout.token_bytes <= spare)

    def safe_limit(self) -> int | None:
        """Tokens whose KV may still be taken below the soft limit; None where memory is not known."""
        spare = self.spare_bytes()
        return None if spare is None else spare // self._loom.engine.layout.token_bytes

    def check(self) -> None:
        """Raises MemoryPressureError, with the numbers, while new work is refused."""
        if not self.is_refusing:
            return
        worst = max(self._guards.items(), key=lambda item: item[1].used_bytes / max(1, item[1].total_bytes))
        name, guard = worst
        raise MemoryPressureError(
            f"{name} is full: {guard.used_bytes / MIB:,.0f} of {guard.total_bytes / MIB:,.0f} MiB are used, and above "
            f"{self._thresholds.critical:.0%} new work is refused; nothing is lost. End other programs, or open a "
            "smaller model or context; it goes on by itself once memory is free"
        )

    # -- telling ------------------------------------------------------------------------------------------------

    def join(self, tenant: Loom) -> None:
        """From now on this tenant is told, too."""
        with self._lock:
            self._boards[tenant] = _Board()

    def leave(self, tenant: Loom) -> None:
        """The tenant was closed. Idempotent."""
        with self._lock:
            self._boards.pop(tenant, None)

    @property
    def notices(self) -> tuple[GuardNotice, ...]:
        """What the loom itself was told, the newest last."""
        return self.notices_of(self._loom)

    def notices_of(self, loom: Loom) -> tuple[GuardNotice, ...]:
        """What this loom was told, the newest last."""
        with self._lock:
            board = self._boards.get(loom)
            return () if board is None else tuple(board.notices)

    def take_notices(self, loom: Loom) -> tuple[str, ...]:
        """What this loom was not told yet, for its next reply."""
        with self._lock:
            board = self._boards.get(loom)
            if board is None:
                return ()
            told = tuple(notice.text for notice in board.untold)
            board.untold.clear()
        return told

    # -- acting -------------------------------------------------------------------------------------------------

    def on_picture(self, picture: MemoryPicture) -> None:
        """Take note of a picture and do what it calls for. Called by the monitor; slow work runs in a thread."""
        for reading in self._watched(picture):
            guard = self._guards.setdefault(reading.device, Guard(self._thresholds))
            # What caches hold can be had back: it is not used.
            crossing = guard.observe(reading.total_bytes - reading.available_bytes, reading.total_bytes)
            if crossing is not None:
                self._crossed(reading.device, crossing)
        owed, self._owed = self._owed, None
        if owed is not None and self.is_refusing:
            self._begin(lambda: self._release_owed(*owed))

    def wait(self, timeout_s: float | None = None) -> None:
        """Until what is being done is done."""
        work = self._work
        if work is not None and work is not threading.current_thread():
            work.join(timeout_s)

    def _watched(self, picture: MemoryPicture) -> list[MemoryReading]:
        """The host's memory, and the accelerators' where the model is on them."""
        found = [picture.host] if picture.host is not None else []
        if self._loom.engine.uses_accelerator:
            found += [reading for reading in picture.accelerators if reading not in found]
        return found

    def _crossed(self, device: str, crossing: Crossing) -> None:
        if not crossing.is_rise:
            if crossing.before is Level.CRITICAL:
                self._say(device, crossing, _Done(["new work is accepted again"]))
            return
        self._begin(lambda: self._act(device, crossing))

    def _begin(self, act: Callable[[], None]) -> None:
        """One after the other. Nobody waits for it here: what is done may wait for a reply, or for who called us."""

        def run(before: threading.Thread | None) -> None:
            if before is not None:
                before.join()
            act()

        with self._lock:
            self._work = threading.Thread(target=run, args=(self._work,), name="kvloom-guard", daemon=True)
            self._work.start()

    def _act(self, device: str, crossing: Crossing) -> None:
        done = _Done()
        try:
            done.machine += [self._evict(), self._release_embedder()]
            if crossing.after is Level.HARD:
                self._shrink(done)
            if crossing.after is Level.CRITICAL:
                self._release(device, crossing, done)
        except (KvloomError, OSError) as error:
            self._failed(done, error)
        self._say(device, crossing, done)

    def _failed(self, done: _Done, error: Exception) -> None:
        """What failed may name a tenant's files: only the loom itself is told."""
        _LOG.error("the guard failed: %s", error)
        done.machine.append("not everything could be done")
        done.own.setdefault(self._loom, []).append(f"something failed: {error}")

    def _evict(self) -> str:
        freed = self._loom.store.cool()
        return f"{freed / MIB:,.0f} MiB of KV went from RAM to disk" if freed else ""

    def _release_embedder(self) -> str:
        freed = self._loom.embeddings.release()
        return f"the context for embeddings ({freed / MIB:,.0f} MiB) was given back" if freed else ""

    def _shrink(self, done: _Done) -> None:
        """Every session's window to a half, compressed first so that it fits; then the pool."""
        sessions = self._loom.open_sessions()
        for session in sessions:
            is_alone = sum(other.loom is session.loom for other in sessions) == 1
            which = "the window" if is_alone else f"the window of session {session.name or session.id}"
            if said := self._shrink_one(session, which):
                done.own.setdefault(session.loom, []).append(said)
                _LOG.info("session %s: %s", session.id[:8], said)
        if self._loom.shrink_pool():
            done.machine.append(f"the pool was rebuilt for {self._loom.pool.window} tokens")

    def _shrink_one(self, session: Session, which: str) -> str:
        before = session.window
        target = max(min(self._loom.settings.context_min, before), int(before * SHRINK_SHARE))
        if target >= before:
            return ""
        said = ""
        if session.manifest.num_tokens > target * 3 // 4:
            try:
                session.compress("truncate")
                said = " (older turns left the window first)"
            except CompressionError as error:
                _LOG.info("session %s could not be compressed: %s", session.id[:8], error)
        try:
            session.resize(max(target, session.manifest.num_tokens + min(256, before // 8)))
        except KvloomError as error:
            return f"{which} stays at {before} tokens: {error}"
        return f"{which} went from {before} to {session.window} tokens{said}; undo takes it back"

    def _release(self, device: str, crossing: Crossing, done: _Done) -> None:
        """Snapshots without inference, then the cells; those of a reply under way stay until its end."""
        for session in self._loom.open_sessions():
            session.snapshot_now("memory is critically short")
        freed = self._release_cells()
        done.machine.append("new work is refused")
        if freed is None:
            self._owed = (device, crossing)
            done.machine.append("a reply under way is let to its end")
        else:
            done.machine.append(_released(freed))

    def _release_owed(self, device: str, crossing: Crossing) -> None:
        done = _Done()
        try:
            freed = self._release_cells()
        except KvloomError as error:
            self._failed(done, error)
        else:
            if freed is None:
                self._owed = (device, crossing)
                return
            done.machine += ["the reply under way has ended", _released(freed)]
        self._say(device, crossing, done)

    def _release_cells(self) -> int | None:
        """Bytes given back; None while a reply needs them."""
        with self._loom.device.lock:
            return None if self._loom.device.num_busy() else self._loom.pool.release()

    def _say(self, device: str, crossing: Crossing, done: _Done) -> None:
        """Under this guard's lock alone: whoever reads memory may hold any other."""
        change = f"memory ({device}) is at {crossing.share:.0%}, {crossing.before.value} → {crossing.after.value}"
        told: dict[Loom, GuardNotice] = {}
        with self._lock:
            for loom, board in self._boards.items():
                text = f"{change}: {done.said_to(loom) or 'there was nothing that could be given back'}"
                notice = GuardNotice(device, crossing.before.value, crossing.after.value, crossing.share, text)
                board.notices.append(notice)
                board.untold.append(notice)
                told[loom] = notice
        _LOG.warning("%s", told[self._loom].text)
        self.acted.tell(told[self._loom])


def _released(num_bytes: int) -> str:
    return f"{num_bytes / MIB:,.0f} MiB of the device's KV were released, the conversation stays"

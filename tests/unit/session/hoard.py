"""Sessions that bring in far more KV than the tiers may hold, and who looks how much is really held meanwhile."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from kvloom.errors import ContextOverflowError, NothingToUndoError, SnapshotError
from kvloom.kv.disk import DiskTier
from kvloom.kv.ram import RamTier
from kvloom.session.loom import Loom
from kvloom.session.probe import Probe
from kvloom.session.session import Session
from kvloom.types import Entry, Fidelity

REFUSALS = (ContextOverflowError, NothingToUndoError, SnapshotError)
WORDS = ("warp", "weft", "shuttle", "reed", "heddle", "treadle", "bobbin", "selvage", "spindle", "thread", "twill")
LOOK_EVERY_S = 0.002

Check = Callable[[Loom, Session], None]
"""Whether a session's context is what it says, and the next token right."""


def tiers_of(loom: Loom) -> tuple[RamTier, DiskTier]:
    [ram], [disk] = loom.store._warm, loom.store._cold
    assert isinstance(ram, RamTier)
    assert isinstance(disk, DiskTier)
    return ram, disk


def ram_bytes(loom: Loom) -> int:
    """Bytes of all buffers that the store holds on to, each once, whatever its own books say."""
    ram, _ = tiers_of(loom)
    with loom.store._changed, ram._lock:
        entries = [*ram._entries.values(), *(one.entry for one in loom.store._pending.values())]
    buffers = [entry.rows.data for entry in entries]
    buffers = [data.base if isinstance(data.base, np.ndarray) else data for data in buffers]
    sizes = {id(buffer): buffer.nbytes for buffer in buffers}
    return sum(sizes.values())


def disk_bytes(loom: Loom) -> int:
    """Bytes of all files in the store's folder, half-written ones too, with nothing renamed or removed meanwhile."""
    _, disk = tiers_of(loom)
    with disk._bay.exclusive():
        return sum(entry.stat().st_size for entry in _files(disk._bay.directory))


def _files(folder: Path) -> list[os.DirEntry[str]]:
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            found += _files(Path(entry.path)) if entry.is_dir() else [entry]
    return found


class Watcher:
    """A thread that looks again and again what is held, in mid-work too. `peak_*`: the most that it saw."""

    def __init__(self) -> None:
        self.peak_ram_bytes = self.peak_disk_bytes = self.num_looks = 0
        self._loom: Loom | None = None
        self._lock = threading.Lock()
        self._ends = threading.Event()
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def follow(self, loom: Loom | None) -> None:
        """The loom to look at from now on."""
        with self._lock:
            self._loom = loom

    def look(self) -> None:
        with self._lock:
            if self._loom is None:
                return
            self.peak_ram_bytes = max(self.peak_ram_bytes, ram_bytes(self._loom))
            self.peak_disk_bytes = max(self.peak_disk_bytes, disk_bytes(self._loom))
            self.num_looks += 1

    def close(self) -> None:
        """Raises what ended the looking."""
        self._ends.set()
        self._thread.join()
        if self._fault is not None:
            raise self._fault

    def _watch(self) -> None:
        try:
            while not self._ends.wait(LOOK_EVERY_S):
                self.look()
        except BaseException as error:  # noqa: BLE001 - a thread's edge
            self._fault = error


class Hoard:
    """Several sessions of one home, under a random load. `open_loom` opens the home, again after every restart."""

    def __init__(self, open_loom: Callable[[], Loom], check: Check, seed: int, num_sessions: int = 3) -> None:
        self._open, self._check = open_loom, check
        self._random = random.Random(seed)
        self.watcher = Watcher()
        self.num_done = 0
        self.stored_bytes = 0
        """Bytes of rows that were ever put into the store."""
        try:
            self.loom = self._opened()
        except BaseException:
            self.watcher.close()
            raise
        modes = [Fidelity.EXACT, Fidelity.SPLICE, Fidelity.EXACT]
        self.sessions = [self.loom.session(name=f"number {n}", fidelity=modes[n % 3]) for n in range(num_sessions)]
        for session in self.sessions:
            session.policy = "fifo"
        self._operations: list[tuple[int, Callable[[Session], object]]] = [
            (10, self.bring), (8, self.ask), (6, self.toggle), (4, self.move), (3, self.remove), (2, self.clear),
            (2, self.snapshot), (3, self.restore), (2, self.undo), (3, self.pin), (2, self.offload), (2, self.warm_up),
            (1, self.purge), (1, self.collect), (1, self.restart),
        ]  # fmt: skip

    def step(self) -> str:
        """One operation in one session, woven, and a look at what is held; its name."""
        weights = [weight for weight, _ in self._operations]
        _, operation = self._random.choices(self._operations, weights)[0]
        index = self._random.randrange(len(self.sessions))
        with suppress(*REFUSALS):
            operation(self.sessions[index])
            self.sessions[index].warm()
        self.num_done += 1
        self.watcher.look()
        return operation.__name__

    def check(self) -> None:
        """Every session is still right, and what is stored whole."""
        for session in self.sessions:
            session.warm()
            self._check(self.loom, session)
        assert not [found for found in self.loom.verify() if found.fault]

    def close(self) -> None:
        self.watcher.follow(None)
        self.loom.close()
        self.watcher.close()

    # -- operations -------------------------------------------------------------------------------------------------

    def bring(self, chat: Session) -> None:
        """A chunk that was never seen before, or one that is known."""
        known = [chunk.id for chunk in self.loom.chunks()]
        if known and self._random.random() < 0.3:
            chat.activate(self._random.choice(known))
            return
        text = " ".join(self._random.choices(WORDS, k=self._random.randrange(4, 30)))
        chat.activate(self.loom.load_text(f"{self.num_done}: {text}", name=f"note {self.num_done}").id)

    def ask(self, chat: Session) -> None:
        text = f"question {self.num_done} " + " ".join(self._random.choices(WORDS, k=self._random.randrange(6)))
        chat.generate(text, max_tokens=self._random.randrange(1, 8), temperature=0.0)

    def toggle(self, chat: Session) -> None:
        if known := chat.manifest.chunk_ids:
            chunk = self._random.choice(known)
            if chunk in chat.manifest.active_chunk_ids:
                chat.deactivate(chunk)
            else:
                chat.activate(chunk)

    def move(self, chat: Session) -> None:
        if known := chat.manifest.chunk_ids:
            chat.move(self._random.choice(known), self._random.randrange(len(known)))

    def remove(self, chat: Session) -> None:
        if known := chat.manifest.chunk_ids:
            chat.remove(self._random.choice(known))

    def clear(self, chat: Session) -> None:
        chat.clear()

    def snapshot(self, chat: Session) -> None:
        chat.snapshot()

    def restore(self, chat: Session) -> None:
        if snapshots := chat.snapshots():
            chat.restore(self._random.choice(snapshots).id)

    def undo(self, chat: Session) -> None:
        chat.undo()

    def pin(self, chat: Session) -> None:
        """One chunk at most stays pinned: pins hold a budget up by design."""
        for slot in {slot.ref: slot for slot in chat.manifest.chunks if slot.pinned}.values():
            chat.pin(slot.ref, False)
        if known := chat.manifest.chunk_ids:
            chat.pin(self._random.choice(known))

    def offload(self, _chat: Session) -> None:
        if known := self.loom.chunks():
            self.loom.offload(self._random.choice(known).id)

    def warm_up(self, _chat: Session) -> None:
        if known := self.loom.chunks():
            self.loom.restore(self._random.choice(known).id)

    def purge(self, _chat: Session) -> None:
        if known := self.loom.chunks():
            self.loom.purge(self._random.choice(known).id)

    def collect(self, _chat: Session) -> None:
        self.loom.gc()

    def restart(self, _chat: Session) -> None:
        ids = [session.id for session in self.sessions]
        self.watcher.follow(None)
        self.loom.close()
        self.loom = self._opened()
        self.sessions = [self.loom.session(id=one) for one in ids]

    def _opened(self) -> Loom:
        loom = self._open()
        put = loom.store.put

        def counted(entry: Entry) -> None:
            self.stored_bytes += entry.rows.nbytes
            put(entry)

        loom.store.put = counted  # type: ignore[method-assign]
        self.watcher.follow(loom)
        return loom


def cold_distance(session: Session, question: str) -> float:
    """KL in nats of the next token's distribution from that of a full prefill of the same token ids."""
    probe = Probe(session)
    tokens = probe.question_tokens(question)
    [want] = probe.cold_log_probs([*session.tokens(), *tokens], 1)
    logits = probe.logits_behind(tokens)
    have = logits - logits.max()
    have -= np.log(np.exp(have).sum())
    return float((np.exp(want) * (want - have)).sum())

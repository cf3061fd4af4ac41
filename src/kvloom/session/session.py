"""A session: one conversation over chunks, as a log of manifests. Every edit writes the next manifest.

The façade that edges call; its window, its states and its views are bases of it. Rows, tiers and the device are the
composer's business, storage the history's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kvloom.context.manifest import Manifest, Slot, SlotKind
from kvloom.errors import ChunkError, ContentError, NothingToUndoError, UnknownChunkError, UsageError
from kvloom.session.asking import Asking
from kvloom.session.budget import Budget
from kvloom.session.compression import Compression
from kvloom.session.desk import Desk
from kvloom.session.history import History
from kvloom.session.recall import MIN_REF_CHARS
from kvloom.session.reply import ReplyOptions, ReplyStream
from kvloom.session.session_libraries import SessionLibraries
from kvloom.session.session_states import SessionStates
from kvloom.session.session_views import SessionViews
from kvloom.session.session_window import SessionWindow
from kvloom.session.values import Chunk, ProgressCallback, Reloaded, Reply, TurnPlan, Warmed
from kvloom.session.watch import Watch
from kvloom.types import ChunkId, F32Array, Fidelity, SessionId

if TYPE_CHECKING:
    from kvloom.session.loom import Loom


class Session(SessionWindow, SessionStates, SessionViews, SessionLibraries):
    """One conversation. Safe to use from several threads: edits and replies take turns.

    Every method raises SessionClosedError after `close()`, and SessionBusyError where an edit is tried from inside
    the iteration of a running reply. An edit in another thread waits for the reply to end.
    """

    def __init__(self, loom: Loom, history: History) -> None:
        self.loom = loom
        self._history = history
        self._desk = Desk(loom, history)
        self._budget = Budget(loom, self._desk)
        self._asking = Asking(loom, self._desk, self._budget)
        self._compression = Compression(loom, self._desk, self._budget, self._asking)
        self._watch = Watch(self._desk, self._budget, self._compression)
        self._asking.after_turn = self._watch.after_turn
        self._asking.before_overflow = self._watch.before_overflow

    # -- who it is ----------------------------------------------------------------------------------------------

    @property
    def id(self) -> SessionId:
        return self._history.id

    @property
    def name(self) -> str:
        return self._history.name

    @property
    def is_closed(self) -> bool:
        return self._desk.is_closed

    @property
    def fidelity(self) -> Fidelity:
        return self.manifest.fidelity

    @property
    def manifest(self) -> Manifest:
        """What the model sees, exactly."""
        return self._desk.manifest

    @property
    def system(self) -> str:
        return self.manifest.system

    def rename(self, name: str) -> None:
        with self._desk.editing():
            self._history.rename(name)

    def close(self) -> None:
        """Give back the device and the session's lock; everything is stored already. A running reply is cancelled,
        one that was left unread is taken back. Idempotent."""
        if self._desk.is_closed:
            return
        self._desk.is_closing = True  # whoever waits for the turn must not get it any more
        self._compression.stop()
        try:
            self._asking.stop()
            with self._desk.turn():
                if not self._desk.close():
                    return
                with self.loom.device.lock:
                    self.loom.device.release_owner(self.id)
                self._history.close()
                self._budget.close()
        finally:
            self._desk.is_closing = False
        self.loom._forget(self)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- what it holds ------------------------------------------------------------------------------------------

    def load(self, path: str | Path, *, name: str | None = None, repair: bool = False) -> Chunk:
        """`loom.load` and activate."""
        chunk = self.loom.load(path, name=name, repair=repair)
        self.activate(chunk.id)
        return chunk

    def activate(self, *refs: str) -> None:
        """Chunks on; one that is not in the context yet comes to the end of the block.

        Raises ContextOverflowError with the numbers where they would not fit, and then changes nothing.
        """
        with self._desk.editing():
            manifest = self.manifest
            for ref in refs:
                chunk = self._known(ref)
                manifest = manifest.owned({chunk})
                if chunk in manifest.chunk_ids:
                    manifest = manifest.switched(chunk, True)
                else:
                    manifest = manifest.with_chunk(chunk, *self.loom.prompts.chunk(chunk, ref))
            self._desk.commit("activate " + " ".join(ref[:12] for ref in refs), self._budget.fitting(manifest))

    def deactivate(self, *refs: str) -> None:
        """Chunks off: outside the attention, their places kept. Turns made behind them keep their trace in
        blend and splice (`Turn.traces`), `recompute()` clears it."""
        with self._desk.editing():
            manifest = self.manifest
            for ref in refs:
                chunk = self._in_context(ref)
                manifest = manifest.owned({chunk}).switched(chunk, False)
            self._desk.commit("deactivate " + " ".join(ref[:12] for ref in refs), self._budget.fitting(manifest))

    def move(self, ref: str, index: int) -> None:
        """A chunk to another place in the block, 0 the first."""
        with self._desk.editing():
            chunk = self._in_context(ref)
            count = len(self.manifest.chunk_ids)
            if not 0 <= index < count:
                raise UsageError(f"place {index} is outside the block of {count} chunks; give 0 to {count - 1}")
            self._desk.commit(f"move {ref[:12]} {index}", self._budget.fitting(self.manifest.moved(chunk, index)))

    def pin(self, ref: str, pinned: bool = True) -> None:
        """Keep a chunk or a turn (its number or id) in the context and its entry in RAM, whatever a policy says."""
        with self._desk.editing():
            turns = self._turns_of(ref)
            found = turns[0].ref if len(turns) == 1 else self._in_context(ref)
            self._desk.commit(f"{'pin' if pinned else 'unpin'} {ref[:12]}", self.manifest.with_pin(found, pinned))

    def remove(self, ref: str) -> None:
        """A chunk out of this context; the store keeps it."""
        with self._desk.editing():
            chunk = self._in_context(ref)
            self._desk.commit(f"remove {ref[:12]}", self.manifest.without({chunk}))

    def erase(self, ref: str) -> None:
        """A chunk out of this context and out of the list of known ones; `undo()` brings both back."""
        with self._desk.editing():
            chunk = self._known(ref)
            self._desk.snapshot_before("erase")
            self.loom.erase(chunk)
            try:
                self._desk.commit_always(f"erase {chunk}", self.manifest.without({chunk}))
            except BaseException:
                self.loom.restore_erased(chunk)
                raise

    def purge(self, ref: str) -> int:
        """A chunk really gone: from every tier, every session and its original; bytes freed. Not undoable."""
        return self.loom.purge(ref)

    def reload(self) -> list[Reloaded]:
        """This context's files that changed on disk, swapped in place.

        Raises ContentError for a file that cannot be read any more, with the others swapped.
        """
        with self._desk.editing():
            manifest, shelf = self.manifest, self.loom.shelf
            standing = [(ChunkId(slot.ref), slot.name) for slot in manifest.chunks if not slot.part]
            # Behind an undo a name may be ahead of what stands here under it: its file counts all the same.
            ahead = [one.new for one in shelf.moved(standing)]
            unreadable: ContentError | None = None
            try:
                shelf.reload([*manifest.chunk_ids, *ahead])
            except ContentError as error:
                unreadable = error
            moved = shelf.moved(standing)
            for one in moved:
                manifest = self.loom.prompts.swapped(manifest, one.old, one.new, one.name)
            self._desk.commit("reload " + " ".join(one.name for one in moved), self._budget.fitting(manifest))
            if unreadable is not None:
                raise unreadable
            return moved

    def set_fidelity(self, fidelity: Fidelity | str) -> None:
        """Another mode for what is placed from now on."""
        with self._desk.editing():
            mode = self.loom.usable_fidelity(fidelity)
            self._desk.commit(f"fidelity {mode.value}", self._budget.fitting(self.manifest.with_fidelity(mode)))

    def set_system(self, system: str) -> None:
        """Another system prompt, in front of everything."""
        with self._desk.editing():
            head = self.loom.prompts.head(system)
            self._desk.commit("system", self._budget.fitting(self.manifest.with_head(head, system)))

    def clear(self, turns: Sequence[int] | None = None) -> None:
        """Chunks and turns out of this context, or only the turns of these numbers (from 1). The store keeps all."""
        with self._desk.editing():
            known = self.manifest.turns
            self._desk.snapshot_before("clear")
            if turns is None:
                refs = {slot.ref for slot in self.manifest.slots if slot.kind is not SlotKind.HEAD}
                self._desk.commit("clear", self.manifest.without(refs))
                return
            wrong = [number for number in turns if not 1 <= number <= len(known)]
            if wrong:
                raise UsageError(f"there is no turn {wrong[0]}; this context has {len(known)} turns, from 1")
            refs = {known[number - 1].ref for number in turns}
            self._desk.commit(f"clear turns {sorted(turns)}", self.manifest.without(refs))

    def recompute(self) -> int:
        """Compute every turn that carries the trace of a chunk that is off again, behind what is on now.

        The number of turns that did. The work is done by `warm()` or the next reply.
        """
        with self._desk.editing():
            manifest = self.manifest
            traced = sum(bool(manifest.traces(slot)) for slot in manifest.turns)
            if traced:
                self._desk.commit("recompute", manifest.recomputed())
            return traced

    # -- asking -------------------------------------------------------------------------------------------------

    def generate(self, text: str, *args: object, progress: ProgressCallback | None = None, **options: object) -> Reply:
        """The whole reply to `text`; same parameters as `stream`."""
        return _read(self.stream(text, *args, progress=progress, **options))  # type: ignore[arg-type]

    def stream(
        self,
        text: str,
        max_tokens: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        *,
        progress: ProgressCallback | None = None,
        **options: object,
    ) -> ReplyStream:
        """The reply to `text`, delta by delta. `temperature` 0 is greedy; None takes the settings', then the model's.

        More options: top_k, top_p, min_p, repeat_penalty, keep_partial, must_find. The first `next()` raises
        ContextOverflowError with the numbers, before any work, if the question does not fit, and with `must_find`
        NothingFoundError where the attached libraries have nothing relevant. CancelledError when cancelled (the context
        is as before; with `keep_partial` the reply ends with finish_reason "cancelled" and is kept).
        """
        chosen = ReplyOptions.make(stop, max_tokens=max_tokens, temperature=temperature, seed=seed, **options)
        self._desk.check_open()
        return self._asking.ask(text, chosen, progress)

    def retry(self, **options: object) -> Reply:
        """Ask the last question again; its new reply takes the old one's place. `undo()` brings the old one back."""
        return _read(self.retry_stream(**options))  # type: ignore[arg-type]

    def retry_stream(
        self,
        *,
        stop: str | Sequence[str] | None = None,
        progress: ProgressCallback | None = None,
        **options: object,
    ) -> ReplyStream:
        """`retry`, delta by delta. A reply that fails or is cancelled leaves the old one where it is."""
        chosen = ReplyOptions.make(stop, **options)
        self._desk.check_open()
        if not self.manifest.turns:
            raise NothingToUndoError("there is no turn to try again; ask something first")
        return self._asking.ask_again(chosen, progress)

    def plan(self, text: str | None, max_tokens: int | None = None) -> TurnPlan:
        """What `stream(text)` would take (None: what `retry_stream()` would), before any work and with nothing changed.

        Raises ContextOverflowError as they do.
        """
        with self._desk.editing():
            return self._asking.plan(text, max_tokens)

    def next_logits(self, text: str) -> F32Array:
        """Logits (n_vocab,) from which `generate(text)` would draw its first token. Changes nothing.

        It is computed in a scratch sequence; session, log and counters stay as they are.
        """
        with self._desk.editing():
            return self._asking.next_logits(text)

    def warm(self, progress: ProgressCallback | None = None) -> Warmed:
        """Compute and place now what the context wants, so that the next question does not wait."""
        with self._desk.editing():
            return self._asking.warm(progress)

    def cancel(self) -> None:
        """Stop the running reply between two steps; from any thread or a signal handler."""
        self._desk.cancel.set()

    # -- inside -------------------------------------------------------------------------------------------------

    def _turns_of(self, ref: str) -> list[Slot]:
        """Turns of this context by number ("3"), or by the beginning of their id."""
        turns = self.manifest.turns
        if ref.isdigit() and 1 <= int(ref) <= len(turns):
            return [turns[int(ref) - 1]]
        return [slot for slot in turns if len(ref) >= MIN_REF_CHARS and slot.ref.startswith(ref)]

    def _known(self, ref: str) -> ChunkId:
        """A chunk of the home; one that is erased, but stands here still, too."""
        try:
            return self.loom.resolve(ref)
        except UnknownChunkError:
            return self.loom._resolve_among(ref, self.manifest)

    def _in_context(self, ref: str) -> ChunkId:
        chunk = self.loom._resolve_among(ref, self.manifest)
        if chunk not in self.manifest.chunk_ids:
            raise ChunkError(f"{ref} is not in this context: load its file or activate it to bring it in")
        return chunk


def _read(stream: ReplyStream) -> Reply:
    """To the end. Closed whatever happens: an interrupt's traceback would hold on to the stream, and it to its turn."""
    with stream:
        for _ in stream:
            pass
    return stream.reply

"""A session: one conversation over chunks, as a log of manifests. Every edit writes the next manifest.

The façade that edges call. Rows, tiers and the device are the composer's business, storage the history's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kvloom.context.manifest import Manifest, Slot, SlotKind
from kvloom.context.policies.base import find_policy
from kvloom.errors import ChunkError, ContentError, NothingToUndoError, UnknownChunkError, UsageError
from kvloom.session.asking import Asking
from kvloom.session.budget import Budget
from kvloom.session.compression import Compression
from kvloom.session.desk import Desk
from kvloom.session.history import History
from kvloom.session.recall import MIN_REF_CHARS, ledger_lines, one_line, recalled
from kvloom.session.reply import ReplyOptions, ReplyStream
from kvloom.session.status import context_usage
from kvloom.session.values import (
    Chunk,
    CompressionEstimate,
    CompressionResult,
    ContextUsage,
    LedgerLine,
    Message,
    Overflow,
    ProgressCallback,
    Reloaded,
    Reply,
    Snapshot,
    Threshold,
    Turn,
    Warmed,
)
from kvloom.session.watch import Watch
from kvloom.types import ChunkId, F32Array, Fidelity, SessionId

if TYPE_CHECKING:
    from kvloom.session.loom import Loom


class Session:
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
                manifest = manifest.switched(self._in_context(ref), False)
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
            manifest, library = self.manifest, self.loom.library
            unreadable: ContentError | None = None
            try:
                library.reload(manifest.chunk_ids)
            except ContentError as error:
                unreadable = error
            moved = library.moved((ChunkId(slot.ref), slot.name) for slot in manifest.chunks if not slot.part)
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

    def undo(self) -> str:
        """Take the last change back, a whole turn included; what was undone, in words.

        Raises NothingToUndoError at the session's first manifest.
        """
        with self._desk.editing():
            operation = self._desk.undo()
            self.loom.ensure_window(self.manifest.window)
            if operation.startswith("erase "):
                with suppress(UnknownChunkError):  # purged since
                    self.loom.restore_erased(ChunkId(operation.split()[1]))
            return operation

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

    # -- the window ---------------------------------------------------------------------------------------------

    @property
    def window(self) -> int:
        """The most tokens that this context may hold, the reply included."""
        return self._budget.window()

    @property
    def policy(self) -> str:
        """What leaves the window when it overflows: see `kvloom.policies()`."""
        return self._budget.policy_name()

    @policy.setter
    def policy(self, name: str) -> None:
        find_policy(name)
        with self._desk.editing():
            self._desk.commit(f"policy {name}", replace(self.manifest, policy=name))

    def resize(self, num_tokens: int | None) -> int:
        """A window of another size; None takes what memory allows. The window now.

        The model stays loaded, the conversation as it is; running replies of this loom wait. Raises UsageError below
        what is used (with the numbers), EngineMemoryError where the memory is not there: the old size stays.
        """
        with self._desk.editing():
            wanted = self.loom.automatic_window() if num_tokens is None else num_tokens
            used, least = self.manifest.num_tokens, self.manifest.num_tokens + min(64, wanted // 4)
            if wanted < least:
                raise UsageError(
                    f"a window of {wanted} tokens cannot hold the {used} in use and a reply: give {least} or more, or "
                    "make the context smaller first (/context compress, /deactivate, /clear)"
                )
            self.loom.ensure_window(wanted)
            self._desk.snapshot_before("resize")
            self._desk.commit(f"resize {wanted}", replace(self.manifest, window=wanted))
            self.loom.shrink_pool()
            return self._budget.window()

    def resize_notice(self, num_tokens: int | None) -> str:
        """What a resize would cost, to be said before it; "" where the model stays loaded."""
        del num_tokens
        return ""

    def compress(
        self, strategy: str | None = None, *, dry_run: bool = False, progress: ProgressCallback | None = None
    ) -> CompressionResult | CompressionEstimate:
        """Old turns become a summary (`hybrid`, `summarize`) or leave (`truncate`); the ledger keeps them.

        `dry_run` only estimates. Raises CompressionError where there is nothing to compress or it gains too little.
        """
        self._compression.stop()
        with self._desk.editing():
            if dry_run:
                return self._compression.estimate(strategy)
            self._desk.cancel.clear()
            return self._compression.compress(strategy, progress)

    @property
    def is_compressing(self) -> bool:
        """Whether a compression runs in the background."""
        return self._compression.is_running

    def wait_for_compression(self, timeout_s: float | None = None) -> bool:
        """Until the compression in the background has ended; False where it has not in time."""
        return self._compression.wait(timeout_s)

    def on_threshold(self, share: float, callback: Callable[[Threshold], object]) -> Callable[[], None]:
        """Call `callback` when the context passes `share` of what it may hold; returns what ends that."""
        return self._watch.on_threshold(share, callback)

    def on_before_overflow(self, callback: Callable[[Overflow], object]) -> Callable[[], None]:
        """Call `callback` before a question that does not fit is refused or makes room; returns what ends that."""
        return self._watch.overflow.subscribe(callback)

    # -- states -------------------------------------------------------------------------------------------------

    def snapshot(self, title: str = "") -> Snapshot:
        """The present state under an id; durable on return, without any inference."""
        with self._desk.editing():
            return self._desk.snapshots.value(self._desk.snapshots.take(title))

    def snapshot_now(self, reason: str) -> None:
        """An automatic snapshot, whether or not somebody edits or asks: what stands now is in the log already."""
        self._desk.snapshots.automatic(reason)

    def snapshots(self) -> list[Snapshot]:
        """This session's snapshots, the newest first."""
        self._desk.check_open()
        return self._desk.snapshots.list()

    def restore(self, ref: str | None = None) -> Snapshot:
        """Back to a snapshot (the newest by default), with its KV; `undo()` takes it back.

        Raises UnknownSnapshotError, SnapshotError where it is damaged; the context is as before then.
        """
        with self._desk.editing():
            snapshots = self._desk.snapshots
            record = snapshots.latest() if ref is None else snapshots.get(ref)
            manifest = self._desk.adopted(snapshots.manifest(record))
            self.loom.ensure_window(manifest.window)
            self._desk.snapshot_before("restore")
            self._desk.commit(f"restore {record.id}", manifest)
            return snapshots.value(record)

    def fork(self, ref: str | None = None, name: str = "") -> Session:
        """Another session that goes on from a snapshot, or from here; this one stays as it is."""
        with self._desk.editing():
            at = self._history.head if ref is None else self._desk.snapshots.get(ref).manifest
            fork = self.loom.log.fork(self.id, at, name)
        return self.loom.session(id=fork)

    def delete_snapshot(self, ref: str) -> Snapshot:
        """A snapshot gone; what it held is still in the log while undo can reach it. What was deleted."""
        with self._desk.editing():
            record = self._desk.snapshots.get(ref)
            value = self._desk.snapshots.value(record)
            self._desk.snapshots.delete(record)
            return value

    def snapshot_messages(self, ref: str) -> list[Message]:
        """The messages of a snapshot as they were, without restoring it."""
        self._desk.check_open()
        stored = self._desk.snapshots.messages(self._desk.snapshots.get(ref))
        return [Message(message.role, message.content, message.turn) for message in stored]

    def ledger(self) -> list[LedgerLine]:
        """What was ever given here and is not in the prompt, why, and how to get it back; the oldest first."""
        self._desk.check_open()
        with self._desk.editing():
            return ledger_lines(self.loom, self._history)

    def recall(self, *refs: str) -> None:
        """Turns and chunks of the ledger back into the context, in their old order.

        Raises UsageError where the ledger has no such line, ContextOverflowError where it does not fit.
        """
        with self._desk.editing():
            manifest, lines = self.manifest, self._history.ledger()
            for ref in refs:
                manifest = recalled(manifest, self._history, one_line(lines, ref))
            self._desk.commit("recall " + " ".join(ref[:12] for ref in refs), self._budget.fitting(manifest))

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

        More options: top_k, top_p, min_p, repeat_penalty, keep_partial. The first `next()` raises ContextOverflowError
        with the numbers, before any work, if the question does not fit. CancelledError when cancelled (the context is
        as before; with `keep_partial` the reply ends with finish_reason "cancelled" and is kept).
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

    # -- looking ------------------------------------------------------------------------------------------------

    def history(self) -> list[Turn]:
        """The turns of this context, in order."""
        self._desk.check_open()
        manifest = self.manifest
        turns = []
        for number, slot in enumerate(manifest.turns, 1):
            record = self._history.turn(slot.ref)
            turns.append(
                Turn(
                    slot.ref, number, record.user, record.answer, record.reasoning, record.finish_reason,
                    slot.num_tokens, manifest.traces(slot), slot.pinned, record.replaces,
                )
            )  # fmt: skip
        return turns

    def messages(self) -> list[Message]:
        """The conversation as messages, the system prompt first."""
        messages = [Message("system", self.system)] if self.system else []
        for turn in self.history():
            messages.append(Message("user", turn.user, turn.number))
            messages.append(Message("assistant", turn.answer, turn.number))
        return messages

    def tokens(self) -> list[int]:
        """The token ids of the whole context, exactly as the engine holds them."""
        self._desk.check_open()
        return self.manifest.token_ids()

    def prompt(self) -> str:
        """The text of `tokens()`, special tokens spelled out."""
        vocabulary = self.loom.engine.vocabulary
        pieces = (vocabulary.token_bytes(token, special=True) for token in self.tokens())
        return b"".join(pieces).decode("utf-8", "replace")

    def usage(self) -> ContextUsage:
        """What the window holds, by segment. Looking costs no context."""
        self._desk.check_open()
        return context_usage(self.loom, self.manifest, self.id, self._budget)

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
            raise ChunkError(f"{ref} is not in this context; /activate {ref} (or /load its file) brings it in")
        return chunk


def _read(stream: ReplyStream) -> Reply:
    """To the end. Closed whatever happens: an interrupt's traceback would hold on to the stream, and it to its turn."""
    with stream:
        for _ in stream:
            pass
    return stream.reply

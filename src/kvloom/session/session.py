"""A session: one conversation over chunks, as a log of manifests. Every edit writes the next manifest.

The façade that edges call. Rows, tiers and the device are the composer's business, storage the history's.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kvloom.context.manifest import Manifest, SlotKind
from kvloom.errors import (
    ChunkError,
    ContextOverflowError,
    NothingToUndoError,
    SessionBusyError,
    SessionClosedError,
    UsageError,
)
from kvloom.session.history import History, TurnRecord
from kvloom.session.reply import ReplyOptions, ReplyStream
from kvloom.session.status import context_usage
from kvloom.session.turn import Question, TurnRunner
from kvloom.session.values import (
    Chunk,
    ContextUsage,
    Delta,
    Message,
    ProgressCallback,
    Reloaded,
    Reply,
    Turn,
    Warmed,
)
from kvloom.types import ChunkId, F32Array, Fidelity, SessionId

if TYPE_CHECKING:
    from kvloom.session.loom import Loom

SPLICE_NOTICE = (
    "{mode}: chunks are placed from KV computed on their own, so replies may differ slightly from a full prefill "
    "(kvloom bench fidelity measures it; fidelity exact avoids it)"
)


class Session:
    """One conversation. Safe to use from several threads: edits and replies take turns.

    Every method raises SessionClosedError after `close()`, and SessionBusyError where an edit is tried from inside
    the iteration of a running reply.
    """

    def __init__(self, loom: Loom, history: History) -> None:
        self.loom = loom
        self._history = history
        self._manifest = history.manifest
        self._turn = threading.Lock()
        self._turn_thread: int | None = None
        self._cancel = threading.Event()
        self._closed = False
        self._runner = TurnRunner(loom, history.id, self._cancel)
        self._has_said_fidelity = bool(self._manifest.turns)

    # -- who it is ----------------------------------------------------------------------------------------------

    @property
    def id(self) -> SessionId:
        return self._history.id

    @property
    def name(self) -> str:
        return self._history.name

    @property
    def is_closed(self) -> bool:
        return self._closed

    @property
    def fidelity(self) -> Fidelity:
        return self._manifest.fidelity

    @property
    def manifest(self) -> Manifest:
        """What the model sees, exactly."""
        return self._manifest

    @property
    def system(self) -> str:
        return self._manifest.system

    def rename(self, name: str) -> None:
        with self._editing():
            self._history.rename(name)

    def close(self) -> None:
        """Give back the device and the session's lock; everything is stored already. Idempotent."""
        if self._closed:
            return
        self._cancel.set()
        with self._turn_lock():
            self._closed = True
            with self.loom.device.lock:
                self.loom.device.release_owner(self.id)
            self._history.close()
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
        with self._editing():
            manifest = self._manifest
            for ref in refs:
                chunk = self.loom.resolve(ref)
                if chunk in manifest.chunk_ids:
                    manifest = manifest.switched(chunk, True)
                else:
                    name, parts = self.loom._chunk_parts(chunk, ref)
                    manifest = manifest.with_chunk(chunk, name, parts)
            self._commit("activate " + " ".join(ref[:12] for ref in refs), self._fitting(manifest))

    def deactivate(self, *refs: str) -> None:
        """Chunks off: outside the attention, their places kept. Turns made behind them keep their trace in
        blend and splice (`Turn.traces`), `recompute()` clears it."""
        with self._editing():
            manifest = self._manifest
            for ref in refs:
                manifest = manifest.switched(self._in_context(ref), False)
            self._commit("deactivate " + " ".join(ref[:12] for ref in refs), self._fitting(manifest))

    def move(self, ref: str, index: int) -> None:
        """A chunk to another place in the block, 0 the first."""
        with self._editing():
            chunk = self._in_context(ref)
            count = len(self._manifest.chunk_ids)
            if not 0 <= index < count:
                raise UsageError(f"place {index} is outside the block of {count} chunks; give 0 to {count - 1}")
            self._commit(f"move {ref[:12]} {index}", self._fitting(self._manifest.moved(chunk, index)))

    def pin(self, ref: str, pinned: bool = True) -> None:
        """Keep a chunk in the context and its entry in RAM, whatever a policy says."""
        with self._editing():
            chunk = self._in_context(ref)
            self._commit(f"{'pin' if pinned else 'unpin'} {ref[:12]}", self._manifest.with_pin(chunk, pinned))
            self.loom._pin_entries()

    def remove(self, ref: str) -> None:
        """A chunk out of this context; the store keeps it."""
        with self._editing():
            chunk = self._in_context(ref)
            self._commit(f"remove {ref[:12]}", self._manifest.without({chunk}))

    def erase(self, ref: str) -> None:
        """A chunk out of this context and out of the list of known ones; `undo()` brings both back."""
        with self._editing():
            chunk = self.loom.resolve(ref)
            self.loom.erase(chunk)
            self._commit(f"erase {chunk}", self._manifest.without({chunk}))

    def purge(self, ref: str) -> int:
        """A chunk really gone: from every tier, every session and its original; bytes freed. Not undoable."""
        return self.loom.purge(ref)

    def reload(self) -> list[Reloaded]:
        """This context's files that changed on disk, swapped in place."""
        with self._editing():
            swapped = []
            manifest = self._manifest
            for chunk in manifest.chunk_ids:
                for moved in self.loom._reload_chunk(chunk):
                    manifest = self._swapped(manifest, moved)
                    swapped.append(moved)
            if swapped:
                self._commit("reload " + " ".join(m.name for m in swapped), self._fitting(manifest))
            return swapped

    def set_fidelity(self, fidelity: Fidelity | str) -> None:
        """Another mode for what is placed from now on."""
        with self._editing():
            mode = self.loom._usable_fidelity(Fidelity(fidelity))
            self._commit(f"fidelity {mode.value}", self._fitting(self._manifest.with_fidelity(mode)))

    def set_system(self, system: str) -> None:
        """Another system prompt, in front of everything."""
        with self._editing():
            self._commit("system", self._fitting(self._manifest.with_head(self.loom._head(system), system)))

    def clear(self, turns: Sequence[int] | None = None) -> None:
        """Chunks and turns out of this context, or only the turns of these numbers (from 1). The store keeps all."""
        with self._editing():
            known = self._manifest.turns
            if turns is None:
                refs = {slot.ref for slot in self._manifest.slots if slot.kind is not SlotKind.HEAD}
                self._commit("clear", self._manifest.without(refs))
                return
            wrong = [number for number in turns if not 1 <= number <= len(known)]
            if wrong:
                raise UsageError(f"there is no turn {wrong[0]}; this context has {len(known)} turns, from 1")
            self._commit(f"clear turns {sorted(turns)}", self._manifest.without({known[n - 1].ref for n in turns}))

    def undo(self) -> str:
        """Take the last change back, a whole turn included; what was undone, in words.

        Raises NothingToUndoError at the session's first manifest.
        """
        with self._editing():
            operation = self._history.undo()
            self._manifest = self._history.manifest
            if operation.startswith("erase "):
                self.loom.restore_erased(ChunkId(operation.split()[1]))
            return operation

    def recompute(self) -> int:
        """Compute every turn that carries the trace of a chunk that is off again, behind what is on now.

        The number of turns that did. The work is done by `warm()` or the next reply.
        """
        with self._editing():
            traced = sum(bool(self._manifest.traces(slot)) for slot in self._manifest.turns)
            if traced:
                self._commit("recompute", self._manifest.recomputed())
            return traced

    def cancel(self) -> None:
        """Stop the running reply between two steps; from any thread or a signal handler."""
        self._cancel.set()

    # -- asking -------------------------------------------------------------------------------------------------

    def generate(self, text: str, *args: object, progress: ProgressCallback | None = None, **options: object) -> Reply:
        """The whole reply to `text`; same parameters as `stream`."""
        stream = self.stream(text, *args, progress=progress, **options)  # type: ignore[arg-type]
        for _ in stream:
            pass
        return stream.reply

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
        """The reply to `text`, delta by delta. `temperature` 0 is greedy; None takes the model's defaults.

        More options: top_k, top_p, min_p, repeat_penalty, keep_partial. Raises ContextOverflowError with the numbers
        before any work if the question does not fit, CancelledError when cancelled (the context is as before; with
        `keep_partial` the reply ends with finish_reason "cancelled" and is kept).
        """
        chosen = ReplyOptions.make(stop, max_tokens=max_tokens, temperature=temperature, seed=seed, **options)
        self._check_open()
        return ReplyStream(self._reply(text, chosen, progress))

    def retry(self, **options: object) -> Reply:
        """Take the last turn back and ask its question again."""
        stream = self.retry_stream(**options)
        for _ in stream:
            pass
        return stream.reply

    def retry_stream(self, **options: object) -> ReplyStream:
        """`retry`, delta by delta."""
        turns = self.history()
        if not turns:
            raise NothingToUndoError("there is no turn to try again; ask something first")
        with self._editing():
            self._commit("retry", self._manifest.without({turns[-1].id}))
        return self.stream(turns[-1].user, **options)  # type: ignore[arg-type]

    def next_logits(self, text: str) -> F32Array:
        """Logits (n_vocab,) from which `generate(text)` would draw its first token. Changes nothing.

        It is computed in a scratch sequence; session, log and counters stay as they are.
        """
        with self._editing():
            question = self._question(text)
            self._check_fits(question, None)
            return self._runner.next_logits(question)

    def warm(self, progress: ProgressCallback | None = None) -> Warmed:
        """Compute and place now what the context wants, so that the next question does not wait."""
        with self._turn_lock():
            self._check_open()
            self._cancel.clear()
            manifest, warmed = self._runner.warm(self._manifest, progress)
            if manifest != self._manifest:
                self._commit("compute turns again whose KV was lost", manifest)
            self.loom.library.record(manifest)
            return warmed

    # -- looking ------------------------------------------------------------------------------------------------

    def history(self) -> list[Turn]:
        """The turns of this context, in order."""
        self._check_open()
        turns = []
        for number, slot in enumerate(self._manifest.turns, 1):
            record = self._history.turn(slot.ref)
            turns.append(
                Turn(
                    slot.ref, number, record.user, record.answer, record.reasoning, record.finish_reason,
                    slot.num_tokens, self._manifest.traces(slot),
                )
            )  # fmt: skip
        return turns

    def messages(self) -> list[Message]:
        """The conversation as messages, the system prompt first."""
        messages = [Message("system", self._manifest.system)] if self._manifest.system else []
        for turn in self.history():
            messages.append(Message("user", turn.user, turn.number))
            messages.append(Message("assistant", turn.answer, turn.number))
        return messages

    def tokens(self) -> list[int]:
        """The token ids of the whole context, exactly as the engine holds them."""
        self._check_open()
        return self._manifest.token_ids()

    def prompt(self) -> str:
        """The text of `tokens()`, special tokens spelled out."""
        vocabulary = self.loom.engine.vocabulary
        pieces = (vocabulary.token_bytes(token, special=True) for token in self.tokens())
        return b"".join(pieces).decode("utf-8", "replace")

    def usage(self) -> ContextUsage:
        """What the window holds, by segment. Looking costs no context."""
        self._check_open()
        return context_usage(self.loom, self._manifest, self.id)

    # -- inside: edits ------------------------------------------------------------------------------------------

    @contextmanager
    def _turn_lock(self) -> Iterator[None]:
        if self._turn_thread == threading.get_ident():
            raise SessionBusyError("a reply of this session is being read in this thread; finish or close it first")
        with self._turn:
            self._turn_thread = threading.get_ident()
            try:
                yield
            finally:
                self._turn_thread = None

    @contextmanager
    def _editing(self) -> Iterator[None]:
        with self._turn_lock():
            self._check_open()
            yield

    def _check_open(self) -> None:
        self.loom._check_open()
        if self._closed:
            raise SessionClosedError(f"session {self.id} is closed; open it again with loom.session(id=…)")

    def _commit(self, operation: str, manifest: Manifest) -> None:
        self._history.append(operation, manifest)
        self._manifest = manifest

    def _reread(self) -> None:
        """Take over what a purge has made of this session's log."""
        with self._turn_lock():
            self._history.reread()
            self._manifest = self._history.manifest

    def _in_context(self, ref: str) -> ChunkId:
        chunk = self.loom._resolve_among(ref, self._manifest)
        if chunk not in self._manifest.chunk_ids:
            raise ChunkError(f"{ref} is not in this context; /activate {ref} (or /load its file) brings it in")
        return chunk

    def _fitting(self, manifest: Manifest) -> Manifest:
        """The manifest, holes closed where its span needs it. Raises ContextOverflowError where nothing helps."""
        limit = self._limit()
        if manifest.num_tokens > limit:
            raise ContextOverflowError(
                f"the context would hold {manifest.num_tokens} tokens, and the window of {self.loom.window} leaves "
                f"{limit} beside the reserve of {self.loom.reserve}; switch something off, or open with --context "
                f"{manifest.num_tokens + self.loom.reserve} or more",
                num_needed_tokens=manifest.num_tokens,
                num_window_tokens=self.loom.window,
            )
        return manifest.settled(dense=True) if manifest.span > limit else manifest

    def _limit(self) -> int:
        return self.loom.window - self.loom.reserve

    def _swapped(self, manifest: Manifest, moved: Reloaded) -> Manifest:
        """The new chunk in the old one's place, on or off and pinned as it was."""
        slots = [slot for slot in manifest.chunks if slot.ref == moved.old]
        index = manifest.chunk_ids.index(moved.old)
        name, parts = self.loom._chunk_parts(moved.new, moved.name)
        fresh = manifest.without({moved.old}).with_chunk(moved.new, name, parts, index)
        if not slots[0].active:
            fresh = fresh.switched(moved.new, False)
        return fresh.with_pin(moved.new, slots[0].pinned)

    # -- inside: a turn -----------------------------------------------------------------------------------------

    def _question(self, text: str) -> Question:
        """The question's token ids, and the manifest with earlier turns as the template wants them now."""
        records = [self._history.turn(slot.ref) for slot in self._manifest.turns]
        manifest, tokens = self.loom._render(self._manifest, records, text)
        return Question(manifest, text, tokens)

    def _check_fits(self, question: Question, max_tokens: int | None) -> int:
        """Tokens that the reply may take. Raises ContextOverflowError with the numbers and the ways out."""
        used, num_prompt_tokens = question.manifest.num_tokens, len(question.tokens)
        free = self.loom.window - used - num_prompt_tokens
        needed = used + num_prompt_tokens + (max_tokens or 1)
        if free < (max_tokens or 1):
            reply = f" + {max_tokens} for the reply" if max_tokens else ""
            raise ContextOverflowError(
                f"maximum context length is {self.loom.window} tokens: {used} in use + {num_prompt_tokens} for the "
                f"question{reply} = {needed}; switch chunks off, clear turns, shorten it, or open with --context "
                f"{needed} or more",
                num_needed_tokens=needed,
                num_window_tokens=self.loom.window,
            )
        return min(free, max_tokens or self.loom.settings.sampling.max_tokens)

    def _reply(
        self, text: str, options: ReplyOptions, progress: ProgressCallback | None
    ) -> Generator[Delta, None, Reply]:
        with self._turn_lock():
            self._check_open()
            self._cancel.clear()
            question = self._question(text)
            max_tokens = self._check_fits(question, options.max_tokens)
            done = yield from self._runner.run(question, max_tokens, options, progress, self._commit_turn)
            sampled = done.sampled
            return Reply(sampled.answer, sampled.finish_reason, done.usage, sampled.reasoning, self._notices())

    def _commit_turn(self, manifest: Manifest, record: TurnRecord) -> None:
        self._history.append("turn", manifest, record)
        self._manifest = manifest

    def _notices(self) -> tuple[str, ...]:
        manifest = self._manifest
        if self._has_said_fidelity or manifest.fidelity is Fidelity.EXACT or not manifest.active_chunk_ids:
            return ()
        self._has_said_fidelity = True
        return (SPLICE_NOTICE.format(mode=manifest.fidelity.value),)

"""What one session's window may hold, and what leaves it: window, reserve, policy.

Writes the next manifest, runs nothing. Every question passes here before any work is done for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from heapq import nlargest
from typing import TYPE_CHECKING

from kvloom.context.ledger import Left
from kvloom.context.manifest import Manifest, Slot, SlotKind
from kvloom.context.policies.base import Need, PolicySettings, find_policy
from kvloom.context.relevance import RelevanceIndex
from kvloom.errors import ContextOverflowError
from kvloom.index import asks, is_follow_up, without_common_words
from kvloom.session.turn import Question
from kvloom.types import ChunkId, TierName

if TYPE_CHECKING:
    from kvloom.session.desk import Desk
    from kvloom.session.log import ManifestId
    from kvloom.session.loom import Loom

RECALL_FROM = ("compress", "policy")
"""First words of the operations whose turns may come back by themselves: what a person cleared stays away."""
MAX_RECALLABLE = 32
"""Turns that a question may bring back, the most relevant ones: each has to be read out of the log."""

Render = Callable[[str, Manifest], Question]


@dataclass(frozen=True)
class Fitted:
    """A question that fits. `left` names the turns and chunks that made room, `back` the turns that came back; with
    neither, what had come back may have been put in order.

    `operation` is what the log calls that; "" where nothing moved. `max_tokens`: what the reply may take.
    """

    question: Question
    max_tokens: int
    left: tuple[Slot, ...] = ()
    back: tuple[Slot, ...] = ()
    operation: str = ""

    @property
    def num_left_tokens(self) -> int:
        return sum(slot.num_tokens for slot in self.left)

    def notice(self) -> str:
        """What the reply says of it; "" where nothing moved."""
        if not self.operation:
            return ""
        said = []
        if self.left:
            said.append(f"{_counted(self.left)} ({self.num_left_tokens} tokens) left the window")
        if self.back:
            said.append(f"{_counted(self.back)} came back")
        if not said:
            said.append("turns that had come back were put in order")
        return (
            f"{self.operation}: {', '.join(said)}; the ledger lists what is not in the prompt, undo twice takes it back"
        )


class Budget:
    """The window of one session. `policy` of a manifest wins over the settings'."""

    def __init__(self, loom: Loom, desk: Desk) -> None:
        self._loom = loom
        self._desk = desk
        self._index = RelevanceIndex()

    # -- numbers ------------------------------------------------------------------------------------------------

    def window(self, manifest: Manifest | None = None) -> int:
        """The session's tokens: its own size where it was resized, never more than the pool can hold."""
        own = (self._desk.manifest if manifest is None else manifest).window
        return min(own or self._loom.window, self._loom.pool.window)

    def reserve(self, manifest: Manifest | None = None) -> int:
        """Tokens of the window kept free for a reply."""
        return min(self._loom.settings.reserve_tokens, self.window(manifest) // 4)

    def limit(self, manifest: Manifest | None = None) -> int:
        """What the context may hold beside the reserve."""
        return self.window(manifest) - self.reserve(manifest)

    def policy_name(self, manifest: Manifest | None = None) -> str:
        own = (self._desk.manifest if manifest is None else manifest).policy
        return own or self._loom.policy

    # -- fitting ------------------------------------------------------------------------------------------------

    def fitting(self, manifest: Manifest) -> Manifest:
        """The manifest, holes closed where its span needs it.

        Raises ContextOverflowError where it does not fit, unless it holds no more than now: turns may have filled
        the reserve, or the window may be smaller than it was, and the way out of that must be open.
        """
        window, limit, num_tokens = self.window(manifest), self.limit(manifest), manifest.num_tokens
        if num_tokens > limit and num_tokens > self._desk.manifest.num_tokens:
            with self._estimates_marked():
                raise ContextOverflowError(
                    f"the context would hold {num_tokens} tokens, and the window of {window} leaves {limit} beside the "
                    f"reserve of {window - limit}; switch something off, or open with --context "
                    f"{num_tokens + window - limit} or more",
                    num_needed_tokens=num_tokens,
                    num_window_tokens=window,
                )
        return manifest.settled(dense=True) if manifest.span > limit else manifest

    def fit(
        self, text: str, manifest: Manifest, max_tokens: int | None, render: Render, on_overflow: Callable[[int], None]
    ) -> Fitted:
        """The question with room for it and its reply, by the session's policy.

        Raises ContextOverflowError with the numbers and the ways out, before any work.
        """
        with self._estimates_marked():
            return self._fit(text, manifest, max_tokens, render, on_overflow)

    def _fit(
        self, text: str, manifest: Manifest, max_tokens: int | None, render: Render, on_overflow: Callable[[int], None]
    ) -> Fitted:
        question = render(text, manifest)
        before = question.manifest
        window, name = self.window(manifest), self.policy_name(manifest)
        needed = (
            before.num_tokens + len(question.tokens) + (max_tokens or (1 if name == "stop" else self.reserve(manifest)))
        )
        if needed > window:
            on_overflow(needed)
        if name == "stop":
            return Fitted(question, self._checked(question, max_tokens, window))
        self._refuse_what_is_too_large(question, max_tokens, window)
        wanted = max_tokens or self.reserve(manifest)
        need = self._need(text, before, window - len(question.tokens) - wanted, name)
        after = find_policy(name)(before, need)
        if after == before:
            return Fitted(question, self._checked(question, max_tokens, window))
        left, back = _difference(before, after), _difference(after, before)
        # Templates may write a question otherwise behind another conversation.
        fresh = render(text, after)
        return Fitted(fresh, self._checked(fresh, max_tokens, window), left, back, f"policy {name}")

    def _checked(self, question: Question, max_tokens: int | None, window: int) -> int:
        """Tokens that the reply may take. Raises ContextOverflowError."""
        used, num_question = question.manifest.num_tokens, len(question.tokens)
        free, needed = window - used - num_question, used + num_question + (max_tokens or 1)
        if free < (max_tokens or 1):
            raise ContextOverflowError(
                f"maximum context length is {window} tokens: {used} in use + {num_question} for the "
                f"question + {max_tokens or 1} for the reply = {needed}; switch chunks off, clear turns, shorten it, "
                f"or raise the context to {needed} or more",
                num_needed_tokens=needed,
                num_window_tokens=window,
            )
        return min(free, max_tokens or self._loom.settings.sampling.max_tokens)

    def _refuse_what_is_too_large(self, question: Question, max_tokens: int | None, window: int) -> None:
        """A question that would not even fit beside the system prompt: no policy can help."""
        head = sum(slot.num_tokens for slot in question.manifest.active if slot.kind is SlotKind.HEAD)
        num_question, reply = len(question.tokens), max_tokens or 1
        if head + num_question + reply <= window:
            return
        raise ContextOverflowError(
            f"maximum context length is {window} tokens, and the question alone takes {num_question} beside the system "
            f"prompt's {head} and {reply} for the reply; raise the context to {head + num_question + reply} or more, "
            "shorten the question (kvloom truncate), or load the long text as a chunk and ask about it (kvloom ask)",
            num_needed_tokens=head + num_question + reply,
            num_window_tokens=window,
        )

    @contextmanager
    def _estimates_marked(self) -> Iterator[None]:
        """A refusal says where its numbers are only estimates."""
        try:
            yield
        except ContextOverflowError as error:
            if self._loom.counts_exactly:
                raise
            raise ContextOverflowError(
                f"{error} (the numbers are estimates: the endpoint counts no tokens beforehand)",
                num_needed_tokens=error.num_needed_tokens,
                num_window_tokens=error.num_window_tokens,
            ) from error

    def _need(self, text: str, manifest: Manifest, room: int, name: str) -> Need:
        settings = self._loom.settings.overflow
        limit = room
        if settings.history_tokens is not None:
            others = sum(slot.num_tokens for slot in manifest.active if slot.kind is not SlotKind.TURN)
            limit = min(room, others + settings.history_tokens)
        window = self.window(manifest)
        sizes = PolicySettings(settings.window_tokens, settings.sink_tokens)
        order = self._desk.history.order
        if name != "adaptive":
            return Need(limit, window, order=order, settings=sizes)
        lines = self._recallable()
        is_full = manifest.num_tokens > limit
        relevance = self._relevance(text, manifest, [line.named.ref for line in lines], with_chunks=is_full)
        recallable = self._best(lines, relevance)
        return Need(
            limit, window, relevance, recallable, order, self._restore_s, sizes,
            self._asking((*manifest.turns, *recallable)),
            is_follow_up(text),
        )  # fmt: skip

    # -- what may come back -------------------------------------------------------------------------------------

    def _recallable(self) -> list[Left[ManifestId]]:
        """Turns that a policy or a compression took out."""
        return [
            line
            for line in self._desk.history.ledger()
            if line.named.kind is SlotKind.TURN
            and line.reason.split(" ")[0] in RECALL_FROM
            and not line.is_undone
            and not line.named.is_summary
        ]

    def _asking(self, turns: Iterable[Slot]) -> frozenset[str]:
        """Those in which somebody asked for something."""
        users = ((slot.ref, self._desk.history.turn(slot.ref).user) for slot in turns)
        return frozenset(ref for ref, user in users if asks(user))

    def _best(self, lines: Sequence[Left[ManifestId]], relevance: Mapping[str, float]) -> list[Slot]:
        """What stood for the most relevant of them, oldest first."""
        history = self._desk.history
        best = nlargest(MAX_RECALLABLE, lines, key=lambda line: relevance.get(line.named.ref, 0.0))
        slots = (slot for line in best if relevance.get(line.named.ref) for slot in history.slots_of(line))
        return sorted(slots, key=lambda slot: history.order(slot.ref))

    def _relevance(
        self, text: str, manifest: Manifest, recallable: Sequence[str], *, with_chunks: bool
    ) -> dict[str, float]:
        for ref in (*(slot.ref for slot in manifest.turns), *recallable):
            self._index.add(ref, partial(self._text_of, ref))
        if with_chunks:
            for chunk in manifest.active_chunk_ids:
                self._index.add(chunk, partial(self._loom.catalog.text, ChunkId(chunk)))
        return dict(self._index.scores(without_common_words(text)))

    def _text_of(self, ref: str) -> str:
        record = self._desk.history.turn(ref)
        return f"{record.user}\n{record.answer}"

    def _restore_s(self, slot: Slot) -> float:
        tier = self._loom.composer.tier(slot, self._desk.history.id)
        return self._loom.rates.restore_s(tier, slot.num_tokens) or 0.0 if tier is not TierName.DEVICE else 0.0

    def forget(self) -> None:
        """Nothing of any text stays in memory: a purge may have taken one of them."""
        index, self._index = self._index, RelevanceIndex()
        index.close()

    def close(self) -> None:
        self._index.close()


def _difference(one: Manifest, other: Manifest) -> tuple[Slot, ...]:
    """Active turns and chunks of `one` that `other` does not have active."""
    there = {slot.ref for slot in other.active}
    return tuple(slot for slot in one.active if slot.kind is not SlotKind.HEAD and slot.ref not in there)


def _counted(slots: Sequence[Slot]) -> str:
    turns = len({slot.ref for slot in slots if slot.kind is SlotKind.TURN})
    chunks = len({slot.ref for slot in slots if slot.kind is SlotKind.CHUNK})
    said = [
        f"{number} {noun}{'s' if number != 1 else ''}"
        for number, noun in ((turns, "turn"), (chunks, "chunk"))
        if number
    ]
    return " and ".join(said)

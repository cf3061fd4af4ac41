"""A session's manifest as messages for an endpoint, and the stand-in tokens that carry their sizes. Sends nothing.

The layout is the embedded engine's: system text, the block of chunks with their headers, the turns.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

from kvloom.context.manifest import Manifest, Slot, SlotKind, Tokens
from kvloom.engine.remote.base import ChatMessage, Endpoint
from kvloom.engine.remote.engine import stand_in_ids
from kvloom.errors import UnknownChunkError
from kvloom.session.history import TurnRecord
from kvloom.session.prompts import Prompts
from kvloom.session.remote_counting import MOVED_SHARE, RemoteCounts
from kvloom.session.remote_marks import Marks
from kvloom.session.shelf import Shelf
from kvloom.text.pieces import PromptBuilder
from kvloom.types import ChunkId, ModelFingerprint

MAX_CACHED_TEXTS = 32
MIN_MOVED_TOKENS = 4
JOINT = "\n\n"
"""Between the opening and the first question, where the template knows no system role."""


class RemotePrompts(Prompts):
    """Prompts for a model whose vocabulary is elsewhere: a `Tokens` run has the length that was counted."""

    def __init__(
        self,
        builder: PromptBuilder,
        shelf: Shelf,
        model: ModelFingerprint,
        endpoint: Endpoint,
        counts: RemoteCounts,
    ) -> None:
        super().__init__(builder, shelf, model)
        self._endpoint = endpoint
        self._counts = counts
        self.marks = Marks(endpoint)
        self._epoch = counts.epoch
        self._texts: OrderedDict[tuple[ChunkId, str], str] = OrderedDict()

    def messages(self, manifest: Manifest, records: Sequence[TurnRecord], text: str) -> tuple[ChatMessage, ...]:
        """What is sent: everything that is active, and the question. Reasoning of earlier replies is not.

        All of it is data: what the server would read as special tokens is broken.
        """
        names = {ChunkId(slot.ref): slot.name for slot in manifest.chunks if slot.active}
        contents = [self._builder.system_text(manifest.system)]
        contents += [self._chunk_text(chunk, name) for chunk, name in names.items()]
        plains = [self.marks.plain(content) for content in contents]
        opening = "".join(plain.text for plain in plains)
        broken = tuple(dict.fromkeys(word for plain in plains for word in plain.broken))
        talk: list[ChatMessage] = []
        for slot, record in zip(manifest.turns, records, strict=True):
            if slot.active:
                talk += [self._message("user", record.user), self._message("assistant", record.answer)]
        talk.append(self._message("user", text))
        if self._builder.has_system_role:
            return (ChatMessage("system", opening, broken), *talk)
        first = ChatMessage("user", f"{opening}{JOINT}{talk[0].content}", (*broken, *talk[0].broken))
        return (first, *talk[1:])

    def question(
        self, manifest: Manifest, records: Sequence[TurnRecord], text: str
    ) -> tuple[Manifest, tuple[int, ...]]:
        """Stand-ins for the question, and the manifest with sizes as they are known now.

        Where the endpoint counts, it counts the whole prompt by its own template, and the question takes what the
        pieces before it do not: the sum is exact. Elsewhere every piece is estimated anew where that has moved.
        """
        if self._counts.is_exact:
            total = self._endpoint.count_messages(self.messages(manifest, records, text))
            return manifest, stand_in_ids(text, max(1, total - manifest.num_tokens))
        self._forget_old_counts()
        turns, tokens = self._render(manifest.system, records, [()] * len(records), text)
        return self._recounted(manifest, [Tokens(turn) for turn in turns]), tokens

    # -- inside -------------------------------------------------------------------------------------------------

    def _message(self, role: str, content: str) -> ChatMessage:
        plain = self.marks.plain(content, is_reply=role == "assistant")
        return ChatMessage(role, plain.text, plain.broken)

    def _forget_old_counts(self) -> None:
        if self._epoch != self._counts.epoch:
            self._epoch = self._counts.epoch
            self._builder.tokenizer.forget()
            self._shelf.forget_tokens()

    def _recounted(self, manifest: Manifest, turns: Sequence[Tokens]) -> Manifest:
        now = dict(zip((slot.ref for slot in manifest.turns), turns, strict=True))
        slots = tuple(self._recounted_slot(slot, manifest.system, now) for slot in manifest.slots)
        return manifest if slots == manifest.slots else replace(manifest, slots=slots).settled()

    def _recounted_slot(self, slot: Slot, system: str, turns: dict[str, Tokens]) -> Slot:
        if slot.kind is SlotKind.TURN:
            fresh = turns[slot.ref]
        elif slot.kind is SlotKind.HEAD:
            fresh = self.head(system)
        else:
            try:
                fresh = self._shelf.parts(ChunkId(slot.ref), slot.name)[slot.part]
            except UnknownChunkError:  # purged in another process: this context still holds it
                return slot
        moved, before = abs(len(fresh) - len(slot.tokens)), len(slot.tokens)
        return replace(slot, tokens=fresh) if moved > max(MIN_MOVED_TOKENS, MOVED_SHARE * before) else slot

    def _chunk_text(self, chunk: ChunkId, name: str) -> str:
        known = self._texts.get((chunk, name))
        if known is None:
            pieces = self._builder.chunk_pieces(name, self._shelf.catalog.text(chunk))
            known = "".join(piece.text for piece in pieces)
            self._texts[chunk, name] = known
            if len(self._texts) > MAX_CACHED_TEXTS:
                self._texts.popitem(last=False)
        return known

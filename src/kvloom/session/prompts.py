"""Token ids for a session's manifest under the loaded model: heads, chunks, questions, and earlier turns as the chat
template wants them now. Knows no log and no device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kvloom.context.manifest import Manifest, Slot, SlotKind, Tokens
from kvloom.context.placing import standing
from kvloom.session.history import TurnRecord
from kvloom.session.shelf import Shelf
from kvloom.text.pieces import PromptBuilder
from kvloom.text.template import Message
from kvloom.types import ChunkId, ModelFingerprint

_PROBE = "?"
"""A question that is not asked: templates write earlier turns as they stand before a next one."""


class Prompts:
    """Safe for several threads, as its parts are. Raises TemplateError where the template refuses a conversation."""

    def __init__(self, builder: PromptBuilder, shelf: Shelf, model: ModelFingerprint) -> None:
        self._builder = builder
        self._shelf = shelf
        self._model = model

    def head(self, system: str) -> Tokens:
        return Tokens(self._builder.head(system).tokens)

    def chunk(self, chunk: ChunkId, ref: str) -> tuple[str, tuple[Tokens, ...]]:
        """The name under which a chunk stands in a prompt, and the ids of its parts."""
        name = self._shelf.name_for(chunk, ref)
        return name, self._shelf.parts(chunk, name)

    def question(
        self, manifest: Manifest, records: Sequence[TurnRecord], text: str
    ) -> tuple[Manifest, tuple[int, ...]]:
        """The question's ids, and the manifest with earlier turns as the template wants them behind it.

        Templates rewrite earlier turns: reasoning is dropped, for one. What they leave alone keeps its KV.
        """
        replies = [
            slot.tokens.ids[record.num_prompt_tokens :] for slot, record in zip(manifest.turns, records, strict=True)
        ]
        turns, tokens = self._render(manifest.system, records, replies, text)
        now = dict(zip((slot.ref for slot in manifest.turns), turns, strict=True))
        slots = tuple(
            replace(slot, tokens=Tokens(now[slot.ref]))
            if slot.kind is SlotKind.TURN and slot.tokens.ids != now[slot.ref]
            else slot
            for slot in manifest.slots
        )
        return (manifest if slots == manifest.slots else replace(manifest, slots=slots).settled()), tokens

    def turn(self, system: str, record: TurnRecord) -> Tokens:
        """The ids of a turn that was not generated here: a summary, say."""
        turns, _ = self._render(system, [record], [()], _PROBE)
        return Tokens(turns[0])

    def adopted(self, manifest: Manifest, records: Sequence[TurnRecord]) -> Manifest:
        """The same context under the loaded model. Ids of another model's vocabulary are made anew from the texts.

        Raises UnknownChunkError where the text of one of its chunks is not in this home.
        """
        if manifest.model == self._model:
            return manifest
        fresh = replace(manifest, slots=(), model=self._model).with_head(self.head(manifest.system), manifest.system)
        brought = set(standing(manifest))  # passages come again with the next question, if it wants them
        for chunk in (one for one in manifest.chunk_ids if one not in brought):
            old = next(slot for slot in manifest.chunks if slot.ref == chunk)
            fresh = fresh.with_chunk(chunk, old.name, self._shelf.parts(chunk, old.name))
            fresh = fresh.switched(chunk, old.active).with_pin(chunk, old.pinned)
        turns, _ = self._render(manifest.system, records, [()] * len(records), _PROBE)
        slots = [replace(slot, tokens=Tokens(ids)) for slot, ids in zip(manifest.turns, turns, strict=True)]
        return replace(fresh, slots=(*fresh.slots, *slots)).recomputed()

    def swapped(self, manifest: Manifest, old: ChunkId, new: ChunkId, name: str) -> Manifest:
        """A chunk in another one's place, on or off and pinned as that was."""
        before: Slot = next(slot for slot in manifest.chunks if slot.ref == old)
        index = manifest.chunk_ids.index(old)
        _, parts = self.chunk(new, name)
        fresh = manifest.without({old}).with_chunk(new, name, parts, index)
        return fresh.switched(new, before.active).with_pin(new, before.pinned)

    def _render(
        self, system: str, records: Sequence[TurnRecord], replies: Sequence[tuple[int, ...]], question: str
    ) -> tuple[list[tuple[int, ...]], tuple[int, ...]]:
        """The ids of each turn, and of the question behind them."""
        messages: list[Message] = []
        for record, reply in zip(records, replies, strict=True):
            messages.append(Message("user", record.user))
            messages.append(Message("assistant", record.answer, record.reasoning, reply))
        rendered = self._builder.render(system, (), [*messages, Message("user", question)])
        pieces = [piece.tokens for piece in rendered.pieces[1:]]
        turns = [(*asked, *said) for asked, said in zip(pieces[:-1:2], pieces[1::2], strict=True)]
        return turns, pieces[-1]

"""What a question gets of the attached libraries: searched, chosen within the window, put into the next manifest.

Writes the next manifest and runs nothing; a passage becomes a chunk of the home here. Knows no file and no index's
insides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvloom.context.choice import Candidate, choose
from kvloom.context.manifest import Manifest, SlotKind
from kvloom.context.placing import Passage, standing, with_passages
from kvloom.errors import KvloomError
from kvloom.index import is_follow_up
from kvloom.session.status import coldest
from kvloom.session.values import Source
from kvloom.types import ALONE, ChunkId, Fidelity, TierName

if TYPE_CHECKING:
    from kvloom.session.budget import Budget
    from kvloom.session.desk import Desk
    from kvloom.session.libraries import Hit
    from kvloom.session.loom import Loom

SEARCHED_PER_CHOSEN = 3
"""Passages looked at for each that may be chosen: some are off here, too large, or less at hand than others."""
SMALL_LIBRARY = 50
"""Passages below which a word's rareness says nothing: there every passage with a word of the question is a find."""
MAX_ASKED_BEFORE = 4
"""Questions that are looked back at: after so many that name nothing, the talk is about itself."""
_WARMTH = {TierName.DEVICE: 0.8, TierName.RAM: 0.6, TierName.DISK: 0.4}
"""How near KV is, from 0 (to be computed) to 1 (stands in this window)."""


@dataclass(frozen=True)
class Retrieved:
    """The manifest with a question's passages, and what its reply says of them, as far as they are still there."""

    manifest: Manifest
    sources: tuple[Source, ...] = ()
    notices: tuple[str, ...] = ()

    def sources_in(self, manifest: Manifest) -> tuple[Source, ...]:
        """Those that the reply could read: a policy may have taken some away again."""
        there = set(manifest.active_chunk_ids)
        return tuple(source for source in self.sources if source.chunk in there)


@dataclass(frozen=True)
class _Found:
    """A passage that may be chosen, as it would stand in the prompt."""

    hit: Hit
    passage: Passage
    tiers: tuple[TierName, ...]


class Retrieval:
    """The passages of one session's questions. The caller holds the session's turn."""

    def __init__(self, loom: Loom, desk: Desk, budget: Budget) -> None:
        self._loom = loom
        self._desk = desk
        self._budget = budget

    def passages_for(
        self, text: str, manifest: Manifest, max_tokens: int | None, num_question_tokens: int
    ) -> Retrieved:
        """The manifest with what `text` wants of the libraries, in place of what the question before it wanted."""
        if not manifest.libraries or not manifest.recalls:
            return Retrieved(with_passages(manifest, ()))
        hits, notices = self._search(self._asked(text, manifest), manifest)
        if not hits:
            if not notices:
                notices.append(f"nothing relevant found in {', '.join(manifest.libraries)}: no passage was read")
            return Retrieved(with_passages(manifest, ()), (), tuple(notices))
        found = self._found(hits, manifest)
        free = self._free(manifest, max_tokens, num_question_tokens)
        chosen = self._chosen(found, manifest, free)
        if not chosen:
            least = min(one.passage.num_tokens for one in found)
            notices.append(
                f"{len(found)} relevant passages were found, and none fits: the smallest takes {least} tokens and "
                f"{max(0, free)} are left for them; raise the context, or switch chunks off"
            )
        for one in chosen:
            self._keep(one)
        after = with_passages(manifest, [one.passage for one in self._in_order(chosen, manifest)])
        return Retrieved(after, tuple(self._source(one, after) for one in chosen), tuple(notices))

    # -- searching ----------------------------------------------------------------------------------------------

    def _asked(self, text: str, manifest: Manifest) -> str:
        """What is looked up: of a question that names too little ("and why?") also what was asked before it, back to
        the one that says what it is about. The newest first: of a long text only the first words are looked up."""
        asked = [text]
        turns = [slot for slot in manifest.turns if not slot.is_summary]  # nobody asked what a summary answers
        turns.sort(key=lambda slot: self._desk.history.order(slot.ref))
        for slot in turns[: -MAX_ASKED_BEFORE - 1 : -1]:
            if not is_follow_up(asked[-1]):
                break
            asked.append(self._desk.history.turn(slot.ref).user)
        return "\n".join(asked)

    def _search(self, text: str, manifest: Manifest) -> tuple[list[Hit], list[str]]:
        """The most relevant passages of all attached libraries, each chunk once, and what was wrong with some."""
        settings = self._loom.settings.recall
        limit = SEARCHED_PER_CHOSEN * settings.depth
        brought = set(standing(manifest))
        off = {slot.ref for slot in manifest.chunks if not slot.active and slot.ref not in brought}
        hits: dict[ChunkId, Hit] = {}
        notices = []
        for name in manifest.libraries:
            if not self._loom.has_library(name):
                notices.append(f"library {name} is not in this home any more: add its files again, or turn recall off")
                continue
            try:
                library = self._loom.library(name)
                least = settings.coverage if library.num_passages >= SMALL_LIBRARY else 0.0
                found = library.hits(text, limit)
                notices += library.take_notices()
            except KvloomError as error:  # one damaged library must not end the conversation
                notices.append(f"library {name} could not be searched: {error}")
                continue
            for hit in found:
                if hit.chunk in off or (hit.found.coverage < least and not hit.found.is_near):
                    continue
                if hit.chunk not in hits or hits[hit.chunk].relevance < hit.relevance:
                    hits[hit.chunk] = hit
        erased = {record.id for record in self._loom.catalog.get_many(hits).values() if record.is_erased}
        best = sorted((hit for hit in hits.values() if hit.chunk not in erased), key=lambda hit: -hit.relevance)
        return best[:limit], notices

    def _found(self, hits: Sequence[Hit], manifest: Manifest) -> list[_Found]:
        shelf, composer = self._loom.shelf, self._loom.composer
        names = shelf.passage_names((hit.chunk, hit.found.document, hit.lines) for hit in hits)
        names |= {ChunkId(slot.ref): slot.name for slot in manifest.chunks}
        found = []
        for hit in hits:
            name = names[hit.chunk]
            passage = Passage(hit.chunk, name, shelf.passage_parts(hit.chunk, name, hit.found.text))
            tiers = (composer.where(composer.entry_id(run, ALONE)) for run in passage.parts)
            found.append(_Found(hit, passage, tuple(tiers)))
        return found

    # -- choosing -----------------------------------------------------------------------------------------------

    def _chosen(self, found: Sequence[_Found], manifest: Manifest, free: int) -> list[_Found]:
        """Those that fit into their share of the window; in a small one the best alone may be more than that."""
        settings = self._loom.settings.recall
        brought, here = set(standing(manifest)), set(manifest.active_chunk_ids)
        candidates = [
            Candidate(
                one.passage.ref,
                0 if one.passage.ref in here - brought else one.passage.num_tokens,  # somebody's own stands anyway
                one.hit.relevance,
                1.0 if one.passage.ref in here else _WARMTH.get(coldest(one.tiers), 0.0),
            )
            for one in found
        ]
        room, best = min(int(self._budget.window(manifest) * settings.share), free), candidates[0]
        if room < best.num_tokens <= free:
            candidates, room = [best], free
        by_ref = {one.passage.ref: one for one in found}
        return [by_ref[one.ref] for one in choose(candidates, room, settings.depth)]

    @staticmethod
    def _in_order(chosen: list[_Found], manifest: Manifest) -> list[_Found]:
        """The best one last, nearest to the question: there it is read best (docs/decisions/libraries.md).

        In exact as a reader would meet them, whatever the question: so what is found together again was computed so.
        """
        if manifest.fidelity is Fidelity.EXACT:
            return sorted(chosen, key=lambda one: (one.hit.library, one.hit.found.document, one.hit.lines))
        return chosen[::-1]

    def _free(self, manifest: Manifest, max_tokens: int | None, num_question_tokens: int) -> int:
        """Tokens that what must stay leaves of the window."""
        window, brought = self._budget.window(manifest), set(standing(manifest))
        may_leave = self._budget.policy_name(manifest) != "stop"
        newest = self._desk.history.newest(manifest)
        fixed = sum(
            slot.num_tokens
            for slot in manifest.active
            if slot.ref not in brought
            and not (
                may_leave and slot.kind is SlotKind.TURN and not (slot.pinned or slot.is_summary or slot == newest)
            )
        )
        reply = max_tokens or self._budget.reserve(manifest)
        return window - fixed - num_question_tokens - reply

    # -- what was chosen ----------------------------------------------------------------------------------------

    def _keep(self, one: _Found) -> None:
        """A chunk of the home from now on, so that its entry is found, listed and purged as any."""
        self._loom.shelf.add_passage(one.passage.ref, one.passage.name, one.hit.found.text)

    def _source(self, one: _Found, manifest: Manifest) -> Source:
        slots = [slot for slot in manifest.chunks if slot.ref == one.passage.ref]
        tiers = [self._loom.composer.tier(slot, self._desk.history.id) for slot in slots]
        costs = [self._loom.rates.restore_s(tier, slot.num_tokens) for tier, slot in zip(tiers, slots, strict=True)]
        hit = one.hit.found
        num_tokens = sum(slot.num_tokens for slot in slots)
        cost = None if None in costs else sum(cost or 0.0 for cost in costs)
        return Source(
            one.hit.library, hit.document, hit.first_line, hit.last_line, hit.heading, one.passage.ref,
            one.passage.name, hit.score, hit.coverage, hit.words, num_tokens, coldest(tiers), cost, hit.similarity,
        )  # fmt: skip

"""The adaptive policy: what stays is what has to do with the question, then what is recent; turns come back.

Pins and the summary always stay, and the newest turn where it has room at all. Then come the turns that have most to do
with the question, wherever they are; then the others while they fit, by
`relevance + RECENCY * FADE ** age - restore_s / PATIENCE_S`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from kvloom.context.manifest import Manifest, Slot
from kvloom.context.policies.base import (
    Need,
    checked,
    droppable_chunks,
    droppable_turns,
    register,
    standing_turns,
    without_chunks_until,
)

RECENCY = 0.8
"""What the newest turn is worth beside the most relevant one."""
FADE = 0.85
"""What each turn of age leaves of that."""
RECALL_RELEVANCE = 0.35
"""A turn that left comes back from this relevance on: a word in common is not enough."""
RECALL_OF_BEST = 0.8
"""… and with so much of what the most relevant turn has in common with the question, rare words weighing more: turns
with less mislead small models. Of all turns those that come so near to the best go before what is only recent."""
RECALL_SHARE = 0.5
"""Of the room, what turns that come back may take: the conversation at hand keeps the rest."""
PATIENCE_S = 20.0
"""Seconds of restoring that are worth one point of score."""

_IsNear = Callable[[Slot], bool]


@register("adaptive")
def adaptive(manifest: Manifest, need: Need) -> Manifest:
    """The most useful turns within the limit; what comes back stands where the question needs it."""
    here = {slot.ref for slot in manifest.turns}
    absent = [slot for slot in need.recallable if slot.ref not in here]
    is_near = _near_to_best(standing_turns(manifest), absent, need)
    absent = [slot for slot in absent if is_near(slot)]
    displaced = _displaced(manifest, need, is_near)
    if manifest.num_tokens <= need.limit and not absent and not displaced:
        return manifest
    present = droppable_turns(manifest, need)
    kept = _choose(manifest, present, absent, need, is_near)
    fresh = manifest.without({slot.ref for slot in present} - kept | {slot.ref for slot in displaced})
    for slot in sorted((*absent, *displaced), key=lambda slot: need.order(slot.ref)):
        if slot.ref in kept:
            fresh = fresh.with_turn_again(slot, _place(slot, fresh, need, is_near))
    chunks = sorted(droppable_chunks(fresh), key=lambda chunk: need.relevance.get(chunk, 0.0))
    return checked(without_chunks_until(fresh, need.limit, chunks), need)


def _choose(manifest: Manifest, present: list[Slot], absent: list[Slot], need: Need, is_near: _IsNear) -> set[str]:
    """Refs of the turns that stay or come back."""
    room = need.limit - manifest.num_tokens + sum(slot.num_tokens for slot in present)
    newest = present[-1:]
    kept = {slot.ref for slot in newest if slot.num_tokens <= room}
    room -= sum(slot.num_tokens for slot in newest if slot.ref in kept)
    recall_room = int(room * RECALL_SHARE)
    ages = {slot.ref: age for age, slot in enumerate(reversed(present))}
    away = {slot.ref for slot in absent}

    def rank(slot: Slot) -> tuple[bool, float, float, int]:
        relevance = _relevance(slot, need)
        recency = RECENCY * FADE ** ages[slot.ref] if slot.ref in ages else 0.0
        score = relevance + recency - need.restore_s(slot) / PATIENCE_S
        is_best = is_near(slot) and slot.ref not in need.asking
        return not is_best, -relevance if is_near(slot) else 0.0, -score, -need.order(slot.ref)

    for slot in sorted([*present, *absent], key=rank):
        if slot.ref in kept or slot.num_tokens > room or (slot.ref in away and slot.num_tokens > recall_room):
            continue
        kept.add(slot.ref)
        room -= slot.num_tokens
        if slot.ref in away:
            recall_room -= slot.num_tokens
    return kept


def _displaced(manifest: Manifest, need: Need, is_near: _IsNear) -> list[Slot]:
    """Turns that came back for another question, and stand behind what was said later on the matter of this one."""
    found, latest = [], -1
    for slot in standing_turns(manifest):
        if is_near(slot):
            if need.order(slot.ref) < latest and not slot.pinned:
                found.append(slot)
            latest = max(latest, need.order(slot.ref))
    return found


def _place(slot: Slot, fresh: Manifest, need: Need, is_near: _IsNear) -> str | None:
    """In front of which turn a turn comes back. Of none, so that it is next to the question, where small models look
    for its answer; but never behind what was said later and has as much to do with the question, nor between a
    follow-up question and what it follows."""
    turns = standing_turns(fresh)
    later = (t.ref for t in turns if is_near(t) and need.order(t.ref) > need.order(slot.ref))
    return next(later, turns[-1].ref if turns and need.is_follow_up else None)


def _relevance(slot: Slot, need: Need) -> float:
    return need.relevance.get(slot.ref, 0.0)


def _near_to_best(standing: Iterable[Slot], absent: Sequence[Slot], need: Need) -> _IsNear:
    """Whether a turn is relevant at all, and nearly as much as the most relevant of these.

    What only asked does not count, since it has all the words of a question that is asked in the same way again, of
    somebody else even, and not its answer; but what left and asked does where nothing else tells.
    """
    telling = [slot for slot in (*absent, *standing) if slot.ref not in need.asking]
    if all(_relevance(slot, need) < RECALL_RELEVANCE for slot in telling):
        telling = [*telling, *absent]
    best = max((_in_common(_relevance(slot, need)) for slot in telling), default=0.0)

    def is_near(slot: Slot) -> bool:
        relevance = _relevance(slot, need)
        return relevance >= RECALL_RELEVANCE and _in_common(relevance) >= RECALL_OF_BEST * best

    return is_near


def _in_common(relevance: float) -> float:
    """The score that a relevance was made of, up to a factor. Of a long conversation all relevances are near to 1, and
    do not tell a turn that is meant from one that has half of its words."""
    return relevance / max(1e-9, 1.0 - relevance)

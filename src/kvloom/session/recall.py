"""The ledger as the façade shows it, and what brings its lines back. Writes the next manifest, runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvloom.context.ledger import Left
from kvloom.context.manifest import Manifest, SlotKind
from kvloom.errors import UsageError
from kvloom.session.history import History
from kvloom.session.log import ManifestId
from kvloom.session.status import coldest
from kvloom.session.values import LedgerLine
from kvloom.types import ChunkId

if TYPE_CHECKING:
    from kvloom.session.loom import Loom

MIN_REF_CHARS = 4
MAX_TEXT_CHARS = 80


def ledger_lines(loom: Loom, history: History) -> list[LedgerLine]:
    """What is not in the prompt, the oldest first."""
    lines = []
    for left in history.ledger():
        named, is_turn = left.named, left.named.kind is SlotKind.TURN
        slots = history.slots_of(left)
        tiers = [loom.composer.tier(slot, history.id) for slot in slots]
        costs = [loom.rates.restore_s(t, s.num_tokens) for t, s in zip(tiers, slots, strict=True)]
        text = history.turn(named.ref).user if is_turn else named.name
        lines.append(
            LedgerLine(
                kind=named.kind.value,
                ref=named.ref,
                name=named.name,
                text=" ".join(text.split())[:MAX_TEXT_CHARS],
                num_tokens=named.num_tokens,
                reason=left.reason,
                is_undone=left.is_undone,
                is_summary=named.is_summary,
                tier=coldest(tiers),
                restore_s=None if None in costs else sum(cost or 0.0 for cost in costs),
            )
        )
    return lines


def one_line(lines: Sequence[Left[ManifestId]], ref: str) -> Left[ManifestId]:
    """The line of an id's beginning, or of a chunk's name. Raises UsageError with what there is."""
    found = [line for line in lines if line.named.name == ref]
    if not found and len(ref) >= MIN_REF_CHARS:
        found = [line for line in lines if line.named.ref.startswith(ref.lower())]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{ref!r} fits {len(found)} lines: {', '.join(line.named.ref[:12] for line in found)}")
    known = ", ".join(line.named.ref[:8] for line in lines[-5:]) or "it is empty"
    raise UsageError(f"the ledger has no line {ref!r}; the newest: {known}")


def recalled(manifest: Manifest, history: History, line: Left[ManifestId]) -> Manifest:
    """The context with a line's turn or chunk back in it."""
    slots = history.slots_of(line)
    if line.named.kind is SlotKind.TURN:
        ordinal = history.order(line.named.ref)
        later = (turn.ref for turn in manifest.turns if history.order(turn.ref) > ordinal)
        return manifest.with_turn_again(slots[0], next(later, None))
    return manifest.with_chunk(ChunkId(line.named.ref), line.named.name, [slot.tokens for slot in slots])

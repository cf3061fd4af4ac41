"""Chooses which passages of the libraries a question gets: by relevance, within a budget of tokens, warm before cold.

Pure: values in, values out. Knows no index, no manifest and no tier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvloom.types import ChunkId

WARM_BONUS = 0.05
"""What being at hand is worth: passages whose relevance differs by less than this share count as equally relevant."""
TAIL = 0.25
"""Of the best one's relevance; what has less in common with the question only misleads, and takes room."""


@dataclass(frozen=True)
class Candidate:
    """A passage that was found. `relevance` is above 0; `warmth` 1 where its KV stands already, 0 where it has to be
    computed."""

    ref: ChunkId
    num_tokens: int
    relevance: float
    warmth: float = 0.0


def choose(candidates: Sequence[Candidate], room: int, depth: int) -> tuple[Candidate, ...]:
    """The most relevant ones that fit into `room` tokens together, `depth` at most, the most relevant first.

    One that is too large does not keep out smaller ones behind it.
    """
    best = max((one.relevance for one in candidates), default=0.0)
    chosen: dict[ChunkId, Candidate] = {}
    for one in sorted(candidates, key=_rank):
        if len(chosen) == depth:
            break
        if one.relevance < TAIL * best or one.num_tokens > room or one.ref in chosen:
            continue
        chosen[one.ref] = one
        room -= one.num_tokens
    return tuple(sorted(chosen.values(), key=lambda one: (-one.relevance, one.ref)))


def _rank(one: Candidate) -> tuple[float, str]:
    return -one.relevance * (1 + WARM_BONUS * one.warmth), one.ref

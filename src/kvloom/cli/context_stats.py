"""The sums behind `stats`: where the tokens lie, how fast the window fills, how much was compressed. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from kvloom.session.values import ContextUsage, LedgerLine, Turn
from kvloom.types import TierName

TREND_TURNS = 10
"""Newest turns that the trend is read off: older ones say little about the next."""
MIN_TREND_TURNS = 3


@dataclass(frozen=True)
class TierShare:
    """What of a context lies in one tier; NONE is still to be computed, UNKNOWN is the endpoint's business."""

    tier: TierName
    num_tokens: int
    kv_bytes: int


@dataclass(frozen=True)
class ContextStats:
    """`tokens_per_turn` is the mean of the newest turns, `trend_tokens` what each is longer than the one before it.

    `turns_left`: turns of that mean until the reserve is reached. All three are None where too few turns were made.
    `compression_ratio`: tokens in the context by tokens that were ever given.
    """

    num_turns: int
    tokens_per_turn: float | None
    trend_tokens: float | None
    turns_left: int | None
    tiers: tuple[TierShare, ...]
    num_ledger_lines: int
    num_ledger_tokens: int
    compression_ratio: float


def context_stats(usage: ContextUsage, turns: Sequence[Turn], ledger: Sequence[LedgerLine]) -> ContextStats:
    sizes = [turn.num_tokens for turn in turns if not turn.replaces][-TREND_TURNS:]
    mean = statistics.fmean(sizes) if sizes else None
    room = max(0, usage.capacity - usage.reserve - usage.used)
    outside = sum(line.num_tokens for line in ledger)
    return ContextStats(
        num_turns=len(turns),
        tokens_per_turn=None if mean is None else round(mean, 1),
        trend_tokens=_trend(sizes),
        turns_left=int(room / mean) if mean else None,
        tiers=_tiers(usage),
        num_ledger_lines=len(ledger),
        num_ledger_tokens=outside,
        compression_ratio=round(usage.used / (usage.used + outside), 4) if usage.used + outside else 1.0,
    )


def _trend(sizes: Sequence[int]) -> float | None:
    if len(sizes) < MIN_TREND_TURNS:
        return None
    return round(statistics.linear_regression(range(len(sizes)), sizes).slope, 1)


def _tiers(usage: ContextUsage) -> tuple[TierShare, ...]:
    active = [segment for segment in usage.segments if segment.is_active]
    return tuple(
        TierShare(
            tier,
            sum(segment.num_tokens for segment in active if segment.tier is tier),
            sum(segment.kv_bytes for segment in active if segment.tier is tier),
        )
        for tier in TierName
        if any(segment.tier is tier for segment in active)
    )

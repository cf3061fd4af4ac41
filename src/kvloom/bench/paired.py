"""Shares and ratios of paired answers with the lower end of their intervals (95 %, two-sided). Pure, seeded."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Z = 1.959964
"""Standard deviations of a two-sided 95 % interval."""
NUM_RESAMPLES = 4000
SEED = 7
LOW_PERCENT = 2.5


def wilson_low(num_right: int, number: int) -> float:
    """The lower end of Wilson's interval of a share; 0 where nothing was counted."""
    if not number:
        return 0.0
    share, z2 = num_right / number, Z * Z
    centre = share + z2 / (2 * number)
    spread = Z * math.sqrt(share * (1 - share) / number + z2 / (4 * number * number))
    return max(0.0, (centre - spread) / (1 + z2 / number))


def kept(ours: Sequence[bool], theirs: Sequence[bool]) -> tuple[int, int]:
    """Of what they answered right: how many we did too, and how many there are."""
    both = sum(a and b for a, b in zip(ours, theirs, strict=True))
    return both, sum(theirs)


def ratio(ours: Sequence[bool], theirs: Sequence[bool]) -> float:
    """Right answers of ours for each one of theirs; 0 where they had none."""
    return sum(ours) / sum(theirs) if any(theirs) else 0.0


def ratio_low(ours: Sequence[bool], theirs: Sequence[bool]) -> float:
    """The lower end of the interval of `ratio`, the questions drawn again and again as pairs (percentile bootstrap)."""
    both, num_theirs = kept(ours, theirs)
    number, only_ours = len(ours), sum(ours) - both
    if not number:
        return 0.0
    kinds = np.array([both, only_ours, num_theirs - both, number - num_theirs - only_ours]) / number
    drawn = np.random.default_rng(SEED).multinomial(number, kinds, size=NUM_RESAMPLES)
    mine, peers = drawn[:, 0] + drawn[:, 1], drawn[:, 0] + drawn[:, 2]
    is_any = peers > 0
    return float(np.percentile(mine[is_any] / peers[is_any], LOW_PERCENT)) if is_any.any() else 0.0

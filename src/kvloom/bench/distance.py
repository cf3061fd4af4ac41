"""How far one output distribution is from another, over many draws, with intervals. Knows log-probabilities only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kvloom.types import F32Array, F64Array

RESAMPLES = 2000
INTERVAL = (2.5, 97.5)
"""Per cent: 95 % of the resampled means lie between."""
SEED = 7


@dataclass(frozen=True)
class Distance:
    """One draw: KL in nats and agreement of the likeliest token at every measured position, NLL of the answer."""

    kl: F64Array
    agrees: F64Array
    nll: float
    reference_nll: float
    seconds: float
    share: float


def distance(
    reference: F32Array, other: F32Array, answer: Sequence[int], seconds: float = 0.0, share: float = 0.0
) -> Distance:
    """KL(reference ‖ other) of log-probabilities (rows, vocab); the last len(answer) rows predict the answer."""
    kl = (np.exp(reference) * (reference - other)).sum(axis=1, dtype=np.float64)
    agrees = (reference.argmax(axis=1) == other.argmax(axis=1)).astype(np.float64)
    rows, ids = np.arange(len(reference) - len(answer), len(reference)), np.asarray(answer)
    return Distance(kl, agrees, -float(other[rows, ids].mean()), -float(reference[rows, ids].mean()), seconds, share)


def interval(values: Sequence[F64Array], statistic: Callable[[F64Array], float]) -> tuple[float, float]:
    """A 95 % interval of `statistic` over all values pooled; whole draws are resampled, as positions hang together."""
    rng = np.random.default_rng(SEED)
    number = len(values)
    found = [statistic(np.concatenate([values[i] for i in rng.integers(0, number, number)])) for _ in range(RESAMPLES)]
    low, high = np.percentile(found, INTERVAL)
    return float(low), float(high)


def mean(values: F64Array) -> float:
    return float(values.mean())


def summary(draws: Sequence[Distance]) -> dict[str, float]:
    """Pooled over all positions of all draws; `_low` and `_high` bound 95 %."""
    kl, agrees = [draw.kl for draw in draws], [draw.agrees for draw in draws]
    pooled = np.concatenate(kl)
    low, high = interval(kl, mean)
    top_low, top_high = interval(agrees, mean)
    return {
        "num_draws": len(draws),
        "num_positions": len(pooled),
        "share": float(np.mean([draw.share for draw in draws])),
        "kl_mean": mean(pooled),
        "kl_mean_low": low,
        "kl_mean_high": high,
        "kl_median": float(np.median(pooled)),
        "kl_p90": float(np.percentile(pooled, 90)),
        "top1": mean(np.concatenate(agrees)),
        "top1_low": top_low,
        "top1_high": top_high,
        "nll": float(np.mean([draw.nll for draw in draws])),
        "nll_full_prefill": float(np.mean([draw.reference_nll for draw in draws])),
    }

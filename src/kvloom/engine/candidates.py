"""Finds the most likely of many logits fast, and log-probabilities of the model's own distribution. Knows no sampler.

A vocabulary has 150,000 tokens and a sampler looks at 40 of them: two passes of numpy find these, all others are never
moved.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvloom.errors import EngineStateError
from kvloom.types import F32Array

__all__ = ["TokenScores", "most_likely", "token_scores"]

MAX_GROUP = 256
"""Logits whose largest is taken together: fewer would leave more of these to look through, more are no faster."""
GROUPS_PER_ID = 4
"""So many groups for every id wanted: then seldom two of the largest share one, and few too many are handed out."""
SLACK = 16
"""So many times more than asked for are handed out as they are; more are cut by value first."""


def most_likely(logits: F32Array, count: int) -> npt.NDArray[np.intp]:
    """Ids, ascending, of the `count` largest logits (n,), all that tie with the last of them, and perhaps more.

    Every id left out has a smaller logit than `count` that are in. Ids of -inf are never in; so fewer may come.
    Raises EngineStateError where the largest logit is no number.
    """
    threshold = _threshold(logits, count)
    ids = np.flatnonzero(logits >= threshold if threshold > -np.inf else logits > -np.inf)
    if ids.size > SLACK * count > 0:
        values = logits[ids]
        ids = ids[values >= np.partition(values, ids.size - count)[ids.size - count]]
    return ids


def _threshold(logits: F32Array, count: int) -> float:
    """A value that at least `count` logits reach: the count-th largest among the largest of disjoint groups."""
    size = min(MAX_GROUP, logits.size // (GROUPS_PER_ID * max(1, count)))
    num_groups = logits.size // size if size > 1 else logits.size
    # Groups are columns: numpy takes maxima of whole rows at once.
    best = logits[: size * num_groups].reshape(size, num_groups).max(axis=0) if size > 1 else logits
    rest = logits[size * num_groups :] if size > 1 else logits[:0]
    top = max(float(best.max()), float(rest.max(initial=-np.inf)))
    if not np.isfinite(top):
        raise EngineStateError(f"the largest of {logits.size} logits is {top}: no token can be chosen")
    if count >= num_groups:
        return -np.inf
    return float(np.partition(best, num_groups - count)[num_groups - count]) if count > 0 else top


@dataclass(frozen=True)
class TokenScores:
    """Log-probabilities of one step: of the chosen token, and of the most likely ones, best first."""

    logprob: float
    top_ids: tuple[int, ...]
    top_logprobs: tuple[float, ...]


def token_scores(logits: F32Array, token: int, count: int) -> TokenScores:
    """What the model itself made of `token` for `logits` (vocab,), and its `count` most likely tokens.

    Before temperature, penalties, biases, cuts and grammar. Among equals the smaller id comes first.
    """
    if not 0 <= token < logits.size:
        raise EngineStateError(f"token {token} has no logit: there are {logits.size}")
    top = float(logits.max())
    if not np.isfinite(top):
        raise EngineStateError(f"the largest of {logits.size} logits is {top}: they are no distribution")
    total = top + float(np.log(np.exp(logits - np.float32(top)).sum()))
    ids = most_likely(logits, count) if count > 0 else np.empty(0, np.intp)
    ids = ids[np.argsort(-logits[ids], kind="stable")][:count]
    best = logits[ids].astype(np.float64) - total
    return TokenScores(float(logits[token]) - total, tuple(ids.tolist()), tuple(best.tolist()))

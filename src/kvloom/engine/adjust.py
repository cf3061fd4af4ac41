"""What a request changes in the logits before a token is chosen: biases, penalties, a grammar. For every engine.

Only the few tokens that are named or were said are touched. It knows no sampler and no text.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvloom.engine.grammar import GrammarGuide
from kvloom.errors import UsageError
from kvloom.types import F32Array

__all__ = ["Adjuster", "Penalties"]

_MINUS_INFINITY = np.array(-np.inf, np.float32).view(np.uint32)


@dataclass(frozen=True)
class Penalties:
    """`repeat` divides (or multiplies, below 0) the logits of the last `repeat_tokens` tokens; 1 is none.

    `presence` and `frequency` are taken off those of every token of the reply, once and for each time it was said.
    """

    repeat: float = 1.0
    repeat_tokens: int = 64
    presence: float = 0.0
    frequency: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.repeat) and self.repeat > 0):
            raise UsageError(f"repeat_penalty is {self.repeat}; it must be a finite number above 0 (1 is none)")
        for name, value in (("presence_penalty", self.presence), ("frequency_penalty", self.frequency)):
            if not math.isfinite(value):
                raise UsageError(f"{name} is {value}; it must be a finite number (0 is none)")

    @property
    def repeats(self) -> bool:
        return self.repeat != 1.0 and self.repeat_tokens > 0

    @property
    def counts(self) -> bool:
        return self.presence != 0.0 or self.frequency != 0.0


class Adjuster:
    """The adjustments of one reply, in llama.cpp's order: biases, penalties, grammar. Not thread-safe."""

    def __init__(
        self, size: int, bias: tuple[tuple[int, float], ...], penalties: Penalties, guide: GrammarGuide | None
    ) -> None:
        self._penalties = penalties
        self._guide = guide
        self._bias_ids, self._bias_values = _check_bias(bias, size)
        self._recent: deque[int] = deque(maxlen=max(0, penalties.repeat_tokens) if penalties.repeats else 0)
        self._seen: npt.NDArray[np.intp] = np.empty(64, np.intp)
        self._num_seen = 0
        self._changes = bool(bias) or penalties.repeats or penalties.counts or guide is not None
        self._times: F32Array = np.zeros(size if penalties.counts else 0, np.float32)
        self._buffer: F32Array = np.empty(size if self._changes else 0, np.float32)
        self._keep: npt.NDArray[np.uint32] = np.empty(0 if guide is None else size, np.uint32)

    def applied(self, logits: F32Array) -> F32Array:
        """The logits to choose from: `logits` itself where nothing changes, else a buffer of this adjuster."""
        if not self._changes:
            return logits
        out = self._buffer
        np.copyto(out, logits)
        if self._bias_ids.size:
            out[self._bias_ids] += self._bias_values
        if self._recent:
            ids = np.array(sorted(set(self._recent)), np.intp)
            said, factor = out[ids], np.float32(self._penalties.repeat)
            out[ids] = np.where(said <= 0, said * factor, said / factor)
        if self._num_seen:
            ids = self._seen[: self._num_seen]
            out[ids] -= self._times[ids] * np.float32(self._penalties.frequency) + np.float32(self._penalties.presence)
        if self._guide is not None:
            _rule_out(out, self._guide.allowed(), self._keep)
        return out

    def accept(self, token: int) -> None:
        """Count a token that was chosen."""
        if self._penalties.repeats:
            self._recent.append(token)
        if self._penalties.counts:
            self._count(token)
        if self._guide is not None:
            self._guide.accept(token)

    def _count(self, token: int) -> None:
        if not self._times[token]:
            if self._num_seen == self._seen.size:
                self._seen = np.concatenate([self._seen, np.empty_like(self._seen)])
            self._seen[self._num_seen] = token
            self._num_seen += 1
        self._times[token] += 1


def _rule_out(logits: F32Array, allowed: npt.NDArray[np.bool_], keep: npt.NDArray[np.uint32]) -> None:
    """Set what is not allowed to -inf, in bits: a mask that changes at every other token costs numpy's own 1 ms.

    `keep` is room for the bits, held from step to step: fresh pages would cost more than the work.
    """
    np.copyto(keep, allowed)
    np.negative(keep, out=keep)  # all bits of what is allowed, none of the rest
    bits = logits.view(np.uint32)
    np.bitwise_and(bits, keep, out=bits)
    np.invert(keep, out=keep)
    np.bitwise_and(keep, _MINUS_INFINITY, out=keep)
    np.bitwise_or(bits, keep, out=bits)


def _check_bias(bias: tuple[tuple[int, float], ...], size: int) -> tuple[npt.NDArray[np.intp], F32Array]:
    for token, value in bias:
        if not 0 <= token < size:
            raise UsageError(f"logit_bias names token {token}; this model has the tokens 0 … {size - 1}")
        if math.isnan(value) or value == math.inf:
            raise UsageError(f"logit_bias of token {token} is {value}; it must be a number")
    if len({token for token, _ in bias}) != len(bias):
        raise UsageError("logit_bias names a token twice")
    return np.array([token for token, _ in bias], np.intp), np.array([value for _, value in bias], np.float32)

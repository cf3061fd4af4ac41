"""Chooses tokens with llama.cpp's own samplers; the model file's own settings are the defaults.

It knows logits and token ids, no sequences and no text.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Any, TypeVar

import llama_cpp
import numpy as np
import numpy.typing as npt

from kvloom.engine.adjust import Adjuster, Penalties
from kvloom.engine.base import Sampler
from kvloom.engine.candidates import most_likely
from kvloom.engine.grammar import GrammarGuide
from kvloom.engine.llamacpp.load import Metadata
from kvloom.errors import EngineStateError
from kvloom.types import F32Array, SamplingParams

__all__ = ["LlamaCppSampler", "SamplingDefaults"]

_TOKEN_DATA = np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")], align=True)
"""The native `llama_token_data`; `_check_struct` compares the sizes."""
_MIN_KEEP = 1
_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True)
class SamplingDefaults:
    """What a request that leaves a setting open gets: the file's `general.sampling.*`, else llama.cpp's usual."""

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    penalty_tokens: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    @classmethod
    def of(cls, metadata: Metadata) -> SamplingDefaults:
        def number(key: str, otherwise: float) -> float:
            value = metadata.number(f"general.sampling.{key}")
            return otherwise if value is None else value

        return cls(
            temperature=number("temp", cls.temperature),
            top_k=int(number("top_k", cls.top_k)),
            top_p=number("top_p", cls.top_p),
            min_p=number("min_p", cls.min_p),
            repeat_penalty=number("penalty_repeat", cls.repeat_penalty),
            penalty_tokens=int(number("penalty_last_n", cls.penalty_tokens)),
        )


class LlamaCppSampler(Sampler):
    """Biases, penalties, grammar; then the native chain of top-k, top-p, min-p, temperature, draw. One per reply.

    Where top-k is set, the chain sees only the tokens that can survive it: it then chooses exactly as from all.
    """

    def __init__(
        self,
        params: SamplingParams,
        defaults: SamplingDefaults,
        vocabulary_size: int,
        guide: GrammarGuide | None = None,
    ) -> None:
        penalties = Penalties(
            repeat=_or(params.repeat_penalty, defaults.repeat_penalty),
            repeat_tokens=defaults.penalty_tokens,
            presence=_or(params.presence_penalty, defaults.presence_penalty),
            frequency=_or(params.frequency_penalty, defaults.frequency_penalty),
        )
        self._size = vocabulary_size
        self._adjuster = Adjuster(vocabulary_size, params.logit_bias, penalties, guide)
        self._temperature = _or(params.temperature, defaults.temperature)
        self._top_k = _or(params.top_k, defaults.top_k)
        self._chain: Any = None  # a native pointer
        if self._temperature <= 0.0:
            return  # numpy's argmax is the same choice, without moving the candidates
        _check_struct()
        self._candidates: npt.NDArray[np.void] = np.zeros(0, _TOKEN_DATA)
        self._array: Any = llama_cpp.llama_token_data_array()
        self._chain = self._make_chain(params, defaults)

    def sample(self, logits: F32Array) -> int:
        if logits.shape != (self._size,):
            raise EngineStateError(f"logits of shape {logits.shape}: ({self._size},) are needed")
        logits = self._adjuster.applied(logits)
        token = self._best(logits) if self._chain is None else self._draw(logits)
        self._adjuster.accept(token)
        return token

    def close(self) -> None:
        if self._chain is not None:
            chain, self._chain = self._chain, None
            llama_cpp.llama_sampler_free(chain)

    def _best(self, logits: F32Array) -> int:
        token = int(logits.argmax())
        if not math.isfinite(logits[token]):
            raise EngineStateError(f"the largest of {self._size} logits is {logits[token]}: no token can be chosen")
        return token

    def _draw(self, logits: F32Array) -> int:
        # Without top-k the chain sees everything that is not ruled out: its top-p is of the whole distribution.
        ids = most_likely(logits, self._top_k if self._top_k > 0 else self._size)
        count = ids.size
        if count > self._candidates.size:
            self._candidates = np.zeros(count, _TOKEN_DATA)
        self._candidates["id"][:count] = ids
        self._candidates["logit"][:count] = logits[ids]
        # A sampler may have put its own array there.
        self._array.data = ctypes.cast(self._candidates.ctypes.data, ctypes.POINTER(llama_cpp.llama_token_data))
        self._array.size = count
        self._array.selected = -1
        self._array.sorted = False
        llama_cpp.llama_sampler_apply(self._chain, ctypes.byref(self._array))
        selected: int = self._array.selected
        if not 0 <= selected < self._array.size:
            raise EngineStateError("the native samplers chose no token")
        return int(self._array.data[selected].id)

    def _make_chain(self, params: SamplingParams, defaults: SamplingDefaults) -> Any:
        chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        seed = llama_cpp.LLAMA_DEFAULT_SEED if params.seed is None else params.seed & 0xFFFFFFFF
        for sampler in (
            llama_cpp.llama_sampler_init_top_k(self._top_k),
            llama_cpp.llama_sampler_init_top_p(_or(params.top_p, defaults.top_p), _MIN_KEEP),
            llama_cpp.llama_sampler_init_min_p(_or(params.min_p, defaults.min_p), _MIN_KEEP),
            llama_cpp.llama_sampler_init_temp(self._temperature),
            llama_cpp.llama_sampler_init_dist(seed),
        ):
            llama_cpp.llama_sampler_chain_add(chain, sampler)
        return chain


def _or(value: _Number | None, otherwise: _Number) -> _Number:
    return otherwise if value is None else value


def _check_struct() -> None:
    if ctypes.sizeof(llama_cpp.llama_token_data) != _TOKEN_DATA.itemsize:
        raise EngineStateError(
            f"llama_token_data takes {ctypes.sizeof(llama_cpp.llama_token_data)} bytes instead of "
            f"{_TOKEN_DATA.itemsize}: this build of llama.cpp is not supported"
        )

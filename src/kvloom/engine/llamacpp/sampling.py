"""Chooses tokens with llama.cpp's own samplers; the model file's own settings are the defaults.

It knows logits and token ids, no sequences and no text.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, TypeVar

import llama_cpp
import numpy as np
import numpy.typing as npt

from kvloom.engine.base import Sampler
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
    """A native sampler chain: penalties, top-k, top-p, min-p, temperature, draw. One per reply, not thread-safe."""

    def __init__(self, params: SamplingParams, defaults: SamplingDefaults, vocabulary_size: int) -> None:
        temperature = defaults.temperature if params.temperature is None else params.temperature
        penalty = defaults.repeat_penalty if params.repeat_penalty is None else params.repeat_penalty
        self._size = vocabulary_size
        self._is_greedy = temperature <= 0.0
        self._has_penalty = penalty != 1.0 and defaults.penalty_tokens != 0
        self._chain: Any = None  # a native pointer
        if self._is_greedy and not self._has_penalty:
            return  # numpy's argmax is the same choice, without moving the candidates
        _check_struct()
        self._ids = np.arange(vocabulary_size, dtype=np.int32)
        self._candidates: npt.NDArray[np.void] = np.zeros(vocabulary_size, _TOKEN_DATA)
        self._array: Any = llama_cpp.llama_token_data_array()
        self._data = ctypes.cast(self._candidates.ctypes.data, ctypes.POINTER(llama_cpp.llama_token_data))
        self._chain = self._make_chain(params, defaults, temperature, penalty)

    def sample(self, logits: F32Array) -> int:
        if logits.shape != (self._size,):
            raise EngineStateError(f"logits of shape {logits.shape}: ({self._size},) are needed")
        if self._chain is None:
            return int(logits.argmax())
        self._candidates["id"] = self._ids  # the samplers sort in place
        self._candidates["logit"] = logits
        self._array.data = self._data  # a sampler may have put its own array there
        self._array.size = self._size
        self._array.selected = -1
        self._array.sorted = False
        llama_cpp.llama_sampler_apply(self._chain, ctypes.byref(self._array))
        selected: int = self._array.selected
        if not 0 <= selected < self._array.size:
            raise EngineStateError("the native samplers chose no token")
        token = int(self._array.data[selected].id)
        llama_cpp.llama_sampler_accept(self._chain, token)
        return token

    def close(self) -> None:
        if self._chain is not None:
            chain, self._chain = self._chain, None
            llama_cpp.llama_sampler_free(chain)

    def _make_chain(
        self, params: SamplingParams, defaults: SamplingDefaults, temperature: float, penalty: float
    ) -> Any:
        chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())

        def add(sampler: Any) -> None:
            llama_cpp.llama_sampler_chain_add(chain, sampler)

        if self._has_penalty:
            add(llama_cpp.llama_sampler_init_penalties(self._size, defaults.penalty_tokens, penalty, 0.0, 0.0))
        if self._is_greedy:
            add(llama_cpp.llama_sampler_init_greedy())
            return chain
        add(llama_cpp.llama_sampler_init_top_k(_or(params.top_k, defaults.top_k)))
        add(llama_cpp.llama_sampler_init_top_p(_or(params.top_p, defaults.top_p), _MIN_KEEP))
        add(llama_cpp.llama_sampler_init_min_p(_or(params.min_p, defaults.min_p), _MIN_KEEP))
        add(llama_cpp.llama_sampler_init_temp(temperature))
        seed = llama_cpp.LLAMA_DEFAULT_SEED if params.seed is None else params.seed & 0xFFFFFFFF
        add(llama_cpp.llama_sampler_init_dist(seed))
        return chain


def _or(value: _Number | None, otherwise: _Number) -> _Number:
    return otherwise if value is None else value


def _check_struct() -> None:
    if ctypes.sizeof(llama_cpp.llama_token_data) != _TOKEN_DATA.itemsize:
        raise EngineStateError(
            f"llama_token_data takes {ctypes.sizeof(llama_cpp.llama_token_data)} bytes instead of "
            f"{_TOKEN_DATA.itemsize}: this build of llama.cpp is not supported"
        )

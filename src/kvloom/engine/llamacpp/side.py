"""Another native context over the weights that are loaded, and the state bytes of any context's sequences.

Knows neither what is computed nor what the bytes mean.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import llama_cpp
import numpy as np

from kvloom.engine.llamacpp.load import LoadSettings, open_context
from kvloom.engine.llamacpp.log import recent_errors
from kvloom.errors import EngineStateError
from kvloom.types import U8Array

__all__ = ["SideContext", "read_state", "set_state"]


class SideContext:
    """Owns one context until `close`, which is idempotent; the model must outlive it."""

    def __init__(
        self,
        model: int,
        settings: LoadSettings,
        num_sequences: int,
        change: Callable[[llama_cpp.llama_context_params], None],
    ) -> None:
        """Raises EngineMemoryError where it cannot be had."""
        self._pointer: int | None = open_context(model, settings, num_sequences=num_sequences, change=change)

    @property
    def is_open(self) -> bool:
        return self._pointer is not None

    @property
    def pointer(self) -> int:
        if self._pointer is None:
            raise EngineStateError("this context was closed")
        return self._pointer

    @property
    def memory(self) -> int:
        return llama_cpp.llama_get_memory(self.pointer) or 0

    def decode(self, native_batch: llama_cpp.llama_batch) -> None:
        code = llama_cpp.llama_decode(self.pointer, native_batch)
        if code:
            raise EngineStateError(
                f"llama.cpp could not compute {native_batch.n_tokens} rows (code {code}): {recent_errors()}"
            )

    def close(self) -> None:
        if self._pointer is not None:
            pointer, self._pointer = self._pointer, None
            llama_cpp.llama_free(pointer)


def read_state(context: int, sequence: int, buffer: U8Array) -> U8Array:
    """The state bytes of a sequence, in `buffer` where they fit."""
    size = llama_cpp.llama_state_seq_get_size(context, sequence)
    data = buffer[:size] if buffer.size >= size else np.empty(size, np.uint8)
    written = llama_cpp.llama_state_seq_get_data(context, _address(data), size, sequence)
    if written != size or size == 0:
        raise EngineStateError(f"llama.cpp gave {written} of {size} state bytes of sequence {sequence}")
    return data


def set_state(context: int, sequence: int, data: U8Array) -> None:
    """Replace a sequence by what `data` holds; it is empty where that is refused."""
    taken = llama_cpp.llama_state_seq_set_data(context, _address(data), data.size, sequence)
    if taken != data.size:
        llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(context), sequence, -1, -1)
        raise EngineStateError(
            f"llama.cpp took {taken} of {data.size} state bytes for sequence {sequence}, which is empty now: "
            f"{recent_errors()}"
        )


def _address(data: U8Array) -> object:
    return ctypes.cast(data.ctypes.data, ctypes.POINTER(ctypes.c_uint8))

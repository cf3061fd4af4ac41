"""ggml's casts agree with the reference arithmetic, and never touch memory that is not theirs."""

from __future__ import annotations

import numpy as np
import pytest

from kvloom.engine.llamacpp.casting import GgmlRowCaster
from kvloom.kv.quantize import NumpyRowCaster
from kvloom.types import KVType


@pytest.mark.parametrize("kv_type", KVType)
@pytest.mark.parametrize("shift", [0, 1, 2])
def test_ggml_and_numpy_cast_alike_at_any_alignment(kv_type: KVType, shift: int) -> None:
    caster = GgmlRowCaster.load()
    assert caster is not None
    values = np.random.default_rng(3).standard_normal(64 * 32).astype(np.float32)
    size = kv_type.row_bytes(values.size)
    memory = np.zeros((2, size + 8), np.uint8)
    ours, theirs = (row[shift : shift + size] for row in memory)
    NumpyRowCaster().from_f32(kv_type, values, ours)
    caster.from_f32(kv_type, values, theirs)
    assert np.array_equal(ours, theirs)
    back = np.empty((2, values.size), np.float32)
    NumpyRowCaster().to_f32(kv_type, ours, back[0])
    caster.to_f32(kv_type, theirs, back[1])
    assert np.array_equal(back[0], back[1])
    assert not memory[:, shift + size :].any()


def test_sizes_that_do_not_match_are_refused() -> None:
    caster = GgmlRowCaster.load()
    assert caster is not None
    with pytest.raises(ValueError, match="do not hold"):
        caster.to_f32(KVType.F16, np.zeros(10, np.uint8), np.zeros(6, np.float32))

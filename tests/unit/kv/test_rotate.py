"""Turning K rows is RoPE by the distance, whatever the pairs, the type and the Hadamard turn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvloom.kv.quantize import NumpyRowCaster
from kvloom.kv.rotate import Rotator, rotated
from kvloom.types import (
    F32Array,
    F64Array,
    KVLayout,
    KVRows,
    KVType,
    LayerRope,
    LayerShape,
    RopePairing,
    RopeSpec,
    U8Array,
)
from tests.unit.kv.rows import decode, encode, frequencies, layout_of, random_rows, rope_of


def rope_by_hand(head: F64Array, rope: LayerRope, distance: int) -> F64Array:
    """RoPE written pair by pair, in float64. `head` is (n, head_dim)."""
    result = head.copy()
    for i, frequency in enumerate(rope.inv_freq):
        if rope.pairing is RopePairing.NORM:
            a, b = rope.offset + 2 * i, rope.offset + 2 * i + 1
        else:
            a, b = rope.offset + i, rope.offset + i + len(rope.inv_freq)
        cos, sin = np.cos(frequency * distance), np.sin(frequency * distance)
        result[:, a] = head[:, a] * cos - head[:, b] * sin
        result[:, b] = head[:, a] * sin + head[:, b] * cos
    return result


def sylvester(size: int) -> F64Array:
    """The orthonormal Hadamard matrix by its definition: the sign is the parity of the common bits."""
    index = np.arange(size)
    parity = np.array([[int(i & j).bit_count() & 1 for j in index] for i in index])
    signs: F64Array = (1.0 - 2.0 * parity) / np.sqrt(size)
    return signs


def k_by_hand(rows: KVRows, rope: RopeSpec, distance: int, layer: int, block: int = 64) -> F64Array:
    """The turned K of a layer in float64 as values, before they are encoded again."""
    shape = rows.layout.layers[layer]
    values = decode(rows.layout.k_type, rows.k(layer), shape.num_heads * shape.k_head_dim).astype(np.float64)
    turn = np.kron(np.eye(shape.k_head_dim // block), sylvester(block)) if rows.layout.hadamard_k else None
    layer_rope = rope.layers[layer]
    for head in range(shape.num_heads):
        part = values[:, head * shape.k_head_dim : (head + 1) * shape.k_head_dim]
        plain = part @ turn if turn is not None else part.copy()
        if layer_rope is not None:
            plain = rope_by_hand(plain, layer_rope, distance)
        part[:] = plain @ turn if turn is not None else plain
    return values


def assert_within_one_ulp(got: U8Array, expected: F64Array) -> None:
    near = got.view(np.float16)
    want = expected.astype(np.float16)
    step = np.maximum(np.spacing(np.abs(want)).astype(np.float64), np.spacing(np.float16(2**-14)).astype(np.float64))
    # A value that two products cancel is as exact as its two terms are, not as its own last place.
    floor = 4e-7 * np.abs(expected).max()
    assert (np.abs(near.astype(np.float64) - want.astype(np.float64)) <= np.maximum(step, floor)).all()


ROPES = {
    "neox": (64, LayerRope(RopePairing.NEOX, frequencies(32))),
    "norm": (64, LayerRope(RopePairing.NORM, frequencies(32))),
    "partial neox": (80, LayerRope(RopePairing.NEOX, frequencies(16))),
    "partial norm": (80, LayerRope(RopePairing.NORM, frequencies(20))),
    "offset": (96, LayerRope(RopePairing.NORM, frequencies(16), offset=64)),
    "head of 128": (128, LayerRope(RopePairing.NEOX, frequencies(64, 1e6))),
    "head of 256": (256, LayerRope(RopePairing.NEOX, frequencies(128, 1e6))),
}


@pytest.mark.parametrize("name", list(ROPES))
@pytest.mark.parametrize("distance", [1, -37, 8000, 100_000])
def test_f16_rows_turn_within_one_ulp_of_a_float64_reference(
    name: str, distance: int, rng: np.random.Generator
) -> None:
    head_dim, layer_rope = ROPES[name]
    layout = layout_of(layers=(LayerShape(2, head_dim, 64),) * 2)
    rope = RopeSpec((layer_rope,) * 2)
    rows = random_rows(layout, 70, rng)
    turned = rotated(rows, rope, distance)
    for layer in range(2):
        assert_within_one_ulp(turned.k(layer), k_by_hand(rows, rope, distance, layer))


@pytest.mark.parametrize("kv_type", [KVType.Q8_0, KVType.Q4_0])
@pytest.mark.parametrize(("head_dim", "block"), [(64, 64), (128, 128), (192, 64), (256, 256)])
@pytest.mark.parametrize("hadamard", [False, True])
def test_quantized_rows_are_decoded_turned_and_encoded_once(
    kv_type: KVType, head_dim: int, block: int, hadamard: bool, rng: np.random.Generator
) -> None:
    layout = layout_of(kv_type, kv_type, layers=(LayerShape(2, head_dim, 64),), hadamard=hadamard)
    rope = rope_of(layout)
    rows = random_rows(layout, 40, rng)
    turned = rotated(rows, rope, 777)
    expected = k_by_hand(rows, rope, 777, 0, block)
    once = decode(kv_type, encode(kv_type, expected.astype(np.float32)), expected.shape[1])
    got = decode(kv_type, turned.k(0), expected.shape[1])
    # One float32 rounding may tip a value at a half into the next step of its block; nothing may be further off.
    assert np.mean(got != once) < 0.01
    steps = np.abs(expected).reshape(-1, 32).max(axis=1).repeat(32).reshape(expected.shape)
    steps = steps / (127 if kv_type is KVType.Q8_0 else 8)
    assert (np.abs(got - once) <= steps * 1.01).all()


def test_v_rows_and_layers_without_rope_keep_their_bytes(rng: np.random.Generator) -> None:
    layout = layout_of(layers=(LayerShape(2, 64, 64), LayerShape(1, 64, 32)))
    rope = RopeSpec((None, LayerRope(RopePairing.NEOX, frequencies(32))))
    rows = random_rows(layout, 9, rng)
    turned = rotated(rows, rope, 5)
    assert np.array_equal(turned.k(0), rows.k(0))
    assert not np.array_equal(turned.k(1), rows.k(1))
    assert all(np.array_equal(turned.v(i), rows.v(i)) for i in range(2))
    assert turned.first_position == rows.first_position + 5


def test_every_layer_turns_by_its_own_rope(rng: np.random.Generator) -> None:
    layout = layout_of()
    layers = (
        LayerRope(RopePairing.NEOX, frequencies(32)),
        LayerRope(RopePairing.NEOX, frequencies(32, 1e6)),
        LayerRope(RopePairing.NORM, frequencies(32)),
    )
    rope = RopeSpec(layers)
    rows = random_rows(layout, 20, rng)
    turned = rotated(rows, rope, 123)
    for layer in range(3):
        assert_within_one_ulp(turned.k(layer), k_by_hand(rows, rope, 123, layer))


def test_distance_zero_gives_the_very_same_rows(rng: np.random.Generator) -> None:
    layout = layout_of()
    rows = random_rows(layout, 5, rng)
    assert rotated(rows, rope_of(layout), 0) is rows


@given(there=st.integers(-5000, 5000), n=st.integers(1, 90))
@settings(max_examples=25, deadline=None)
def test_turning_there_and_back_returns_to_the_same_values(there: int, n: int) -> None:
    layout = layout_of(layers=(LayerShape(1, 64, 64),))
    rope = rope_of(layout)
    rows = random_rows(layout, n, np.random.default_rng(n))
    back = rotated(rotated(rows, rope, there), rope, -there)
    values, again = (r.k(0).view(np.float16).astype(np.float32) for r in (rows, back))
    assert np.abs(values - again).max() <= 4e-3 * np.abs(values).max()


class CountingCaster(NumpyRowCaster):
    """An injected caster: what an engine offers."""

    def __init__(self) -> None:
        self.num_calls = 0

    def to_f32(self, kv_type: KVType, source: U8Array, out: F32Array) -> None:
        self.num_calls += 1
        super().to_f32(kv_type, source, out)


def lay(rotator: Rotator, parts: list[tuple[KVRows, int]]) -> tuple[list[U8Array], list[U8Array]]:
    """Lay `parts` into views of one blob with odd gaps between, as a state blob has."""
    layout, num_tokens = rotator.layout, sum(rows.num_tokens for rows, _ in parts)
    blob = np.zeros(num_tokens * layout.token_bytes + 13 * 2 * layout.num_layers, np.uint8)
    views: list[U8Array] = []
    at = 0
    sizes = [layout.k_row_bytes(i) for i in range(layout.num_layers)]
    for row_bytes in sizes + [layout.v_row_bytes(i) for i in range(layout.num_layers)]:
        at += 13
        views.append(blob[at : at + num_tokens * row_bytes].reshape(num_tokens, row_bytes))
        at += num_tokens * row_bytes
    rotator.lay(parts, views[: layout.num_layers], views[layout.num_layers :])
    return views[: layout.num_layers], views[layout.num_layers :]


@pytest.mark.parametrize("num_threads", [1, 3])
def test_parts_are_laid_behind_each_other_each_turned_to_its_place(num_threads: int, rng: np.random.Generator) -> None:
    layout = layout_of(layers=(LayerShape(2, 64, 64),) * 12)
    rope = rope_of(layout)
    caster = CountingCaster()
    rotator = Rotator(layout, rope, caster, num_threads)
    parts = [(random_rows(layout, n, rng, first_position=1), at) for n, at in ((300, 1), (500, 301), (7, 2000))]
    k, v = lay(rotator, parts)
    rotator.close()
    start = 0
    for rows, position in parts:
        stop = start + rows.num_tokens
        wanted = rotated(rows, rope, position - rows.first_position)
        for layer in range(layout.num_layers):
            assert np.array_equal(k[layer][start:stop], wanted.k(layer))
            assert np.array_equal(v[layer][start:stop], wanted.v(layer))
        start = stop
    assert caster.num_calls > 0


def test_a_failing_caster_is_reported_and_leaves_the_rotator_usable(rng: np.random.Generator) -> None:
    class Failing(NumpyRowCaster):
        is_broken = True

        def to_f32(self, kv_type: KVType, source: U8Array, out: F32Array) -> None:
            if self.is_broken:
                raise RuntimeError("no such type")
            super().to_f32(kv_type, source, out)

    layout = layout_of(layers=(LayerShape(2, 64, 64),) * 8)
    caster = Failing()
    rotator = Rotator(layout, rope_of(layout), caster, 2)
    rows = random_rows(layout, 600, rng)
    with pytest.raises(RuntimeError, match="no such type"):
        rotator.rotated(rows, 3)
    caster.is_broken = False
    assert np.array_equal(rotator.rotated(rows, 3).data, rotated(rows, rotator.rope, 3).data)
    rotator.close()


def test_targets_of_a_wrong_shape_are_refused(rng: np.random.Generator) -> None:
    layout = layout_of()
    rotator = Rotator(layout, rope_of(layout))
    rows = random_rows(layout, 4, rng)
    moved = rotated(rows, rotator.rope, 1)
    k, v = [moved.k(i) for i in range(3)], [moved.v(i) for i in range(3)]
    with pytest.raises(ValueError, match="4, 256"):
        rotator.lay([(rows, 9)], [k[0][:3], *k[1:]], v)
    with pytest.raises(ValueError, match="2 V targets for 3 layers"):
        rotator.lay([(rows, 9)], k, v[:2])


def test_a_rope_that_does_not_fit_the_layout_is_refused() -> None:
    layout = layout_of()
    with pytest.raises(ValueError, match="2 layers"):
        Rotator(layout, RopeSpec((None, None)))
    with pytest.raises(ValueError, match="64 values"):
        Rotator(layout, RopeSpec((LayerRope(RopePairing.NEOX, frequencies(33)), None, None)))
    other = KVLayout((LayerShape(1, 64, 64),) * 3, KVType.F16, KVType.F16)
    rows = random_rows(other, 2, np.random.default_rng(1))
    rotator = Rotator(layout, rope_of(layout))
    with pytest.raises(ValueError, match="another layout"):
        rotator.rotated(rows, 4)

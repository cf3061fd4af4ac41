"""Stored rows come back: to the bit, or within a known error where a lossy codec was asked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvloom.kv.codec import Codec, EncodedRows, PayloadError, RowsShape, decode, encode
from kvloom.kv.rotate import rotated
from kvloom.types import KVLayout, KVRows, KVType, LayerRope, LayerShape, RopePairing, RopeSpec
from tests.unit.kv.rows import CASTER, frequencies, layout_of, random_rows, rope_of

LOSSY = [Codec.Q8_0, Codec.LOW4]
MAX_ERROR = {Codec.Q8_0: 0.008, Codec.LOW4: 0.065}
"""Relative error of normally distributed values: of steps, their root mean square over the square root of 12."""
SIZE = {Codec.Q8_0: 0.54, Codec.LOW4: 0.315}
"""K and V of so few layers share a block of zstd, which codes both alike; of a real model it is 0.28 to 0.30."""


def shape_of(rows: KVRows) -> RowsShape:
    return RowsShape(rows.layout, rows.num_tokens, rows.first_position)


def relative_error(got: KVRows, wanted: KVRows) -> float:
    """Over what is left of K and V when the mean of every channel at position 0 is taken away: the hard measure."""
    a, b = (r.data.view(np.float16).astype(np.float64) for r in (got, wanted))
    return float(np.sqrt(((a - b) ** 2).sum() / b.size))  # the rows have unit variance around their means


@pytest.mark.parametrize("codec", [Codec.OFF, Codec.LOSSLESS])
@pytest.mark.parametrize("k_type", list(KVType))
@pytest.mark.parametrize("v_type", list(KVType))
@given(num_tokens=st.integers(0, 70), seed=st.integers(0, 1000))
@settings(max_examples=8, deadline=None)
def test_lossless_codecs_give_every_byte_back(
    codec: Codec, k_type: KVType, v_type: KVType, num_tokens: int, seed: int
) -> None:
    layout = layout_of(k_type, v_type, layers=(LayerShape(2, 64, 64), LayerShape(1, 128, 64)))
    rows = random_rows(layout, num_tokens, np.random.default_rng(seed))
    encoded = encode(rows, codec)
    assert encoded.codec in {codec, Codec.OFF}
    again = decode(encoded, shape_of(rows))
    assert again == rows
    assert np.array_equal(again.data, rows.data)


def k_like_rows(layout: KVLayout, rope: RopeSpec, num_tokens: int, rng: np.random.Generator) -> KVRows:
    """Rows as a model makes them: a steady mean in some channels, then RoPE at each token's own position."""
    at_zero = random_rows(layout, num_tokens, rng, first_position=0)
    moved = [rotated(at_zero.slice(i, i + 1), rope, 5 + i) for i in range(num_tokens)]
    layers = range(layout.num_layers)
    parts = [np.concatenate([one.k(i) for one in moved]).reshape(-1) for i in layers]
    parts += [np.concatenate([one.v(i) for one in moved]).reshape(-1) for i in layers]
    return KVRows(layout, num_tokens, 5, np.concatenate(parts))


ROPES = {
    "neox": (64, LayerRope(RopePairing.NEOX, frequencies(32))),
    "norm": (64, LayerRope(RopePairing.NORM, frequencies(32))),
    "partial": (80, LayerRope(RopePairing.NEOX, frequencies(16))),
    "offset": (96, LayerRope(RopePairing.NORM, frequencies(16), offset=64)),
}


@pytest.mark.parametrize("codec", LOSSY)
@pytest.mark.parametrize("name", list(ROPES))
def test_lossy_codecs_stay_within_their_error_and_size(codec: Codec, name: str, rng: np.random.Generator) -> None:
    head_dim, layer_rope = ROPES[name]
    layout = layout_of(layers=(LayerShape(2, head_dim, 64),) * 3)
    rope = RopeSpec((layer_rope, layer_rope, None))
    rows = k_like_rows(layout, rope, 200, rng)
    encoded = encode(rows, codec, rope)
    assert encoded.codec is codec
    assert encoded.payload.size <= SIZE[codec] * rows.nbytes
    again = decode(encoded, shape_of(rows), rope)
    assert again == rows
    error = relative_error(again, rows)
    assert 0 < error <= MAX_ERROR[codec]


def test_rows_far_larger_than_the_others_cost_only_their_own_precision(rng: np.random.Generator) -> None:
    """As the first token's rows are in many models."""
    layout = layout_of()
    rope = rope_of(layout)
    rows = k_like_rows(layout, rope, 200, rng)
    values = rows.data.view(np.float16).reshape(-1, 128)
    values[:: rows.num_tokens] *= np.float16(100)  # the first token's rows, K and V, of every layer
    again = decode(encode(rows, Codec.LOW4, rope), shape_of(rows), rope)
    error = np.abs(again.data.view(np.float16).astype(np.float64).reshape(-1, 128) - values)
    is_large = np.arange(len(values)) % rows.num_tokens == 0
    assert np.sqrt((error[is_large] ** 2).mean()) <= 3
    assert np.sqrt((error[~is_large] ** 2).mean()) <= 0.13  # the arithmetic mean of the rows' sizes would give 0.18


def test_a_head_far_smaller_than_the_others_keeps_what_it_says(rng: np.random.Generator) -> None:
    layout = layout_of(layers=(LayerShape(4, 64, 64),) * 2)
    rope = rope_of(layout)
    rows = random_rows(layout, 150, rng)
    values = rows.data.view(np.float16).reshape(-1, 4, 64)
    values[:, 2] *= np.float16(0.01)
    again = decode(encode(rows, Codec.LOW4, rope), shape_of(rows), rope)
    error = np.abs(again.data.view(np.float16).astype(np.float64).reshape(-1, 4, 64) - values)
    assert np.sqrt((error[:, 2] ** 2).mean()) <= 0.01 * 2 * MAX_ERROR[Codec.LOW4]


@pytest.mark.parametrize("codec", LOSSY)
def test_the_largest_values_come_back_finite(codec: Codec, rng: np.random.Generator) -> None:
    layout = layout_of()
    rows = random_rows(layout, 20, rng)
    rows.data.view(np.float16)[[3, -5]] = 65504, -65504
    again = decode(encode(rows, codec, rope_of(layout)), shape_of(rows), rope_of(layout))
    assert np.isfinite(again.data.view(np.float16)).all()


@pytest.mark.parametrize("codec", LOSSY)
def test_rows_of_zeros_come_back_as_zeros(codec: Codec) -> None:
    layout = layout_of()
    rows = KVRows(layout, 5, 0, np.zeros(layout.token_bytes * 5, np.uint8))
    encoded = encode(rows, codec, rope_of(layout))
    assert encoded.codec is codec
    assert not decode(encoded, shape_of(rows), rope_of(layout)).data.view(np.float16).any()


def test_whitening_beats_plain_q4_on_rows_with_large_means_by_far(rng: np.random.Generator) -> None:
    layout = layout_of()
    rope = rope_of(layout)
    rows = k_like_rows(layout, rope, 200, rng)
    ours = relative_error(decode(encode(rows, Codec.LOW4, rope), shape_of(rows), rope), rows)
    values = rows.data.view(np.float16).astype(np.float32)
    plain_bytes = np.empty(KVType.Q4_0.row_bytes(values.size), np.uint8)
    CASTER.from_f32(KVType.Q4_0, values, plain_bytes)
    plain = np.empty_like(values)
    CASTER.to_f32(KVType.Q4_0, plain_bytes, plain)
    assert ours < 0.4 * float(np.sqrt(((plain - values) ** 2).mean()))


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("codec", LOSSY)
@pytest.mark.parametrize("pairing", list(RopePairing))
@pytest.mark.parametrize("first_position", [0, 1])
def test_rows_that_are_not_finite_are_stored_to_the_bit(
    codec: Codec, value: float, pairing: RopePairing, first_position: int, rng: np.random.Generator
) -> None:
    layout = layout_of()
    rows = random_rows(layout, 20, rng, first_position)
    for places in ([3, 2], [0, 32], [-5, -6]):  # in K, both of a pair in K, in V
        data = rows.data.copy()
        data.view(np.float16)[places] = value, -value
        broken = KVRows(layout, 20, rows.first_position, data)
        encoded = encode(broken, codec, rope_of(layout, pairing))
        assert not encoded.codec.is_lossy
        assert np.array_equal(decode(encoded, shape_of(broken)).data, data)


@pytest.mark.parametrize("codec", LOSSY)
def test_a_lossy_codec_that_cannot_be_used_becomes_lossless(codec: Codec, rng: np.random.Generator) -> None:
    quantized = random_rows(layout_of(KVType.Q8_0, KVType.Q8_0), 50, rng)
    assert not encode(quantized, codec, rope_of(quantized.layout)).codec.is_lossy
    no_rope = random_rows(layout_of(), 50, rng)
    assert encode(no_rope, codec).codec is Codec.LOSSLESS
    odd_rows = random_rows(layout_of(layers=(LayerShape(1, 40, 40),)), 50, rng)
    assert encode(odd_rows, codec, RopeSpec((None,))).codec is Codec.LOSSLESS


def test_rows_that_zstd_cannot_shrink_are_stored_as_they_are(rng: np.random.Generator) -> None:
    layout = layout_of(KVType.Q8_0, KVType.Q8_0)
    noise = KVRows(layout, 30, 0, rng.integers(0, 256, layout.token_bytes * 30, dtype=np.uint8))
    encoded = encode(noise, Codec.LOSSLESS)
    assert encoded.codec is Codec.OFF
    assert encoded.payload is noise.data


@pytest.mark.parametrize("codec", list(Codec))
def test_a_payload_that_is_cut_or_too_long_is_refused(codec: Codec, rng: np.random.Generator) -> None:
    layout = layout_of()
    rope = rope_of(layout)
    rows = random_rows(layout, 40, rng)
    payload = encode(rows, codec, rope).payload
    longer = np.concatenate([payload, np.zeros(3, np.uint8)])
    for broken in (payload[:0], payload[:7], payload[: payload.size // 2], payload[:-1], longer):
        with pytest.raises(PayloadError):
            decode(EncodedRows(codec, broken), shape_of(rows), rope)
    with pytest.raises(PayloadError):
        decode(EncodedRows(codec, payload), RowsShape(layout, 39, 0), rope)


@given(data=st.binary(max_size=300), codec=st.sampled_from(list(Codec)))
@settings(max_examples=150, deadline=None)
def test_random_bytes_are_never_taken_for_rows(data: bytes, codec: Codec) -> None:
    layout = layout_of()
    with pytest.raises(PayloadError):
        decode(EncodedRows(codec, np.frombuffer(data, np.uint8)), RowsShape(layout, 4, 0), rope_of(layout))


def test_a_lossy_payload_without_its_rope_is_refused(rng: np.random.Generator) -> None:
    layout = layout_of()
    rows = random_rows(layout, 40, rng)
    encoded = encode(rows, Codec.LOW4, rope_of(layout))
    with pytest.raises(PayloadError, match="without their RoPE"):
        decode(encoded, shape_of(rows))

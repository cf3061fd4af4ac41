from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.errors import UsageError
from kvloom.model.footprint import CacheSpec, footprint_of_shape, kv_bytes
from kvloom.model.shape import KVLayer, ModelShape, WeightBytes
from kvloom.model.split import layer_devices, split_footprint

GIB = 1024**3


def shape(num_layers: int = 32, num_kv_layers: int | None = None) -> ModelShape:
    return ModelShape(
        architecture="llama",
        num_layers=num_layers,
        embedding_size=4096,
        feed_forward_size=14336,
        num_heads=32,
        vocab_size=128256,
        context_length=131072,
        layers=(KVLayer(8, 128, 128),) * (num_layers if num_kv_layers is None else num_kv_layers),
    )


WEIGHTS = WeightBytes(input_bytes=1000, layers=tuple(range(100, 132)), output_bytes=500, tied_bytes=0)


def test_layers_go_to_the_devices_in_order_and_in_proportion() -> None:
    # 33 places with the output: il/33 < 1/2 for il ≤ 16, as llama.cpp's upper_bound puts it.
    assert Counter(layer_devices(32, [1, 1])) == {0: 17, 1: 16}
    assert Counter(layer_devices(32, [8 * GIB, 24 * GIB])) == {0: 9, 1: 24}
    assert Counter(layer_devices(3, [1, 1, 1, 1])) == {0: 1, 1: 1, 2: 1, 3: 1}
    assert set(layer_devices(5, [0, 1])) == {1}
    assert layer_devices(2, [1]) == (0, 0, 0)


@given(
    num_layers=st.integers(1, 200),
    shares=st.lists(st.floats(0, 1e12), min_size=1, max_size=8).filter(lambda shares: sum(shares) > 1),
)
def test_every_layer_has_one_device_and_the_order_is_kept(num_layers: int, shares: list[float]) -> None:
    where = layer_devices(num_layers, shares)
    assert len(where) == num_layers + 1
    assert list(where) == sorted(where)
    assert 0 <= where[0] <= where[-1] < len(shares)


@pytest.mark.parametrize("shares", [[], [0], [0, 0], [1, -1], [-1]])
def test_shares_that_split_nothing_are_refused(shares: list[float]) -> None:
    with pytest.raises(UsageError, match="shares"):
        layer_devices(4, shares)


@given(shares=st.lists(st.integers(1, 100), min_size=1, max_size=5), kv_layers=st.integers(0, 32))
def test_nothing_is_lost_and_nothing_counted_twice(shares: list[int], kv_layers: int) -> None:
    model, spec = shape(num_kv_layers=kv_layers), CacheSpec(num_cells=4096)
    split = split_footprint(model, WEIGHTS, spec, shares)
    assert sum(part.num_layers for part in split.devices) == 32
    assert sum(part.weights_bytes for part in split.devices) + split.host.weights_bytes == WEIGHTS.total_bytes
    assert sum(part.kv_bytes for part in split.devices) == kv_bytes(model, spec)
    assert split.host.kv_bytes == 0


def test_one_device_takes_what_the_whole_model_takes_but_what_stays_with_the_host() -> None:
    spec = CacheSpec(num_cells=4096)
    whole, split = footprint_of_shape(shape(), WEIGHTS.total_bytes, spec), split_footprint(shape(), WEIGHTS, spec, [1])
    [device] = split.devices
    assert device.kv_bytes == whole.kv_bytes
    assert device.buffer_bytes == whole.compute_bytes
    assert device.weights_bytes == whole.weights_bytes - WEIGHTS.input_bytes


def test_the_output_brings_a_copy_of_a_shared_token_table() -> None:
    tied = WeightBytes(input_bytes=1000, layers=(10,) * 32, output_bytes=5, tied_bytes=1000)
    split = split_footprint(shape(), tied, CacheSpec(), [1, 1])
    assert [part.weights_bytes for part in split.devices] == [170, 150 + 5 + 1000]
    assert split.host.weights_bytes == 1000


def test_several_devices_keep_copies_of_their_inputs() -> None:
    alone, both = (split_footprint(shape(), WEIGHTS, CacheSpec(), [1] * count).devices for count in (1, 2))
    assert both[0].buffer_bytes > alone[0].buffer_bytes

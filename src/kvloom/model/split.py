"""How a model's memory spreads over several GPUs, layer by layer as llama.cpp does it. Asks no device.

Whole layers, their KV with them, go to the devices in order, in proportion to given shares; the output counts as one
layer more; token table and logits stay with the host. Weights and KV are exact, the buffers an estimate: every device
computes a block of its own, and with several devices llama.cpp keeps copies of each one's inputs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvloom.errors import UsageError
from kvloom.model.footprint import CacheSpec, block_bytes, head_bytes, input_bytes, kv_layer_bytes, output_bytes
from kvloom.model.shape import ModelShape, WeightBytes

__all__ = ["DevicePart", "SplitFootprint", "layer_devices", "split_footprint"]

PIPELINE_COPIES = 4
"""llama.cpp's GGML_SCHED_MAX_COPIES: inputs of batches on their way, where several GPUs work at once."""


@dataclass(frozen=True)
class DevicePart:
    """What one memory holds. `num_layers` counts the model's blocks, not the output."""

    num_layers: int
    weights_bytes: int
    kv_bytes: int
    buffer_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.buffer_bytes


@dataclass(frozen=True)
class SplitFootprint:
    """`devices` in the order of the shares; `host` is the processor's memory."""

    host: DevicePart
    devices: tuple[DevicePart, ...]


def layer_devices(num_layers: int, shares: Sequence[float]) -> tuple[int, ...]:
    """The device of each of `num_layers` layers, and last that of the output. Raises UsageError.

    In llama.cpp's own single precision: a layer at the border goes where it sends it.
    """
    if not shares or min(shares) < 0 or sum(shares) <= 0:
        raise UsageError(
            f"layers cannot be split by the shares {list(shares)}: one at least must be above 0, none below"
        )
    ends = np.cumsum(np.asarray(shares, np.float32), dtype=np.float32)
    ends = ends / ends[-1]
    places = np.arange(num_layers + 1, dtype=np.float32) / np.float32(num_layers + 1)
    return tuple(bisect_right(ends.tolist(), place) for place in places.tolist())


def split_footprint(
    shape: ModelShape, weights: WeightBytes, spec: CacheSpec, shares: Sequence[float]
) -> SplitFootprint:
    """The forecast by memory, all layers on GPUs."""
    where = layer_devices(shape.num_layers, shares)
    kv = kv_layer_bytes(shape, spec)
    copies = PIPELINE_COPIES if len(shares) > 1 else 1
    devices: list[DevicePart] = []
    for device in range(len(shares)):
        own = [layer for layer in range(shape.num_layers) if where[layer] == device]
        has_output = where[-1] == device
        held = sum(weights.layers[layer] for layer in own if layer < len(weights.layers))
        # Where some layers keep no KV, those that do are taken to lie evenly among them.
        cells = sum(size for place, size in enumerate(kv) if where[place * shape.num_layers // len(kv)] == device)
        buffers = block_bytes(shape, spec) + (copies - 1) * input_bytes(shape, spec) if own else 0
        if has_output:
            held += weights.output_bytes + weights.tied_bytes
            buffers = max(buffers, head_bytes(shape, spec))
        devices.append(DevicePart(len(own), held, cells, buffers))
    host = DevicePart(0, weights.input_bytes, 0, input_bytes(shape, spec) + output_bytes(shape, spec))
    return SplitFootprint(host, tuple(devices))

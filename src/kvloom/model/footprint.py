"""How much memory a model will take, before it is loaded: weights, KV, compute and output buffers. Allocates nothing.

KV is exact: 2 · layers · KV heads · head size · cells · bytes per value. The buffers follow llama.cpp's graph for the
usual decoder (measured against its own figures); with experts or an unusual block they are an estimate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvloom.model.header import ModelHeader
from kvloom.model.shape import ModelShape
from kvloom.types import KVType

__all__ = [
    "UNKNOWN_LENGTH",
    "CacheSpec",
    "Footprint",
    "block_bytes",
    "footprint",
    "footprint_of_shape",
    "head_bytes",
    "input_bytes",
    "kv_bytes",
    "kv_layer_bytes",
    "largest_fitting",
    "output_bytes",
]

CELL_QUANTUM = 256
"""llama.cpp rounds the number of cells up to this."""
WINDOW_QUANTUM = 256
"""… and pads the cells of windowed layers to this."""
UNKNOWN_LENGTH = 1 << 17
"""Tokens that a model is taken to be trained for where its file does not tell."""


@dataclass(frozen=True)
class CacheSpec:
    """What the engine will be asked for. The defaults are those of our own driver.

    `num_output_rows`: rows of one native batch that may give logits. `full_window`: windowed layers keep all cells, so
    that their entries can be cut and shared.
    """

    num_cells: int = 8192
    k_type: KVType = KVType.F16
    v_type: KVType = KVType.F16
    num_sequences: int = 33
    num_batch_rows: int = 512
    num_output_rows: int = 64
    full_window: bool = True


@dataclass(frozen=True)
class Footprint:
    """All in bytes. `is_complete` is False where the model has a recurrent state, which is not in it."""

    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    output_bytes: int
    num_cells: int
    kv_token_bytes: int
    is_complete: bool
    beside_bytes: int = 0
    """Other contexts over the same weights."""

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.context_bytes + self.beside_bytes

    @property
    def context_bytes(self) -> int:
        """All but the weights."""
        return self.kv_bytes + self.compute_bytes + self.output_bytes


def footprint(header: ModelHeader, spec: CacheSpec) -> Footprint:
    """The forecast for a GGUF file."""
    return footprint_of_shape(header.shape, header.tensor_bytes, spec)


def footprint_of_shape(shape: ModelShape, weights_bytes: int, spec: CacheSpec) -> Footprint:
    """The forecast for a shape whose weights take `weights_bytes`."""
    return Footprint(
        weights_bytes=weights_bytes,
        kv_bytes=kv_bytes(shape, spec),
        compute_bytes=_compute_bytes(shape, spec),
        output_bytes=output_bytes(shape, spec),
        num_cells=_padded(spec.num_cells),
        kv_token_bytes=shape.kv_token_bytes(spec.k_type, spec.v_type),
        is_complete=not shape.has_state,
    )


def kv_bytes(shape: ModelShape, spec: CacheSpec) -> int:
    """Bytes of the cells of all layers."""
    return sum(kv_layer_bytes(shape, spec))


def kv_layer_bytes(shape: ModelShape, spec: CacheSpec) -> tuple[int, ...]:
    """Bytes of the cells of each layer that keeps KV."""
    cells, window_cells = _padded(spec.num_cells), _window_cells(shape, spec)
    return tuple(
        layer.token_bytes(spec.k_type, spec.v_type) * (window_cells if layer.is_windowed else cells)
        for layer in shape.layers
    )


def _window_cells(shape: ModelShape, spec: CacheSpec) -> int:
    """Cells of a windowed layer; 0 where the model has none."""
    if shape.sliding_window is None:
        return 0
    cells = _padded(spec.num_cells)
    if spec.full_window:
        return cells
    # One unified cache: room for the window of every sequence and for the batch on its way.
    wanted = shape.sliding_window * spec.num_sequences + spec.num_batch_rows
    return -(-min(cells, wanted) // WINDOW_QUANTUM) * WINDOW_QUANTUM


def _padded(num_cells: int) -> int:
    return -(-num_cells // CELL_QUANTUM) * CELL_QUANTUM


def _compute_bytes(shape: ModelShape, spec: CacheSpec) -> int:
    """The larger of the graph's two peaks."""
    return max(block_bytes(shape, spec), head_bytes(shape, spec))


def block_bytes(shape: ModelShape, spec: CacheSpec) -> int:
    """A block's peak, in float32, is in its feed-forward: four rows of the embedding and three of the hidden layer
    are alive, and the mask. Of experts with narrow hidden layers it is where their outputs are weighed: two rows of
    the embedding for each, and two of the hidden layer (how these are packed varies: within some 16 MiB above).
    """
    embedding, hidden = shape.embedding_size, shape.feed_forward_size
    row = max(4 * embedding + 3 * hidden, 2 * shape.num_experts_used * embedding + 2 * hidden)
    return _graph_rows(spec) * 4 * row + _mask_bytes(shape, spec)


def head_bytes(shape: ModelShape, spec: CacheSpec) -> int:
    """The output's peak: the logits of the rows that may give some, behind two rows of the embedding for all."""
    outputs = min(spec.num_batch_rows, max(spec.num_output_rows, spec.num_sequences))
    return 4 * (outputs * (shape.vocab_size + 2 * shape.embedding_size) + 2 * _graph_rows(spec) * shape.embedding_size)


def input_bytes(shape: ModelShape, spec: CacheSpec) -> int:
    """What a device is given for a batch: one row of the embedding each, and the mask."""
    return _graph_rows(spec) * 4 * shape.embedding_size + _mask_bytes(shape, spec)


def _mask_bytes(shape: ModelShape, spec: CacheSpec) -> int:
    """Who attends to whom, f16: rows × cells, and rows × cells of windowed layers where there are some."""
    return 2 * _graph_rows(spec) * (_padded(spec.num_cells) + _window_cells(shape, spec))


def _graph_rows(spec: CacheSpec) -> int:
    """Rows of the graph that llama.cpp reserves buffers for: as many for each sequence."""
    rows = min(spec.num_batch_rows, _padded(spec.num_cells))
    return -(-rows // spec.num_sequences) * spec.num_sequences


def output_bytes(shape: ModelShape, spec: CacheSpec) -> int:
    """The logits of one row of every sequence, in float32."""
    return spec.num_sequences * shape.vocab_size * 4


def largest_fitting(fits: Callable[[int], bool], most: int, step: int) -> int:
    """`most` where it fits, else the largest multiple of `step` below it that does, else 0.

    What does not fit must not fit in any larger number either.
    """
    if most > 0 and fits(most):
        return most
    low, high = 0, (most - 1) // step
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle * step) else (low, middle - 1)
    return low * step

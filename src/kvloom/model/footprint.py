"""How much memory a model will take, before it is loaded: weights, KV, compute and output buffers. Allocates nothing.

KV is exact: 2 · layers · KV heads · head size · cells · bytes per value. The buffers follow llama.cpp's graph for the
usual decoder (measured against its own figures); with experts or an unusual block they are an estimate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvloom.errors import UsageError
from kvloom.model.header import ModelHeader
from kvloom.model.shape import ModelShape
from kvloom.types import KVType

__all__ = ["CacheSpec", "Footprint", "footprint", "footprint_of_shape", "kv_bytes", "largest_context"]

CELL_QUANTUM = 256
"""llama.cpp rounds the number of cells up to this."""
WINDOW_QUANTUM = 256
"""… and pads the cells of windowed layers to this."""


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

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.compute_bytes + self.output_bytes


def footprint(header: ModelHeader, spec: CacheSpec) -> Footprint:
    """The forecast for a GGUF file."""
    return footprint_of_shape(header.shape, header.tensor_bytes, spec)


def footprint_of_shape(shape: ModelShape, weights_bytes: int, spec: CacheSpec) -> Footprint:
    """The forecast for a shape whose weights take `weights_bytes`."""
    return Footprint(
        weights_bytes=weights_bytes,
        kv_bytes=kv_bytes(shape, spec),
        compute_bytes=_compute_bytes(shape, spec),
        # The logits of one row of every sequence, in float32.
        output_bytes=spec.num_sequences * shape.vocab_size * 4,
        num_cells=_padded(spec.num_cells),
        kv_token_bytes=shape.kv_token_bytes(spec.k_type, spec.v_type),
        is_complete=not shape.has_state,
    )


def kv_bytes(shape: ModelShape, spec: CacheSpec) -> int:
    """Bytes of the cells of all layers."""
    cells = _padded(spec.num_cells)
    window_cells = cells
    if shape.sliding_window is not None and not spec.full_window:
        # One unified cache: room for the window of every sequence and for the batch on its way.
        wanted = shape.sliding_window * spec.num_sequences + spec.num_batch_rows
        window_cells = -(-min(cells, wanted) // WINDOW_QUANTUM) * WINDOW_QUANTUM
    return sum(
        layer.token_bytes(spec.k_type, spec.v_type) * (window_cells if layer.is_windowed else cells)
        for layer in shape.layers
    )


def _padded(num_cells: int) -> int:
    return -(-num_cells // CELL_QUANTUM) * CELL_QUANTUM


def _compute_bytes(shape: ModelShape, spec: CacheSpec) -> int:
    """The larger of the graph's two peaks, for `num_batch_rows` rows; all values are float32, the mask is f16."""
    rows = spec.num_batch_rows
    outputs = min(rows, max(spec.num_output_rows, spec.num_sequences))
    masks = 2 if shape.sliding_window is not None else 1
    # A block's peak is in its feed-forward: four rows of the embedding and three of the hidden layer are alive.
    block = (
        rows * 4 * (4 * shape.embedding_size + 3 * shape.feed_forward_size) + masks * rows * _padded(spec.num_cells) * 2
    )
    head = outputs * 4 * (shape.vocab_size + 2 * shape.embedding_size)
    return max(block, head)


def largest_context(shape: ModelShape, weights_bytes: int, budget_bytes: int, spec: CacheSpec) -> int:
    """The most cells (a multiple of 256, at most the trained length) whose forecast stays within `budget_bytes`.

    Raises UsageError where not even the smallest fits, with the numbers.
    """

    def total(cells: int) -> int:
        return footprint_of_shape(shape, weights_bytes, replace(spec, num_cells=cells)).total_bytes

    low, high = 1, max(1, (shape.context_length or 1 << 17) // CELL_QUANTUM)
    if total(CELL_QUANTUM) > budget_bytes:
        raise UsageError(
            f"{shape.architecture} needs {total(CELL_QUANTUM):,} bytes for a window of {CELL_QUANTUM} tokens, "
            f"{budget_bytes:,} are there"
        )
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if total(middle * CELL_QUANTUM) <= budget_bytes else (low, middle - 1)
    return low * CELL_QUANTUM

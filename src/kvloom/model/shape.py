"""The shape of a model: what decides the size of its KV cache and buffers. Knows no file format."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvloom.types import KVType

__all__ = ["KVLayer", "ModelShape", "RopeFields", "WeightBytes", "expand_pattern"]


@dataclass(frozen=True)
class KVLayer:
    """A layer that keeps KV: heads and the dimensions of one head's K and V. `v_head_dim` 0: V is a view of K (MLA)."""

    num_kv_heads: int
    k_head_dim: int
    v_head_dim: int
    is_windowed: bool = False

    def token_bytes(self, k_type: KVType, v_type: KVType) -> int:
        """Bytes that one token's K and V take in this layer."""
        k_bytes = k_type.row_bytes(self.num_kv_heads * self.k_head_dim)
        return k_bytes + v_type.row_bytes(self.num_kv_heads * self.v_head_dim)


@dataclass(frozen=True)
class WeightBytes:
    """A model's weights by where they are used: before the first layer, in each layer, behind the last.

    `tied_bytes`: the token table where it is the output's too. In one memory it is there once (and in `input_bytes`);
    where the output runs on another device than the input, that device gets a copy.
    """

    input_bytes: int
    layers: tuple[int, ...]
    output_bytes: int
    tied_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return self.input_bytes + sum(self.layers) + self.output_bytes


@dataclass(frozen=True)
class RopeFields:
    """RoPE as the file declares it; None where it says nothing."""

    freq_base: float | None = None
    num_dims: int | None = None
    scaling: str | None = None
    factor: float | None = None
    original_context: int | None = None


@dataclass(frozen=True)
class ModelShape:
    """`layers` are those with a KV cache, `num_layers` is all of them. Counts are values, not bytes.

    `has_state`: layers with a recurrent state stand beside attention (or replace it); such a model's context cannot be
    cut, and the state's bytes are in no forecast.
    """

    architecture: str
    num_layers: int
    embedding_size: int
    feed_forward_size: int
    num_heads: int
    vocab_size: int
    context_length: int
    layers: tuple[KVLayer, ...]
    sliding_window: int | None = None
    rope: RopeFields = RopeFields()
    has_state: bool = False
    num_experts_used: int = 0

    def kv_token_bytes(self, k_type: KVType = KVType.F16, v_type: KVType = KVType.F16) -> int:
        """Bytes of one token's KV over all layers, windowed ones included."""
        return sum(layer.token_bytes(k_type, v_type) for layer in self.layers)

    def with_window(self, pattern: tuple[bool, ...], window: int | None) -> ModelShape:
        """The same shape with `pattern` saying which layers attend to a window only (one flag per KV layer)."""
        if not window or not any(pattern):
            return replace(self, sliding_window=None)
        marked = tuple(replace(layer, is_windowed=flag) for layer, flag in zip(self.layers, pattern, strict=True))
        return replace(self, layers=marked, sliding_window=window)


def expand_pattern(period: int, num_layers: int, *, dense_first: bool = False) -> tuple[bool, ...]:
    """Which layers are windowed where every `period`-th is dense: the last of each period, or its first."""
    if period <= 0:
        return (True,) * num_layers
    if dense_first:
        return tuple(layer % period != 0 for layer in range(num_layers))
    return tuple(layer % period < period - 1 for layer in range(num_layers))

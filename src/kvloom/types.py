"""Ids and plain values that every room shares. Knows no disk, no model and no text.

Shapes are given as (rows, columns); sizes are bytes, positions and counts are tokens.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NewType

import numpy as np
import numpy.typing as npt

ChunkId = NewType("ChunkId", str)
"""SHA-256 of a chunk's exact bytes, 64 lower-case hex digits."""
EntryId = NewType("EntryId", str)
"""SHA-256 of an entry's whole key, 64 lower-case hex digits (see `EntryKey`)."""
SessionId = NewType("SessionId", str)
"""Random, 16 lower-case hex digits."""
ModelFingerprint = NewType("ModelFingerprint", str)
"""SHA-256 over the weights' SHA-256 and everything else that changes what is computed, 64 hex digits."""
Lineage = NewType("Lineage", str)
"""What a piece attended to when its KV was computed: "alone", or a 64-hex Merkle hash (`merkle_lineage`)."""
SequenceId = NewType("SequenceId", int)
"""A native sequence of an engine, 0 ≤ id < `Capabilities.max_sequences`."""

ALONE = Lineage("alone")

U8Array = npt.NDArray[np.uint8]
F32Array = npt.NDArray[np.float32]
F64Array = npt.NDArray[np.float64]
I32Array = npt.NDArray[np.int32]


class Fidelity(Enum):
    """Which entries may be placed, from strict to loose."""

    EXACT = "exact"
    BLEND = "blend"
    SPLICE = "splice"


class TierName(Enum):
    """Where an entry's bytes live, from warm to cold. NONE: it would have to be computed.

    UNKNOWN: the model runs behind an endpoint, and what its server keeps of the KV it does not say.
    """

    DEVICE = "device"
    RAM = "ram"
    DISK = "disk"
    REMOTE = "remote"
    NONE = "none"
    UNKNOWN = "unknown"


class KVType(Enum):
    """How one K or V value is held on the device. Blocks of 32 values for the quantized ones."""

    F16 = "f16"
    Q8_0 = "q8_0"
    Q4_0 = "q4_0"

    def row_bytes(self, num_values: int) -> int:
        """Bytes of a row of `num_values` (a multiple of 32 for the quantized types)."""
        if self is KVType.F16:
            return num_values * 2
        return num_values // 32 * (34 if self is KVType.Q8_0 else 18)


@dataclass(frozen=True)
class LayerShape:
    """The K and V row of one layer that keeps a KV cache: `num_heads` KV heads, side by side in a row."""

    num_heads: int
    k_head_dim: int
    v_head_dim: int


@dataclass(frozen=True)
class KVLayout:
    """How the rows of one entry lie in memory: every layer's K rows (n, row), then every layer's V rows.

    `hadamard`: quantized rows are stored turned by a Walsh–Hadamard matrix (llama.cpp's `attn_rot_k/v`), per head.
    """

    layers: tuple[LayerShape, ...]
    k_type: KVType
    v_type: KVType
    hadamard_k: bool = False
    hadamard_v: bool = False

    def k_row_bytes(self, layer: int) -> int:
        shape = self.layers[layer]
        return self.k_type.row_bytes(shape.num_heads * shape.k_head_dim)

    def v_row_bytes(self, layer: int) -> int:
        shape = self.layers[layer]
        return self.v_type.row_bytes(shape.num_heads * shape.v_head_dim)

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def k_token_bytes(self) -> int:
        return sum(self.k_row_bytes(i) for i in range(self.num_layers))

    @property
    def v_token_bytes(self) -> int:
        return sum(self.v_row_bytes(i) for i in range(self.num_layers))

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's K and V over all layers."""
        return self.k_token_bytes + self.v_token_bytes

    def canonical(self) -> bytes:
        """Bytes that are equal exactly when two layouts are equal; part of every entry's key."""
        parts = [f"{s.num_heads}x{s.k_head_dim}x{s.v_head_dim}" for s in self.layers]
        text = f"{self.k_type.value}:{self.v_type.value}:{int(self.hadamard_k)}{int(self.hadamard_v)}:{','.join(parts)}"
        return text.encode()


@dataclass(frozen=True)
class KVRows:
    """The K and V rows of `num_tokens` consecutive tokens, in one buffer laid out as `KVLayout` says.

    `data` is (layout.token_bytes * num_tokens,) uint8 and is never written to: whoever holds it may share it.
    `first_position` is the RoPE position of row 0; row i was computed at `first_position + i`.
    """

    layout: KVLayout
    num_tokens: int
    first_position: int
    data: U8Array = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        expected = self.layout.token_bytes * self.num_tokens
        if self.data.dtype != np.uint8 or self.data.ndim != 1 or self.data.size != expected:
            raise ValueError(f"rows of {self.num_tokens} tokens take {expected} bytes, got {self.data.size}")

    @property
    def nbytes(self) -> int:
        return int(self.data.size)

    def k(self, layer: int) -> U8Array:
        """K rows of one layer, (num_tokens, k_row_bytes) view."""
        start = sum(self.layout.k_row_bytes(i) for i in range(layer)) * self.num_tokens
        return self._view(start, self.layout.k_row_bytes(layer))

    def v(self, layer: int) -> U8Array:
        """V rows of one layer, (num_tokens, v_row_bytes) view."""
        before = self.layout.k_token_bytes + sum(self.layout.v_row_bytes(i) for i in range(layer))
        return self._view(before * self.num_tokens, self.layout.v_row_bytes(layer))

    def slice(self, start: int, stop: int) -> KVRows:
        """A copy of rows start … stop - 1."""
        layers = range(self.layout.num_layers)
        parts = [self.k(i)[start:stop].reshape(-1) for i in layers]
        parts += [self.v(i)[start:stop].reshape(-1) for i in layers]
        data = np.concatenate(parts) if parts else np.empty(0, np.uint8)
        return KVRows(self.layout, stop - start, self.first_position + start, data)

    def _view(self, start: int, row_bytes: int) -> U8Array:
        return self.data[start : start + self.num_tokens * row_bytes].reshape(self.num_tokens, row_bytes)


class RopePairing(Enum):
    """Which two values of a head turn together: NORM (2i, 2i+1), NEOX (i, i + n_rot/2)."""

    NORM = "norm"
    NEOX = "neox"


@dataclass(frozen=True)
class LayerRope:
    """RoPE of one layer's K: the values [offset, offset + 2·len(inv_freq)) of every head turn, the rest stay.

    `inv_freq` holds radians per position for each pair, scaling (YaRN, Llama-3, linear) already in it. Turning an
    existing row by a distance has unit magnitude whatever magnitude the model applied first.
    """

    pairing: RopePairing
    inv_freq: tuple[float, ...]
    offset: int = 0


@dataclass(frozen=True)
class RopeSpec:
    """RoPE of every KV layer; None where a layer has no RoPE (its K does not depend on the position)."""

    layers: tuple[LayerRope | None, ...]

    @property
    def is_uniform(self) -> bool:
        return len(set(self.layers)) == 1

    def canonical(self) -> bytes:
        digest = hashlib.sha256()
        for layer in self.layers:
            if layer is None:
                digest.update(b"none;")
                continue
            digest.update(f"{layer.pairing.value}:{layer.offset}:".encode())
            digest.update(struct.pack(f"<{len(layer.inv_freq)}d", *layer.inv_freq) + b";")
        return digest.digest()


ENTRY_KEY_VERSION = 2
"""Bump when what an entry's rows mean changes: old entries become misses."""


@dataclass(frozen=True)
class EntryKey:
    """Everything that decides an entry's rows. Two entries are interchangeable exactly when their keys are equal."""

    tokens: tuple[int, ...]
    model: ModelFingerprint
    layout: bytes
    rope: bytes
    lineage: Lineage

    @property
    def id(self) -> EntryId:
        digest = hashlib.sha256()
        head = (b"kvloom-entry", str(ENTRY_KEY_VERSION).encode(), self.model.encode(), self.layout, self.rope)
        for part in (*head, self.lineage.encode(), struct.pack(f"<{len(self.tokens)}i", *self.tokens)):
            digest.update(struct.pack("<Q", len(part)))
            digest.update(part)
        return EntryId(digest.hexdigest())


def merkle_lineage(preceding: Sequence[tuple[EntryId, int, Fidelity]]) -> Lineage:
    """Lineage of a piece behind `preceding` (entry, first position, fidelity), in the order of their positions.

    It hashes entries, not tokens: KV computed behind a spliced neighbour is not KV computed behind an exact one.
    """
    state = hashlib.sha256(b"kvloom-lineage").digest()
    for entry, position, fidelity in preceding:
        state = extend_lineage(state, entry, position, fidelity)
    return Lineage(state.hex())


def extend_lineage(state: bytes, entry: EntryId, position: int, fidelity: Fidelity) -> bytes:
    """One step of `merkle_lineage`: the 32-byte state after one more preceding entry."""
    step = state + bytes.fromhex(entry) + struct.pack("<q", position) + fidelity.value.encode()
    return hashlib.sha256(step).digest()


@dataclass(frozen=True)
class Entry:
    """The KV state of one piece: its key and its pristine rows, at the position where they were computed.

    `is_lossy`: the rows went through a lossy codec since they were computed. It is no part of the key.
    """

    key: EntryKey
    rows: KVRows
    is_lossy: bool = False

    @property
    def id(self) -> EntryId:
        return self.key.id


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen. `temperature` 0 is greedy. None takes the model's own default.

    `presence_penalty` and `frequency_penalty`: what is taken from the logit of a token that the reply holds already,
    once and for each time. `logit_bias`: (token, what is added to its logit). `grammar`: what the reply must be, as
    `kvloom.engine.grammar` reads it; "" leaves it free.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    grammar: str = ""


@dataclass(frozen=True)
class Usage:
    """What one reply cost. `prompt_tokens = reused_tokens + loaded_tokens + computed_tokens`.

    reused: already on the device; loaded: placed from RAM, disk or remote (`rotated_tokens` of them at another
    position than they were computed at); computed: prefilled for this reply. Beside these: `recomputed_tokens` were
    computed again in place (blend), `dropped_tokens` left the device, padding is counted nowhere. `is_estimate`: nobody
    has counted the tokens (an endpoint that does not say).
    """

    prompt_tokens: int
    reused_tokens: int
    loaded_tokens: int
    computed_tokens: int
    rotated_tokens: int
    recomputed_tokens: int
    dropped_tokens: int
    completion_tokens: int
    fidelity: Fidelity
    ttft_s: float
    weave_s: float = 0.0
    total_s: float = 0.0
    is_estimate: bool = False

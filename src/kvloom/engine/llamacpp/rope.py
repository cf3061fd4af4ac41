"""How a model turns its K rows with the position: derived from the file's metadata, then proved on the model itself.

It knows rows and numbers; `selftest` computes the rows. The formulas are ggml's (`ggml_rope_cache_init`, `rope_yarn`),
in double precision over its single precision step `theta_scale`, so that angles at large positions agree with it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kvloom.engine.llamacpp.load import Metadata, RopeOverrides, RopeScaling
from kvloom.engine.llamacpp.tensors import read_float_tensors
from kvloom.types import F32Array, LayerRope, LayerShape, RopePairing

__all__ = ["RopeParameters", "candidates", "rotation_error"]

ROPE_TYPES = {0: RopePairing.NORM, 2: RopePairing.NEOX}
"""llama.cpp's rope types that turn one number per token; the others (M-RoPE, vision) cannot be moved."""
SCATTER_WEIGHT = 0.4
"""Measured on real models over 8,000 to 32,000 positions: scatter up to 0.05, a wrong rotation 0.3 and more."""
_DEFAULT_BASE = 10000.0
_FACTORS = "rope_freqs.weight"
_FACTORS_LONG, _FACTORS_SHORT = "rope_factors_long.weight", "rope_factors_short.weight"


@dataclass(frozen=True)
class RopeParameters:
    """What ggml's RoPE is called with. `num_rotated` values of a head turn, the first at `offset`."""

    pairing: RopePairing
    num_rotated: int
    freq_base: float
    freq_scale: float
    original_context: int
    ext_factor: float = 0.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    offset: int = 0
    factors: tuple[float, ...] = ()

    @classmethod
    def of(
        cls, metadata: Metadata, overrides: RopeOverrides, pairing: RopePairing, head_dim: int, train_context: int
    ) -> RopeParameters:
        """As llama.cpp reads the file's metadata and lets the overrides win."""
        scaling = overrides.scaling or _scaling(metadata)
        factor = metadata.number(".rope.scaling.factor") or metadata.number(".rope.scale_linear") or 1.0
        scale = 1.0 if scaling is RopeScaling.NONE else _first(overrides.freq_scale, 1.0 / factor)
        extrapolates = metadata.number(".rope.scaling.yarn_ext_factor")
        ext_factor = _first(overrides.yarn_ext_factor, extrapolates, 1.0 if scaling is RopeScaling.YARN else 0.0)
        original = metadata.integer(".rope.scaling.original_context_length") or train_context
        return cls(
            pairing=pairing,
            num_rotated=metadata.integer(".rope.dimension_count") or head_dim,
            freq_base=_first(overrides.freq_base, metadata.number(".rope.freq_base"), _DEFAULT_BASE),
            freq_scale=scale,
            original_context=overrides.yarn_original_context or original,
            ext_factor=ext_factor,
            beta_fast=_first(overrides.yarn_beta_fast, metadata.number(".rope.scaling.yarn_beta_fast"), 32.0),
            beta_slow=_first(overrides.yarn_beta_slow, metadata.number(".rope.scaling.yarn_beta_slow"), 1.0),
        )

    def layer(self) -> LayerRope:
        return LayerRope(self.pairing, self.inv_freq(), self.offset)

    def inv_freq(self) -> tuple[float, ...]:
        """Radians per position of each pair, every scaling applied."""
        step = _single(math.pow(self.freq_base, -2.0 / self.num_rotated))
        scale = _single(self.freq_scale)
        low, high = self._ramp()
        values: list[float] = []
        theta = 1.0
        for pair in range(self.num_rotated // 2):
            plain = theta / self.factors[pair] if self.factors else theta
            mix = (1.0 - min(1.0, max(0.0, (pair - low) / max(0.001, high - low)))) * self.ext_factor
            values.append(plain * scale * (1.0 - mix) + plain * mix)
            theta *= step
        return tuple(values)

    def _ramp(self) -> tuple[float, float]:
        """Pairs below the first number keep their frequency, pairs above the second are interpolated (YaRN)."""
        if self.ext_factor == 0.0:
            return 0.0, 0.0

        def pair_of(num_turns: float) -> float:
            turns = self.original_context / (num_turns * 2.0 * math.pi)
            return self.num_rotated * math.log(turns) / (2.0 * math.log(self.freq_base))

        low = max(0.0, math.floor(pair_of(self.beta_fast)))
        return low, min(float(self.num_rotated - 1), math.ceil(pair_of(self.beta_slow)))


def candidates(
    base: RopeParameters, metadata: Metadata, path: Path, head_dim: int, num_cells: tuple[int, int]
) -> Iterator[tuple[LayerRope | None, LayerRope | None]]:
    """What a layer may do, the likeliest first, as (in the tested context, in the wanted one).

    The two differ for factors that depend on the context's length, of which `num_cells` gives both. Only later
    candidates read the model file's factor tensors.
    """

    def both(parameters: RopeParameters) -> tuple[LayerRope, LayerRope]:
        layer = parameters.layer()
        return layer, layer

    yield both(base)
    yield None, None
    factors = read_float_tensors(path, (_FACTORS, _FACTORS_LONG, _FACTORS_SHORT))
    enough = {name: values for name, values in factors.items() if len(values) >= base.num_rotated // 2}
    if _FACTORS in enough:
        yield both(replace(base, factors=enough[_FACTORS]))
    # llama.cpp takes the long factors when the context exceeds the original one.
    tested, wanted = (_FACTORS_LONG if cells > base.original_context else _FACTORS_SHORT for cells in num_cells)
    if tested in enough and wanted in enough:
        yield replace(base, factors=enough[tested]).layer(), replace(base, factors=enough[wanted]).layer()
    other = RopePairing.NORM if base.pairing is RopePairing.NEOX else RopePairing.NEOX
    yield both(replace(base, pairing=other))
    window_base = metadata.number(".rope.freq_base_swa") or _DEFAULT_BASE
    yield both(replace(base, freq_base=window_base, freq_scale=1.0, ext_factor=0.0))
    if base.num_rotated < head_dim:
        yield both(replace(base, offset=head_dim - base.num_rotated))


def rotation_error(
    before: F32Array, after: F32Array, rope: LayerRope | None, distance: int, shape: LayerShape
) -> float:
    """How far `before` turned by `distance` is from `after`, both (n, row): the worst pair's error, 0 … 1 and more.

    Other rounding at another position scatters the rows by some percent, the more the deeper the layer. That averages
    out over tokens and heads, and a wrong angle does not: so what the pairs have in common (a complex factor that
    should be 1) counts in full, and the scatter by `SCATTER_WEIGHT`. A pair with little energy is measured against the
    mean, since noise does not follow its size.
    """
    count = before.shape[0]
    first = before.reshape(count, shape.num_heads, shape.k_head_dim).astype(np.float64)
    second = after.reshape(count, shape.num_heads, shape.k_head_dim).astype(np.float64)
    ours, theirs = _pairs(first if rope is None else _turn(first, rope, distance), rope), _pairs(second, rope)
    energy = (np.abs(ours) ** 2).sum(axis=(0, 1))
    whole = energy + 0.05 * energy.mean() + 1e-12
    common = np.abs((theirs * ours.conj()).sum(axis=(0, 1)) - energy) / whole
    scatter = np.sqrt((np.abs(ours - theirs) ** 2).sum(axis=(0, 1)) / whole)
    return float(np.maximum(common, SCATTER_WEIGHT * scatter).max())


def _pairs(rows: np.ndarray, rope: LayerRope | None) -> np.ndarray:
    """Pairs that turn together as complex numbers, then the values that stay; (n, heads, pairs + rest)."""
    if rope is None:
        return rows.astype(np.complex128)
    size = 2 * len(rope.inv_freq)
    part = rows[..., rope.offset : rope.offset + size]
    if rope.pairing is RopePairing.NEOX:
        turning = part[..., : size // 2] + 1j * part[..., size // 2 :]
    else:
        turning = part[..., 0::2] + 1j * part[..., 1::2]
    return np.concatenate([turning, rows[..., : rope.offset], rows[..., rope.offset + size :]], axis=-1)


def _turn(rows: np.ndarray, rope: LayerRope, distance: int) -> np.ndarray:
    pairs = len(rope.inv_freq)
    angle = np.asarray(rope.inv_freq) * distance
    cos, sin = np.cos(angle), np.sin(angle)
    out = rows.copy()
    part, target = (x[..., rope.offset : rope.offset + 2 * pairs] for x in (rows, out))
    if rope.pairing is RopePairing.NEOX:
        a, b = part[..., :pairs], part[..., pairs:]
        target[..., :pairs], target[..., pairs:] = a * cos - b * sin, a * sin + b * cos
    else:
        a, b = part[..., 0::2], part[..., 1::2]
        target[..., 0::2], target[..., 1::2] = a * cos - b * sin, a * sin + b * cos
    return out


def _scaling(metadata: Metadata) -> RopeScaling:
    name = metadata.text(f"{metadata.architecture}.rope.scaling.type") or "linear"
    return {scaling.name.lower(): scaling for scaling in RopeScaling}.get(name, RopeScaling.LINEAR)


def _single(value: float) -> float:
    """Rounded to single precision, as ggml holds it."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)

"""The orthonormal Walsh–Hadamard transform, as llama.cpp turns quantized K and V. Knows no layers and no positions."""

from __future__ import annotations

import numpy as np

from kvloom.types import F64Array

MIN_BLOCK = 64
"""llama.cpp turns blocks of at least 64 values, and only heads whose size is a multiple of 64."""


def k_block(head_dim: int) -> int:
    """Size of the blocks in which a K head is turned: the largest power of two ≥ 64 that divides it.

    Raises ValueError for a head size that llama.cpp never turns. (V is turned in blocks of 64 whatever its size.)
    """
    if head_dim % MIN_BLOCK:
        raise ValueError(f"a head of {head_dim} values is never turned: not a multiple of {MIN_BLOCK}")
    return head_dim & -head_dim


def turn(rows: F64Array, block: int) -> F64Array:
    """Every run of `block` values (a power of two) of `rows` (n, size) turned; doing it twice gives `rows` back."""
    if block < 1 or block & (block - 1) or rows.shape[1] % block:
        raise ValueError(f"a Walsh–Hadamard block is a power of two that divides {rows.shape[1]}, got {block}")
    result, half = rows, 1
    while half < block:
        pairs = result.reshape(-1, 2, half)
        result = np.stack((pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]), axis=1)
        half *= 2
    turned: F64Array = result.reshape(rows.shape) / np.sqrt(block)
    return turned


def matrix(size: int, block: int) -> F64Array:
    """(size, size) symmetric matrix that turns each run of `block` values of a head; it is its own inverse."""
    return turn(np.eye(size, dtype=np.float64), block)

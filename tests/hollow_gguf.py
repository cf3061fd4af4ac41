"""Writes GGUF files of any size that take no disk: a whole header, and a hole where the weights would be.

llama.cpp plans such a model's memory (`no_alloc`) as it would the real one's, and reads no weight. Knows no kvloom.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

__all__ = ["HollowModel", "write_hollow"]


ALIGNMENT = 32
"""Bytes; of every tensor in a GGUF that names no other."""


@dataclass(frozen=True)
class HollowModel:
    """A published model's shape; all weights but the norms are f16."""

    arch: str
    width: int
    feed_forward: int
    num_layers: int
    num_heads: int
    kv_heads: int | tuple[int, ...]
    vocab_size: int
    head_dim: int = 0
    is_tied: bool = False
    has_bias: bool = False
    window: int = 0
    num_experts: int = 0
    num_experts_used: int = 0
    expert_feed_forward: int = 0
    context: int = 131072

    @property
    def key_dim(self) -> int:
        return self.head_dim or self.width // self.num_heads

    def kv_heads_of(self, layer: int) -> int:
        return self.kv_heads if isinstance(self.kv_heads, int) else self.kv_heads[layer]


def write_hollow(path: Path, model: HollowModel) -> Path:
    """Write `model` to `path` and give the path back."""
    writer = gguf.GGUFWriter(path, model.arch)
    _metadata(writer, model)
    total = 0
    for name, shape in _tensors(model).items():
        kind: np.dtype[Any] = np.dtype(np.float16 if len(shape) > 1 else np.float32)
        size = math.prod(shape) * kind.itemsize
        writer.add_tensor_info(name, list(shape), kind, size)
        total += -(-size // ALIGNMENT) * ALIGNMENT
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    start = -(-path.stat().st_size // ALIGNMENT) * ALIGNMENT
    os.truncate(path, start + total)
    return path


def _metadata(writer: gguf.GGUFWriter, model: HollowModel) -> None:
    writer.add_context_length(model.context)
    writer.add_embedding_length(model.width)
    writer.add_block_count(model.num_layers)
    writer.add_feed_forward_length(model.feed_forward)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    writer.add_head_count(model.num_heads)
    writer.add_head_count_kv(list(model.kv_heads) if isinstance(model.kv_heads, tuple) else model.kv_heads)
    writer.add_key_length(model.key_dim)
    writer.add_value_length(model.key_dim)
    writer.add_rope_dimension_count(model.key_dim)
    writer.add_vocab_size(model.vocab_size)
    writer.add_tokenizer_model("none")
    if model.window:
        writer.add_sliding_window(model.window)
    if model.num_experts:
        writer.add_expert_count(model.num_experts)
        writer.add_expert_used_count(model.num_experts_used)
    if model.expert_feed_forward:
        writer.add_expert_feed_forward_length(model.expert_feed_forward)


def _tensors(model: HollowModel) -> dict[str, tuple[int, ...]]:
    """Names and shapes, the slowest dimension first."""
    width = model.width
    out: dict[str, tuple[int, ...]] = {"token_embd.weight": (model.vocab_size, width), "output_norm.weight": (width,)}
    if not model.is_tied:
        out["output.weight"] = (model.vocab_size, width)
    for layer in range(model.num_layers):
        out |= {f"blk.{layer}.{name}": shape for name, shape in _block(model, layer).items()}
    return out


def _block(model: HollowModel, layer: int) -> dict[str, tuple[int, ...]]:
    width, hidden = model.width, model.feed_forward
    q, kv = model.num_heads * model.key_dim, model.kv_heads_of(layer) * model.key_dim
    out: dict[str, tuple[int, ...]] = {"attn_norm.weight": (width,), "ffn_norm.weight": (width,)}
    if model.arch == "phi3":
        out |= {"attn_qkv.weight": (q + 2 * kv, width), "ffn_up.weight": (2 * hidden, width)}
    else:
        out |= {"attn_q.weight": (q, width), "attn_k.weight": (kv, width), "attn_v.weight": (kv, width)}
    out["attn_output.weight"] = (width, q)
    if model.has_bias:
        out |= {"attn_q.bias": (q,), "attn_k.bias": (kv,), "attn_v.bias": (kv,)}
    if model.arch in ("gemma2", "gemma3"):
        out |= {"post_attention_norm.weight": (width,), "post_ffw_norm.weight": (width,)}
    if model.arch in ("gemma3", "qwen3moe"):
        out |= {"attn_q_norm.weight": (model.key_dim,), "attn_k_norm.weight": (model.key_dim,)}
    if model.num_experts:
        experts, hidden = model.num_experts, model.expert_feed_forward or hidden
        out |= {
            "ffn_gate_inp.weight": (experts, width),
            "ffn_gate_exps.weight": (experts, hidden, width),
            "ffn_up_exps.weight": (experts, hidden, width),
            "ffn_down_exps.weight": (experts, width, hidden),
        }
    elif model.arch == "phi3":
        out["ffn_down.weight"] = (width, hidden)
    else:
        out |= {
            "ffn_gate.weight": (hidden, width),
            "ffn_up.weight": (hidden, width),
            "ffn_down.weight": (width, hidden),
        }
    return out

"""What a Hugging Face `config.json` says of its model: enough to forecast its memory before anything is converted.

Knows no GGUF. Parameters are counted for the usual decoder: attention, a feed-forward or experts, two or four norms.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from kvloom.errors import ModelFormatError, ModelNotFoundError
from kvloom.model.shape import KVLayer, ModelShape, RopeFields, WeightBytes, expand_pattern

__all__ = ["HfModel", "read_hf_model"]

MAX_CONFIG_BYTES = 4 * 1024**2
"""Such files have a few kilobytes."""
WINDOW_PERIODS = {"gemma2": 2, "gemma3_text": 6, "gemma3": 6, "cohere2": 4, "gpt_oss": 2}
"""Every n-th layer is dense where the file lists no `layer_types`."""
ATTENTION_BIAS = frozenset({"qwen2", "qwen2_moe"})
"""Architectures whose Q, K and V have a bias although the file does not say so."""
TIED_BY_DEFAULT = frozenset({"gemma", "gemma2", "gemma3", "gemma3_text", "cohere", "cohere2", "falcon", "starcoder2"})
"""Architectures whose output uses the token table where the file says nothing of it."""
FOUR_NORMS = frozenset({"gemma2", "gemma3", "gemma3_text"})
"""A norm before and one behind attention and feed-forward."""
UNGATED = frozenset({"starcoder2", "phi", "gpt_neox", "nemotron"})
"""A feed-forward of two matrices, not of three."""
VALUE_BYTES = 2
"""Weights are published, and converted, in 16 bits."""


@dataclass(frozen=True)
class HfModel:
    """A model as it is published, 16 bits a weight; `weights` is None where they cannot be counted."""

    shape: ModelShape
    weights: WeightBytes | None


def read_hf_model(path: Path) -> HfModel:
    """Raises ModelNotFoundError, ModelFormatError. `path` is a `config.json` or the folder that holds one."""
    file = path / "config.json" if path.is_dir() else path
    try:
        raw = file.read_bytes() if file.stat().st_size <= MAX_CONFIG_BYTES else b""
        config = msgspec.json.decode(raw)
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"there is no file {file}") from error
    except (OSError, msgspec.DecodeError) as error:
        raise ModelFormatError(f"{file} is not a model's config.json: {error}") from error
    if not isinstance(config, dict):
        raise ModelFormatError(f"{file} is not a model's config.json: it holds no object")
    inner = config.get("text_config")
    return _model(file, inner if isinstance(inner, dict) else config)


def _model(file: Path, config: dict[str, Any]) -> HfModel:
    def number(key: str, default: int | None = None) -> int:
        value = config.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ModelFormatError(f"{file}: `{key}` is {value!r}, expected a number")
        return value

    embedding, num_layers, heads = number("hidden_size"), number("num_hidden_layers"), number("num_attention_heads")
    if not embedding or not 0 < num_layers <= 4096 or not heads:
        raise ModelFormatError(f"{file}: {num_layers} layers of size {embedding} with {heads} heads cannot be a model")
    head_dim = number("head_dim", embedding // heads)
    layer = KVLayer(number("num_key_value_heads", heads), head_dim, head_dim)
    if config.get("kv_lora_rank"):
        layer = KVLayer(1, number("kv_lora_rank") + number("qk_rope_head_dim", 0), 0)
    kinds = config.get("layer_types")
    kinds = kinds if isinstance(kinds, list) and len(kinds) == num_layers else None
    with_kv = [kind for kind in kinds if "attention" in str(kind) and "linear" not in str(kind)] if kinds else None
    num_kv_layers = len(with_kv) if with_kv is not None else num_layers
    weights = _weights(config, layer, number)
    num_experts_used = number("num_experts_per_tok", 0)
    dense = number("intermediate_size", 0)
    # Experts are as wide as the feed-forward where the file gives them no width of their own.
    feed_forward = max(dense, (number("moe_intermediate_size", 0) or dense) * max(1, num_experts_used))
    shape = ModelShape(
        architecture=str(config.get("model_type", "unknown")),
        num_layers=num_layers,
        embedding_size=embedding,
        feed_forward_size=feed_forward,
        num_heads=heads,
        vocab_size=number("vocab_size", 0),
        context_length=number("max_position_embeddings", 0),
        layers=(layer,) * num_kv_layers,
        rope=_rope(config),
        has_state=num_kv_layers < num_layers,
        num_experts_used=num_experts_used,
    )
    windowed = shape.with_window(_window_flags(config, with_kv, num_kv_layers), config.get("sliding_window"))
    return HfModel(windowed, weights)


def _window_flags(config: dict[str, Any], kinds: list[Any] | None, num_layers: int) -> tuple[bool, ...]:
    if kinds is not None:
        return tuple("sliding" in str(kind) or "chunked" in str(kind) for kind in kinds)
    period = config.get("sliding_window_pattern") or WINDOW_PERIODS.get(str(config.get("model_type")))
    if isinstance(period, int):
        return expand_pattern(period, num_layers)
    # Mistral's first models: every layer. Qwen's carry a window that is switched off.
    is_on = config.get("model_type") == "mistral" or config.get("use_sliding_window") is True
    return (is_on,) * num_layers


def _rope(config: dict[str, Any]) -> RopeFields:
    scaling = config.get("rope_scaling") or config.get("rope_parameters")
    scaling = scaling if isinstance(scaling, dict) else {}
    base = config.get("rope_theta", scaling.get("rope_theta"))
    factor, original = scaling.get("factor"), scaling.get("original_max_position_embeddings")
    return RopeFields(
        freq_base=float(base) if isinstance(base, int | float) else None,
        scaling=str(scaling.get("rope_type") or scaling.get("type") or "") or None,
        factor=float(factor) if isinstance(factor, int | float) else None,
        original_context=original if isinstance(original, int) else None,
    )


def _weights(config: dict[str, Any], layer: KVLayer, number: Any) -> WeightBytes | None:
    """The weights of the usual decoder; None for attention of another kind."""
    if config.get("kv_lora_rank") or (config.get("layer_types") and "linear_attention" in config["layer_types"]):
        return None
    kind = str(config.get("model_type"))
    embedding, heads, num_layers = number("hidden_size"), number("num_attention_heads"), number("num_hidden_layers")
    q_size, kv_size = heads * layer.k_head_dim, layer.num_kv_heads * layer.k_head_dim
    attention = embedding * (q_size + 2 * kv_size) + q_size * embedding
    if config.get("attention_bias") or kind in ATTENTION_BIAS:
        attention += q_size + 2 * kv_size
    matrices = 2 if kind in UNGATED else 3
    feed_forward = matrices * embedding * number("intermediate_size", 0)
    num_experts = number("num_experts", 0) or number("num_local_experts", 0) or number("n_routed_experts", 0)
    if num_experts:
        expert = matrices * embedding * (number("moe_intermediate_size", 0) or number("intermediate_size", 0))
        shared = matrices * embedding * number("shared_expert_intermediate_size", 0)
        feed_forward = num_experts * (expert + embedding) + shared
    norms = (4 if kind in FOUR_NORMS else 2) * embedding
    table = number("vocab_size", 0) * embedding
    is_tied = config.get("tie_word_embeddings", kind in TIED_BY_DEFAULT)
    return WeightBytes(
        input_bytes=table * VALUE_BYTES,
        layers=((attention + feed_forward + norms) * VALUE_BYTES,) * num_layers,
        output_bytes=(embedding + (0 if is_tied else table)) * VALUE_BYTES,
        tied_bytes=table * VALUE_BYTES if is_tied else 0,
    )

"""Writes tiny GGUF models with random weights, one shape per engine trait. Knows no kvloom.

The weights are random, but of a size that makes attention matter: a wrong row, position or order changes the logits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

__all__ = ["CHATML", "TinyModel", "write_tiny"]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@dataclass(frozen=True)
class TinyModel:
    """A model's shape. `arch` picks llama.cpp's graph: llama (NORM), qwen2 (NEOX), phi2 (partial rotary), …"""

    arch: str = "llama"
    num_layers: int = 3
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 16
    num_rotated: int | None = None
    context: int = 4096
    freq_base: float = 10000.0
    scaling: dict[str, Any] = field(default_factory=dict)
    rope_freqs: bool = False
    long_factors: bool = False
    sliding_window: int = 0
    tokenizer: str = "bpe"
    template: str | None = CHATML
    extra: dict[str, float | int] = field(default_factory=dict)
    seed: int = 7

    @property
    def width(self) -> int:
        return self.num_heads * self.head_dim


def write_tiny(path: Path, model: TinyModel) -> Path:
    """Write `model` to `path` and give the path back."""
    writer = gguf.GGUFWriter(path, model.arch)
    _metadata(writer, model)
    num_tokens = _bpe(writer) if model.tokenizer == "bpe" else _spm(writer)
    if model.template is not None:
        writer.add_chat_template(model.template)
    rng = np.random.default_rng(model.seed)
    for name, values in _tensors(model, num_tokens, rng).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _metadata(writer: gguf.GGUFWriter, model: TinyModel) -> None:
    writer.add_name("tiny")
    writer.add_context_length(model.context)
    writer.add_embedding_length(model.width)
    writer.add_block_count(model.num_layers)
    writer.add_feed_forward_length(2 * model.width)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    if model.arch == "mamba":
        writer.add_ssm_conv_kernel(4)
        writer.add_ssm_inner_size(2 * model.width)
        writer.add_ssm_state_size(8)
        writer.add_ssm_time_step_rank(4)
        return
    writer.add_head_count(model.num_heads)
    writer.add_head_count_kv(model.num_kv_heads)
    writer.add_key_length(model.head_dim)
    writer.add_value_length(model.head_dim)
    if model.arch not in ("gpt2", "bert", "mpt"):
        writer.add_rope_freq_base(model.freq_base)
        writer.add_rope_dimension_count(model.num_rotated or model.head_dim)
    for key, value in model.scaling.items():
        name = f"{model.arch}.rope.scaling.{key}"
        if isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        else:
            writer.add_float32(name, value)
    if model.sliding_window:
        writer.add_sliding_window(model.sliding_window)
    if model.arch == "bert":
        writer.add_causal_attention(False)
        writer.add_token_type_count(2)
    if model.arch == "mpt":
        writer.add_max_alibi_bias(8.0)
    if model.arch == "qwen2vl":
        writer.add_rope_dimension_sections([model.head_dim // 4, model.head_dim // 8, model.head_dim // 8, 0])
    for name, number in model.extra.items():
        if isinstance(number, int):
            writer.add_uint32(name, number)
        else:
            writer.add_float32(name, number)


def _bpe(writer: gguf.GGUFWriter) -> int:
    """A byte-level vocabulary with a few merges, as GPT-2's."""
    letters = list(_byte_letters().values())
    merges = ["t h", "th e", "i n", "a n", "Ġ the", "e r", "o n", "r e", "Ġ a", "Ċ Ċ"]
    tokens = letters + [merge.replace(" ", "") for merge in merges] + list(SPECIAL)
    types = [gguf.TokenType.NORMAL] * (len(tokens) - len(SPECIAL)) + [gguf.TokenType.CONTROL] * len(SPECIAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_bos_token_id(len(tokens) - 3)
    writer.add_add_bos_token(False)
    return len(tokens)


def _spm(writer: gguf.GGUFWriter) -> int:
    """A SentencePiece vocabulary: control tokens, bytes, then pieces; a longer piece has the better score."""
    pieces = ["▁", *"abcdefghijklmnopqrstuvwxyz.,=()", "▁t", "th", "▁th", "the", "▁the", "in", "an", "▁a", "er", "re"]
    tokens = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    kind = gguf.TokenType
    types = [kind.UNKNOWN, kind.CONTROL, kind.CONTROL, kind.CONTROL, kind.CONTROL]
    tokens += [f"<0x{byte:02X}>" for byte in range(256)] + pieces
    types += [kind.BYTE] * 256 + [kind.NORMAL] * len(pieces)
    scores = [0.0] * (len(tokens) - len(pieces)) + [float(len(piece)) - 100 for piece in pieces]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    return len(tokens)


def _byte_letters() -> dict[int, str]:
    """GPT-2's printable letter for every byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in letters)
    letters.update({byte: chr(256 + i) for i, byte in enumerate(others)})
    return letters


Tensors = dict[str, npt.NDArray[np.floating[Any]]]


def _tensors(model: TinyModel, num_tokens: int, rng: np.random.Generator) -> Tensors:
    width = model.width
    kv_width = model.num_kv_heads * model.head_dim
    out: Tensors = {}

    def matrix(name: str, rows: int, columns: int, gain: float = 1.0) -> None:
        out[f"{name}.weight"] = (rng.standard_normal((rows, columns)) * gain / np.sqrt(columns)).astype(np.float16)

    def norm(name: str, size: int, *, bias: bool = False) -> None:
        out[f"{name}.weight"] = (1.0 + 0.1 * rng.standard_normal(size)).astype(np.float32)
        if bias:
            vector(f"{name}.bias", size)

    def vector(name: str, size: int) -> None:
        out[name] = (0.1 * rng.standard_normal(size)).astype(np.float32)

    layer_norms = model.arch in ("gpt2", "bert", "mpt", "phi2")
    out["token_embd.weight"] = rng.standard_normal((num_tokens, width)).astype(np.float32)
    if model.arch in ("gpt2", "bert"):
        out["position_embd.weight"] = rng.standard_normal((model.context, width)).astype(np.float32)
    if model.arch == "bert":
        norm("token_embd_norm", width, bias=True)
        out["token_types.weight"] = rng.standard_normal((2, width)).astype(np.float32)
    else:
        norm("output_norm", width, bias=layer_norms)
        matrix("output", num_tokens, width, 3.0)
    if model.arch == "phi2":
        vector("output.bias", num_tokens)
    if model.rope_freqs:
        factors = np.geomspace(1.0, 8.0, (model.num_rotated or model.head_dim) // 2)
        out["rope_freqs.weight"] = factors.astype(np.float32)
    if model.long_factors:
        pairs = (model.num_rotated or model.head_dim) // 2
        out["rope_factors_long.weight"] = np.linspace(1.5, 9.0, pairs).astype(np.float32)
        out["rope_factors_short.weight"] = np.linspace(1.0, 1.7, pairs).astype(np.float32)
    for index in range(model.num_layers):
        at = f"blk.{index}"
        if model.arch == "mamba":
            _mamba_layer(out, at, model, rng)
            continue
        if model.arch != "bert":
            norm(f"{at}.attn_norm", width, bias=layer_norms)
        if model.arch in ("gpt2", "mpt"):
            matrix(f"{at}.attn_qkv", width + 2 * kv_width, width, 2.0)
            vector(f"{at}.attn_qkv.bias", width + 2 * kv_width)
        else:
            for name, rows in (("q", width), ("k", kv_width), ("v", kv_width)):
                matrix(f"{at}.attn_{name}", rows, width, 2.0)
                if model.arch in ("qwen2", "qwen2vl", "phi2", "bert"):
                    vector(f"{at}.attn_{name}.bias", rows)
        matrix(f"{at}.attn_output", width, width)
        if model.arch == "phi2":  # attention and feed-forward run side by side behind one norm
            vector(f"{at}.attn_output.bias", width)
        elif model.arch == "bert":
            norm(f"{at}.attn_output_norm", width, bias=True)
            norm(f"{at}.layer_output_norm", width, bias=True)
        else:
            norm(f"{at}.ffn_norm", width, bias=layer_norms)
        if model.arch in ("gpt2", "mpt"):
            vector(f"{at}.attn_output.bias", width)
        if model.arch == "gemma3":
            for name, size in (("attn_q_norm", model.head_dim), ("attn_k_norm", model.head_dim)):
                norm(f"{at}.{name}", size)
            norm(f"{at}.post_attention_norm", width)
            norm(f"{at}.post_ffw_norm", width)
        gated = model.arch not in ("gpt2", "mpt", "phi2", "bert")
        if gated:
            matrix(f"{at}.ffn_gate", 2 * width, width)
        matrix(f"{at}.ffn_up", 2 * width, width)
        matrix(f"{at}.ffn_down", width, 2 * width)
        if not gated:
            vector(f"{at}.ffn_up.bias", 2 * width)
            vector(f"{at}.ffn_down.bias", width)
    return out


def _mamba_layer(out: Tensors, at: str, model: TinyModel, rng: np.random.Generator) -> None:
    width, inner, state, rank = model.width, 2 * model.width, 8, 4
    shapes: dict[str, tuple[int, ...]] = {
        "ssm_in.weight": (2 * inner, width),
        "ssm_conv1d.weight": (inner, 4),
        "ssm_conv1d.bias": (inner,),
        "ssm_x.weight": (rank + 2 * state, inner),
        "ssm_dt.weight": (inner, rank),
        "ssm_dt.bias": (inner,),
        "ssm_d": (inner,),
        "ssm_out.weight": (width, inner),
    }
    out[f"{at}.attn_norm.weight"] = np.ones(width, np.float32)
    out[f"{at}.ssm_a"] = -np.exp(rng.standard_normal((inner, state))).astype(np.float32)
    for name, shape in shapes.items():
        out[f"{at}.{name}"] = (0.2 * rng.standard_normal(shape)).astype(np.float32)

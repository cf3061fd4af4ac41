"""Writes small GGUF files: a real header and zeroed tensors, so that no model has to be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np


def write_gguf(path: Path, architecture: str = "llama", vocab_size: int = 64, **fields: Any) -> Path:
    """A model of 2 layers, embedding 64, 4 heads, 2 KV heads; `fields` (dots as `__`) replace keys, None drops one."""
    keys: dict[str, Any] = {
        "block_count": 2,
        "context_length": 512,
        "embedding_length": 64,
        "feed_forward_length": 128,
        "attention__head_count": 4,
        "attention__head_count_kv": 2,
        "rope__freq_base": 10000.0,
    }
    keys.update(fields)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_file_type(int(gguf.LlamaFileType.MOSTLY_F16))
    writer.add_chat_template("{{ messages }}")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"token {i}" for i in range(vocab_size)])
    writer.add_token_scores([0.0] * vocab_size)
    for name, value in keys.items():
        _add(writer, f"{architecture}.{name.replace('__', '.')}", value)
    layers = keys["block_count"] or 0
    writer.add_tensor("token_embd.weight", np.zeros((vocab_size, 64), np.float16))
    for layer in range(min(layers, 2)):
        writer.add_tensor(f"blk.{layer}.ffn_up.weight", np.zeros((128, 64), np.float16))
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", np.zeros(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, list(value))

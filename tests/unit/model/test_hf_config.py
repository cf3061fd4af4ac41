from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvloom.errors import ModelFormatError, ModelNotFoundError
from kvloom.model.hf_config import read_hf_config

LLAMA_3_1_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
    "rope_theta": 500000.0, "tie_word_embeddings": False,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192},
}  # fmt: skip
QWEN_2_5_7B = {
    "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 32768,
    "tie_word_embeddings": False, "sliding_window": 131072, "use_sliding_window": False,
}  # fmt: skip
QWEN_2_5_05B = QWEN_2_5_7B | {
    "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
    "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
}  # fmt: skip
MIXTRAL_8X7B = {
    "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 32768,
    "num_local_experts": 8, "num_experts_per_tok": 2, "tie_word_embeddings": False,
}  # fmt: skip


def write(folder: Path, config: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LLAMA_3_1_8B, 8_030_261_248),
        (QWEN_2_5_7B, 7_615_616_512),
        (QWEN_2_5_05B, 494_032_768),
        (MIXTRAL_8X7B, 46_702_792_704),
    ],
)
def test_parameters_are_counted_as_their_makers_count_them(
    tmp_path: Path, config: dict[str, Any], expected: int
) -> None:
    assert read_hf_config(write(tmp_path, config)).num_parameters == expected


def test_the_shape_is_that_of_the_converted_model(tmp_path: Path) -> None:
    shape = read_hf_config(write(tmp_path, LLAMA_3_1_8B))
    assert shape.kv_token_bytes() == 131_072
    assert (shape.context_length, shape.rope.scaling, shape.rope.factor) == (131072, "llama3", 8.0)


def test_a_window_that_is_switched_off_is_none(tmp_path: Path) -> None:
    assert read_hf_config(write(tmp_path, QWEN_2_5_7B)).sliding_window is None


def test_layer_types_tell_windows_and_states(tmp_path: Path) -> None:
    kinds = ["sliding_attention", "full_attention", "linear_attention", "full_attention"]
    config = LLAMA_3_1_8B | {"num_hidden_layers": 4, "layer_types": kinds, "sliding_window": 512}
    shape = read_hf_config(write(tmp_path, config))
    assert [layer.is_windowed for layer in shape.layers] == [True, False, False]
    assert shape.has_state
    assert shape.sliding_window == 512


def test_the_text_part_of_a_model_with_images_is_taken(tmp_path: Path) -> None:
    outer = {"model_type": "gemma3", "text_config": LLAMA_3_1_8B, "vision_config": {"hidden_size": 1}}
    assert read_hf_config(write(tmp_path, outer)).num_layers == 32


@pytest.mark.parametrize(
    "config",
    [{}, [], 3, {"hidden_size": "big"}, LLAMA_3_1_8B | {"num_hidden_layers": 0}, LLAMA_3_1_8B | {"head_dim": -1}],
)
def test_a_config_that_is_no_model_is_refused(tmp_path: Path, config: Any) -> None:
    with pytest.raises(ModelFormatError, match=r"config\.json"):
        read_hf_config(write(tmp_path, config))


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\x00GGUF")
    with pytest.raises(ModelFormatError, match=r"config\.json"):
        read_hf_config(tmp_path / "config.json")
    with pytest.raises(ModelNotFoundError):
        read_hf_config(tmp_path / "other.json")

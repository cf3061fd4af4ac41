from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvloom.errors import ModelFormatError, ModelNotFoundError
from kvloom.model.footprint import CacheSpec, kv_bytes
from kvloom.model.hf_config import read_hf_model
from kvloom.types import KVType

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
GEMMA_2_9B = {
    "model_type": "gemma2", "hidden_size": 3584, "intermediate_size": 14336, "num_hidden_layers": 42,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256, "vocab_size": 256000,
    "max_position_embeddings": 8192, "sliding_window": 4096, "attention_bias": False,
}  # fmt: skip
MISTRAL_7B = {
    "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 32768,
    "sliding_window": 4096, "tie_word_embeddings": False,
}  # fmt: skip
PHI_3_MINI = {
    "model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064, "max_position_embeddings": 4096,
    "sliding_window": 2047, "attention_bias": False, "tie_word_embeddings": False,
}  # fmt: skip
PHI_2 = {
    "model_type": "phi", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 51200, "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}  # fmt: skip
QWEN_3_30B_A3B = {
    "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48,
    "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936,
    "max_position_embeddings": 40960, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
    "tie_word_embeddings": False, "sliding_window": None, "use_sliding_window": False,
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
    weights = read_hf_model(write(tmp_path, config)).weights
    assert weights is not None
    assert weights.total_bytes == 2 * expected


@pytest.mark.parametrize(
    ("config", "published"),
    [
        (LLAMA_3_1_8B, 8_030_261_248),
        (QWEN_2_5_05B, 494_032_768),
        (GEMMA_2_9B, 9_241_705_984),
        (MISTRAL_7B, 7_241_732_096),
        (PHI_3_MINI, 3_821_079_552),
        (PHI_2, 2_779_683_840),
        (QWEN_3_30B_A3B, 30_532_122_624),
        (MIXTRAL_8X7B, 46_702_792_704),
    ],
)
def test_weights_are_within_two_percent_of_the_published_model(
    tmp_path: Path, config: dict[str, Any], published: int
) -> None:
    weights = read_hf_model(write(tmp_path, config)).weights
    assert weights is not None
    assert weights.total_bytes == pytest.approx(2 * published, rel=0.02)


@pytest.mark.parametrize(
    ("config", "kv_type", "expected"),
    [
        # 2 (K and V) · layers · KV heads · head size · bytes per value
        (LLAMA_3_1_8B, KVType.F16, 2 * 32 * 8 * 128 * 2),
        (LLAMA_3_1_8B, KVType.Q8_0, 2 * 32 * 8 * 128 * 34 // 32),
        (QWEN_2_5_05B, KVType.F16, 2 * 24 * 2 * 64 * 2),
        (GEMMA_2_9B, KVType.F16, 2 * 42 * 8 * 256 * 2),
        (MISTRAL_7B, KVType.F16, 2 * 32 * 8 * 128 * 2),
        (MISTRAL_7B, KVType.Q4_0, 2 * 32 * 8 * 128 * 18 // 32),
        (PHI_3_MINI, KVType.F16, 2 * 32 * 32 * 96 * 2),
        (QWEN_3_30B_A3B, KVType.F16, 2 * 48 * 4 * 128 * 2),
    ],
)
def test_the_kv_of_a_token_is_what_the_formula_gives(
    tmp_path: Path, config: dict[str, Any], kv_type: KVType, expected: int
) -> None:
    assert read_hf_model(write(tmp_path, config)).shape.kv_token_bytes(kv_type, kv_type) == expected


def test_windows_are_read_as_their_makers_mean_them(tmp_path: Path) -> None:
    gemma = read_hf_model(write(tmp_path, GEMMA_2_9B)).shape
    assert [layer.is_windowed for layer in gemma.layers] == [True, False] * 21
    assert gemma.sliding_window == 4096
    mistral = read_hf_model(write(tmp_path, MISTRAL_7B)).shape
    assert all(layer.is_windowed for layer in mistral.layers)
    # llama.cpp runs Phi-3 without its window.
    assert read_hf_model(write(tmp_path, PHI_3_MINI)).shape.sliding_window is None


def test_a_window_needs_only_its_own_cells(tmp_path: Path) -> None:
    mistral = read_hf_model(write(tmp_path, MISTRAL_7B)).shape
    spec = CacheSpec(num_cells=32768, num_sequences=1, full_window=False)
    # The window, the batch on its way (512), rounded up to 256 cells.
    assert kv_bytes(mistral, spec) == 131_072 * (4096 + 512)
    assert kv_bytes(mistral, CacheSpec(num_cells=32768)) == 131_072 * 32768


def test_experts_are_as_wide_as_they_say_or_as_the_feed_forward(tmp_path: Path) -> None:
    assert read_hf_model(write(tmp_path, MIXTRAL_8X7B)).shape.feed_forward_size == 2 * 14336
    assert read_hf_model(write(tmp_path, QWEN_3_30B_A3B)).shape.feed_forward_size == 8 * 768


def test_weights_lie_in_layers_and_a_shared_table_is_counted_once(tmp_path: Path) -> None:
    apart = read_hf_model(write(tmp_path, LLAMA_3_1_8B)).weights
    shared = read_hf_model(write(tmp_path, LLAMA_3_1_8B | {"tie_word_embeddings": True})).weights
    assert apart is not None
    assert shared is not None
    table = 2 * 128256 * 4096
    assert len(apart.layers) == 32
    assert (apart.input_bytes, apart.output_bytes - shared.output_bytes) == (table, table)
    assert (apart.tied_bytes, shared.tied_bytes) == (0, table)


def test_the_shape_is_that_of_the_converted_model(tmp_path: Path) -> None:
    shape = read_hf_model(write(tmp_path, LLAMA_3_1_8B)).shape
    assert shape.kv_token_bytes() == 131_072
    assert (shape.context_length, shape.rope.scaling, shape.rope.factor) == (131072, "llama3", 8.0)


def test_a_window_that_is_switched_off_is_none(tmp_path: Path) -> None:
    assert read_hf_model(write(tmp_path, QWEN_2_5_7B)).shape.sliding_window is None


def test_layer_types_tell_windows_and_states(tmp_path: Path) -> None:
    kinds = ["sliding_attention", "full_attention", "linear_attention", "full_attention"]
    config = LLAMA_3_1_8B | {"num_hidden_layers": 4, "layer_types": kinds, "sliding_window": 512}
    shape = read_hf_model(write(tmp_path, config)).shape
    assert [layer.is_windowed for layer in shape.layers] == [True, False, False]
    assert shape.has_state
    assert shape.sliding_window == 512


def test_the_text_part_of_a_model_with_images_is_taken(tmp_path: Path) -> None:
    outer = {"model_type": "gemma3", "text_config": LLAMA_3_1_8B, "vision_config": {"hidden_size": 1}}
    assert read_hf_model(write(tmp_path, outer)).shape.num_layers == 32


@pytest.mark.parametrize(
    "config",
    [{}, [], 3, {"hidden_size": "big"}, LLAMA_3_1_8B | {"num_hidden_layers": 0}, LLAMA_3_1_8B | {"head_dim": -1}],
)
def test_a_config_that_is_no_model_is_refused(tmp_path: Path, config: Any) -> None:
    with pytest.raises(ModelFormatError, match=r"config\.json"):
        read_hf_model(write(tmp_path, config))


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\x00GGUF")
    with pytest.raises(ModelFormatError, match=r"config\.json"):
        read_hf_model(tmp_path / "config.json")
    with pytest.raises(ModelNotFoundError):
        read_hf_model(tmp_path / "other.json")

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvloom.errors import ModelError, ModelFormatError, ModelNotFoundError
from kvloom.model.gguf_file import TENSOR_TYPES, read_gguf
from kvloom.model.header import read_header, shard_paths
from kvloom.types import KVType
from tests.unit.model.ggufs import write_gguf


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


# --- what a header says ----------------------------------------------------------------------------------------------


def test_the_header_of_the_default_model_is_read_right(qwen_path: Path) -> None:
    header = read_header(qwen_path)
    shape = header.shape
    assert (shape.architecture, shape.num_layers, shape.embedding_size, shape.num_heads) == ("qwen2", 24, 896, 14)
    assert (shape.context_length, shape.vocab_size, shape.feed_forward_size) == (32768, 151936, 4864)
    assert {(layer.num_kv_heads, layer.k_head_dim, layer.v_head_dim) for layer in shape.layers} == {(2, 64, 64)}
    assert len(shape.layers) == 24
    assert shape.rope.freq_base == 1e6
    assert shape.sliding_window is None
    assert (header.file_type, header.tokenizer, header.has_tied_embeddings) == ("Q4_K_M", "gpt2", False)
    assert header.chat_template is not None
    assert "<|im_start|>" in header.chat_template
    assert shape.kv_token_bytes() == 12288


def test_the_header_of_half_a_gigabyte_is_read_in_less_than_a_third_of_a_second(qwen_path: Path) -> None:
    times = []
    for _ in range(3):
        before = time.thread_time()
        read_header(qwen_path)
        times.append(time.thread_time() - before)
    assert min(times) < 0.3


def test_metadata_and_tensors_are_those_of_the_reference_reader(tiny: Path) -> None:
    ours, reference = read_gguf(tiny), gguf.GGUFReader(tiny)
    for key, field in reference.fields.items():
        if key.startswith("GGUF."):
            continue
        value = field.contents()
        assert ours.metadata[key] == (tuple(value) if isinstance(value, list) else value)
    found = [(t.name, list(t.dims), t.type_name, t.size_bytes) for t in ours.tensors]
    assert found == [(t.name, t.shape.tolist(), t.tensor_type.name, int(t.n_bytes)) for t in reference.tensors]
    assert ours.data_start == reference.data_offset


def test_weights_are_told_by_layer_and_none_is_lost(qwen_path: Path, tiny: Path) -> None:
    for path in (qwen_path, tiny):
        header, tensors = read_header(path), read_gguf(path).tensors
        sizes = {tensor.name: tensor.size_bytes for tensor in tensors}
        weights = header.weights
        assert weights.total_bytes == sum(sizes.values()) == header.tensor_bytes
        assert weights.input_bytes == sizes["token_embd.weight"]
        assert len(weights.layers) == header.shape.num_layers
        last = f"blk.{header.shape.num_layers - 1}."
        assert weights.layers[-1] == sum(size for name, size in sizes.items() if name.startswith(last))
        assert weights.tied_bytes == (sizes["token_embd.weight"] if header.has_tied_embeddings else 0)


def test_experts_are_as_wide_as_they_say_or_as_the_feed_forward(tmp_path: Path) -> None:
    plain = write_gguf(tmp_path / "a.gguf", expert_count=8, expert_used_count=2)
    narrow = write_gguf(tmp_path / "b.gguf", expert_count=8, expert_used_count=2, expert_feed_forward_length=96)
    assert read_header(plain).shape.feed_forward_size == 2 * 128
    assert read_header(narrow).shape.feed_forward_size == 2 * 96
    assert read_header(write_gguf(tmp_path / "c.gguf")).shape.feed_forward_size == 128


def test_long_arrays_are_counted_and_not_kept(tmp_path: Path) -> None:
    file = read_gguf(write_gguf(tmp_path / "m.gguf", vocab_size=5000))
    assert file.array_lengths["tokenizer.ggml.tokens"] == 5000
    assert "tokenizer.ggml.tokens" not in file.metadata
    assert "tokenizer.ggml.scores" not in file.metadata


def test_the_sizes_of_tensor_types_are_those_of_the_reference() -> None:
    for number, (name, block, block_bytes) in TENSOR_TYPES.items():
        if number in list(gguf.GGMLQuantizationType):
            kind = gguf.GGMLQuantizationType(number)
            assert (kind.name, *gguf.GGML_QUANT_SIZES[kind]) == (name, block, block_bytes)
    assert {int(kind) for kind in gguf.GGMLQuantizationType} <= set(TENSOR_TYPES)


def test_heads_may_differ_between_layers_and_be_missing(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", "lfm2", block_count=4, attention__head_count_kv=[2, 0, 4, 0])
    shape = read_header(path).shape
    assert [layer.num_kv_heads for layer in shape.layers] == [2, 4]


def test_a_model_without_grouped_queries_keeps_all_heads(tmp_path: Path) -> None:
    shape = read_header(write_gguf(tmp_path / "m.gguf", attention__head_count_kv=None)).shape
    assert {layer.num_kv_heads for layer in shape.layers} == {4}


def test_key_and_value_sizes_may_be_declared(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", attention__key_length=32, attention__value_length=16)
    layer = read_header(path).shape.layers[0]
    assert (layer.k_head_dim, layer.v_head_dim) == (32, 16)


@pytest.mark.parametrize(
    ("architecture", "fields", "expected"),
    [
        ("gemma2", {}, [True, False] * 3),
        ("gemma3", {"attention__sliding_window": 128}, [True] * 5 + [False]),
        ("gpt-oss", {"attention__sliding_window": 128}, [True, False] * 3),
        ("cohere2moe", {"attention__sliding_window": 8}, [False, True, True, True, False, True]),
        ("gemma3", {"attention__sliding_window": 128, "attention__sliding_window_pattern": 3}, [True, True, False] * 2),
        (
            "newarch",
            {"attention__sliding_window": 8, "attention__sliding_window_pattern": [True, False, False] * 2},
            [True, False, False] * 2,
        ),
        ("qwen2", {"attention__sliding_window": 128}, [False] * 6),
        ("gemma3", {}, [False] * 6),
    ],
)
def test_windowed_layers_follow_the_architecture_or_the_file(
    tmp_path: Path, architecture: str, fields: dict[str, Any], expected: list[bool]
) -> None:
    shape = read_header(write_gguf(tmp_path / "m.gguf", architecture, block_count=6, **fields)).shape
    assert [layer.is_windowed for layer in shape.layers] == expected
    assert (shape.sliding_window is not None) == any(expected)


def test_mla_keeps_one_compressed_row(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "m.gguf",
        "deepseek2",
        attention__kv_lora_rank=512,
        rope__dimension_count=64,
        attention__key_length_mla=192,
        attention__head_count_kv=1,
    )
    shape = read_header(path).shape
    assert shape.kv_token_bytes(KVType.F16, KVType.F16) == 2 * (512 + 64) * 2


def test_layers_that_share_kv_are_not_counted_twice(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", "gemma4", block_count=6, attention__shared_kv_layers=2)
    assert len(read_header(path).shape.layers) == 4


def test_a_model_with_recurrent_layers_is_marked(tmp_path: Path) -> None:
    assert read_header(write_gguf(tmp_path / "m.gguf", "qwen3next", ssm__state_size=16)).shape.has_state
    assert not read_header(write_gguf(tmp_path / "n.gguf")).shape.has_state


def test_rope_fields_are_read(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "m.gguf",
        rope__dimension_count=8,
        rope__scaling__type="yarn",
        rope__scaling__factor=4.0,
        rope__scaling__original_context_length=2048,
    )
    rope = read_header(path).shape.rope
    assert (rope.freq_base, rope.num_dims, rope.scaling, rope.factor) == (10000.0, 8, "yarn", 4.0)
    assert rope.original_context == 2048


def test_a_model_in_several_files_is_one_model(tmp_path: Path, tiny: Path) -> None:
    names = [tmp_path / f"m-{i:05d}-of-00002.gguf" for i in (1, 2)]
    write_gguf(names[0])
    with pytest.raises(ModelNotFoundError, match="00002-of-00002"):
        read_header(names[0])
    write_gguf(names[1])
    header = read_header(names[0])
    assert header.paths == tuple(names) == shard_paths(names[1])
    assert header.tensor_bytes == 2 * read_header(tiny).tensor_bytes


# --- bad input -------------------------------------------------------------------------------------------------------


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"nothing\.gguf"):
        read_header(tmp_path / "nothing.gguf")


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "empty"), (b"GG", "begins with"), (b"PK\x03\x04 no model", "begins with"), (b"GGUF", "truncated")],
)
def test_a_file_that_is_no_gguf_says_so(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFormatError, match=says):
        read_header(path)


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="folder"):
        read_header(tmp_path)


def test_an_unreadable_file_says_why(tmp_path: Path) -> None:
    loop = tmp_path / "loop.gguf"
    loop.symlink_to(loop)
    with pytest.raises(ModelFormatError, match="cannot be read"):
        read_gguf(loop)


def test_a_gguf_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelFormatError, match="adapter"):
        read_header(path)


def test_every_truncation_is_seen(tiny: Path, tmp_path: Path) -> None:
    whole = tiny.read_bytes()
    path = tmp_path / "cut.gguf"
    cuts = [*range(0, read_gguf(tiny).data_start, 7), len(whole) // 2, len(whole) - 1]
    for size in cuts:
        path.write_bytes(whole[:size])
        with pytest.raises(ModelFormatError):
            read_header(path)


@pytest.mark.parametrize("number", [2**64 - 1, 2**63, 2**40, 2**31])
@pytest.mark.parametrize("offset", [8, 16, 24])
def test_huge_declared_counts_cost_neither_time_nor_memory(
    tiny: Path, tmp_path: Path, offset: int, number: int
) -> None:
    damaged = bytearray(tiny.read_bytes())
    struct.pack_into("<Q", damaged, offset, number)
    path = tmp_path / "m.gguf"
    path.write_bytes(damaged)
    before = time.thread_time()
    with pytest.raises(ModelFormatError):
        read_header(path)
    assert time.thread_time() - before < 1.0


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_header_is_read_or_refused_but_never_crashes(tiny: Path, tmp_path: Path, data: st.DataObject) -> None:
    damaged = bytearray(tiny.read_bytes())
    end = min(len(damaged), read_gguf(tiny).data_start)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(4, end - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damaged)
    try:
        assert read_header(path).shape.num_layers > 0
    except ModelError as error:
        assert str(path) in str(error)  # noqa: PT017 - both ways are right, a third is not

"""What a GGUF file says of its model: shape, tokenizer, template, file type. Reads no weights and runs nothing.

Key names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and llama.cpp's `llama-arch.cpp`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kvloom.errors import ModelFormatError, ModelNotFoundError
from kvloom.model.gguf_file import GgufFile, MetadataValue, TensorInfo, read_gguf
from kvloom.model.shape import KVLayer, ModelShape, RopeFields, WeightBytes, expand_pattern

__all__ = ["ModelHeader", "read_header", "shape_of_metadata", "shard_paths"]

MAX_LAYERS = 4096
"""Far above any model: bounds the per-layer lists before a declared count is believed."""

# Windowed attention is part of these architectures, not of their files: every n-th layer is dense, (n, dense first).
# As in llama.cpp's model definitions; a pattern in the file comes first.
WINDOW_PATTERNS: dict[str, tuple[int, bool]] = {
    "afmoe": (4, False), "cohere2": (4, False), "cohere2moe": (4, True), "exaone-moe": (4, False),
    "exaone4": (4, False), "gemma-embedding": (6, False), "gemma2": (2, False), "gemma3": (6, False),
    "gemma3n": (5, False), "gpt-oss": (2, False), "llama4": (4, False), "modern-bert": (3, True), "olmo2": (4, False),
    "plamo3": (8, False), "smallthinker": (4, True),
}  # fmt: skip
DEFAULT_WINDOWS = {"gemma2": 4096, "exaone4": 4096, "exaone-moe": 128, "llama4": 8192}
"""Windows that llama.cpp assumes where the file names none."""
INPUT_TENSORS = ("token_embd", "token_embd_norm", "token_types", "position_embd", "per_layer_token_embd")
"""Tensors that are used before the first layer; llama.cpp keeps them with the processor."""
TOKEN_TABLE, OUTPUT_TABLE = "token_embd.weight", "output.weight"
GEMMA3N_KV_LAYERS = 20
"""Later layers of gemma3n use the KV of earlier ones."""

FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS",
    20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M",
    28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE",
}  # fmt: skip


@dataclass(frozen=True)
class ModelHeader:
    """A GGUF model before it is loaded. `weights` are those of all of its files (`paths`)."""

    paths: tuple[Path, ...]
    name: str
    shape: ModelShape
    file_type: str
    file_bytes: int
    weights: WeightBytes
    num_parameters: int
    tokenizer: str
    chat_template: str | None
    has_tied_embeddings: bool

    @property
    def path(self) -> Path:
        return self.paths[0]

    @property
    def tensor_bytes(self) -> int:
        return self.weights.total_bytes


def shard_paths(path: Path) -> tuple[Path, ...]:
    """All files of a model that was cut into `…-00001-of-00003.gguf`; just the path for any other."""
    found = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf", path.name)
    if found is None:
        return (path,)
    stem, total = found[1], int(found[3])
    shards = tuple(path.with_name(f"{stem}-{i:05d}-of-{total:05d}.gguf") for i in range(1, total + 1))
    for shard in shards:
        if not shard.exists():
            raise ModelNotFoundError(f"{path.name} is one of {total} files of a model; {shard} is missing")
    return shards


def read_header(path: Path) -> ModelHeader:
    """Raises ModelNotFoundError, ModelFormatError. Takes some 0.05 s for a vocabulary of 150,000 tokens."""
    shards = shard_paths(path)
    files = [read_gguf(shard) for shard in shards]
    first = files[0]
    fields = _Fields(first)
    if fields.text("general.type") not in ("", "model"):
        raise ModelFormatError(f"{path} is no language model: its type is {fields.text('general.type')!r}")
    tensors = [tensor for file in files for tensor in file.tensors]
    template = fields.text("tokenizer.chat_template")
    shape = _shape(fields)
    return ModelHeader(
        paths=shards,
        name=fields.text("general.name") or path.stem,
        shape=shape,
        file_type=FILE_TYPES.get(fields.number("general.file_type", -1), "mixed"),
        file_bytes=sum(file.file_bytes for file in files),
        weights=_weights(tensors, shape.num_layers),
        num_parameters=sum(tensor.num_values for tensor in tensors),
        tokenizer=fields.text("tokenizer.ggml.model"),
        chat_template=template or None,
        has_tied_embeddings=all(tensor.name != OUTPUT_TABLE for tensor in tensors),
    )


def shape_of_metadata(metadata: Mapping[str, object], source: str) -> ModelShape:
    """The shape of a model of which somebody has only the metadata of its GGUF, as JSON; `source` is named in errors.

    Raises ModelFormatError where they do not tell it.
    """
    values: dict[str, MetadataValue] = {}
    for key, value in metadata.items():
        if isinstance(value, list):
            values[key] = tuple(item for item in value if isinstance(item, str | int | float))
        elif isinstance(value, str | int | float):
            values[key] = value
    lengths = {key: len(value) for key, value in values.items() if isinstance(value, tuple)}
    return _shape(_Fields(GgufFile(Path(source), 0, 0, values, lengths, (), 0)))


def _weights(tensors: list[TensorInfo], num_layers: int) -> WeightBytes:
    """Tensor bytes by layer; a tensor of no layer counts for the output where it is none of the input's."""
    layers = [0] * num_layers
    sizes = {tensor.name: tensor.size_bytes for tensor in tensors}
    before = behind = 0
    for tensor in tensors:
        block = re.match(r"blk\.(\d+)\.", tensor.name)
        if block is not None and int(block[1]) < num_layers:
            layers[int(block[1])] += tensor.size_bytes
        elif tensor.name.split(".")[0] in INPUT_TENSORS:
            before += tensor.size_bytes
        else:
            behind += tensor.size_bytes
    tied = 0 if OUTPUT_TABLE in sizes else sizes.get(TOKEN_TABLE, 0)
    return WeightBytes(before, tuple(layers), behind, tied)


class _Fields:
    """Typed access to a header's metadata; a value of the wrong type is a damaged file."""

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self.architecture = self.text("general.architecture")
        if not self.architecture:
            raise ModelFormatError(f"{file.path} names no architecture (general.architecture)")

    def get(self, key: str) -> MetadataValue | None:
        """The value of `key`; a key that starts with a dot stands under the architecture's name."""
        return self.file.metadata.get(f"{self.architecture}{key}" if key.startswith(".") else key)

    def fail(self, key: str, value: object) -> ModelFormatError:
        return ModelFormatError(f"{self.file.path}: the value of {key!r} is {value!r}, which cannot be")

    def text(self, key: str) -> str:
        value = self.get(key)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self.fail(key, value)
        return value

    def number(self, key: str, default: int) -> int:
        value = self.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.fail(key, value)
        return value

    def real(self, key: str) -> float | None:
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.fail(key, value)
        return float(value)

    def per_layer(self, key: str, num_layers: int, default: int) -> tuple[int, ...]:
        """One number per layer, where the file gives one for all or a list."""
        value = self.get(key)
        if isinstance(value, tuple):
            numbers = tuple(item for item in value if isinstance(item, int) and item >= 0)
            if len(numbers) != len(value) or len(value) < num_layers:
                raise self.fail(key, value)
            return numbers[:num_layers]
        return (self.number(key, default),) * num_layers


def _shape(fields: _Fields) -> ModelShape:
    num_layers = fields.number(".block_count", 0)
    embedding = fields.number(".embedding_length", 0)
    if not 0 < num_layers <= MAX_LAYERS or embedding <= 0:
        raise ModelFormatError(
            f"{fields.file.path}: a model of {num_layers} layers and embedding size {embedding} cannot be run"
        )
    heads = fields.per_layer(".attention.head_count", num_layers, 0)
    feed_forward = fields.per_layer(".feed_forward_length", num_layers, 0)
    num_experts_used = fields.number(".expert_used_count", 0)
    expert = fields.number(".expert_feed_forward_length", max(feed_forward))
    layers, windowed = _kv_layers(fields, num_layers, embedding, heads)
    window = fields.number(".attention.sliding_window", DEFAULT_WINDOWS.get(fields.architecture, 0))
    return ModelShape(
        architecture=fields.architecture,
        num_layers=num_layers,
        embedding_size=embedding,
        # Experts are as wide as the feed-forward where the file gives them no width of their own.
        feed_forward_size=max(expert * max(1, num_experts_used), *feed_forward),
        num_heads=max(heads),
        vocab_size=fields.file.array_lengths.get("tokenizer.ggml.tokens") or fields.number(".vocab_size", 0),
        context_length=fields.number(".context_length", 0),
        layers=layers,
        rope=_rope(fields),
        has_state=any(
            fields.get(key) is not None for key in (".ssm.state_size", ".wkv.head_size", ".shortconv.l_cache")
        ),
        num_experts_used=num_experts_used,
    ).with_window(windowed, window)


def _kv_layers(
    fields: _Fields, num_layers: int, embedding: int, heads: tuple[int, ...]
) -> tuple[tuple[KVLayer, ...], tuple[bool, ...]]:
    """The layers that keep KV, and which of these attend to a window only."""
    kv_heads = fields.per_layer(".attention.head_count_kv", num_layers, 0)
    if fields.get(".attention.head_count_kv") is None:
        kv_heads = heads
    flags = _window_flags(fields, num_layers)
    if fields.get(".attention.key_length_mla") is not None:
        # MLA caches one compressed row per token; V is a view of it.
        rank, rope_dims = fields.number(".attention.kv_lora_rank", 0), fields.number(".rope.dimension_count", 0)
        return (KVLayer(1, rank + rope_dims, 0),) * num_layers, flags
    own_kv = num_layers - fields.number(".attention.shared_kv_layers", 0)
    if fields.architecture == "gemma3n":
        own_kv = min(own_kv, GEMMA3N_KV_LAYERS)
    layers: list[KVLayer] = []
    windowed: list[bool] = []
    for layer in range(min(num_layers, own_kv)):
        if kv_heads[layer] == 0:
            continue
        suffix = "_swa" if flags[layer] and fields.get(".attention.key_length_swa") is not None else ""
        default_dim = embedding // max(1, heads[layer])
        k_dim = fields.number(f".attention.key_length{suffix}", default_dim)
        v_dim = fields.number(f".attention.value_length{suffix}", default_dim)
        layers.append(KVLayer(kv_heads[layer], k_dim, v_dim))
        windowed.append(flags[layer])
    return tuple(layers), tuple(windowed)


def _window_flags(fields: _Fields, num_layers: int) -> tuple[bool, ...]:
    value = fields.get(".attention.sliding_window_pattern")
    if isinstance(value, tuple):
        if len(value) < num_layers:
            raise fields.fail(".attention.sliding_window_pattern", value)
        return tuple(bool(item) for item in value[:num_layers])
    known = WINDOW_PATTERNS.get(fields.architecture)
    if known is None:
        return (False,) * num_layers
    period, dense_first = known
    return expand_pattern(
        fields.number(".attention.sliding_window_pattern", period), num_layers, dense_first=dense_first
    )


def _rope(fields: _Fields) -> RopeFields:
    return RopeFields(
        freq_base=fields.real(".rope.freq_base"),
        num_dims=fields.number(".rope.dimension_count", 0) or None,
        scaling=fields.text(".rope.scaling.type") or None,
        factor=fields.real(".rope.scaling.factor"),
        original_context=fields.number(".rope.scaling.original_context_length", 0) or None,
    )

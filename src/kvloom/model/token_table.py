"""A model's token table: one row of numbers for each token, read out of its GGUF file as rows are asked for.

The file is mapped and stays packed: what is asked for is unpacked, nothing else. Knows no text and no tokenizer.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvloom.errors import ModelFormatError
from kvloom.model.gguf_file import TensorInfo, read_gguf
from kvloom.model.header import TOKEN_TABLE, shard_paths
from kvloom.types import F32Array

__all__ = ["TokenTable"]


class TokenTable:
    """Safe for several threads."""

    def __init__(self, path: Path) -> None:
        """Raises ModelNotFoundError, ModelFormatError where the file has no table, or one that cannot be unpacked."""
        self.path, start, info = _found(path)
        self.width, self.num_tokens = info.dims
        self._type_name = info.type_name
        try:
            packed = np.memmap(self.path, np.uint8, mode="r", offset=start, shape=(info.size_bytes,))
        except (OSError, ValueError) as error:
            raise ModelFormatError(f"{self.path} cannot be read: {error}") from error
        self._packed = packed.reshape(self.num_tokens, -1)
        self.rows(np.zeros(1, np.int64))  # a type that cannot be unpacked shows here and not at the first text

    def rows(self, tokens: npt.NDArray[np.int64]) -> F32Array:
        """The rows of these tokens, (len(tokens), width). Ids that the table does not have are IndexErrors."""
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        packed = self._packed[tokens]
        try:
            rows: F32Array = dequantize(packed, GGMLQuantizationType[self._type_name])
        except (KeyError, NotImplementedError) as error:
            raise ModelFormatError(
                f"the token table of {self.path} is packed as {self._type_name}, which cannot be unpacked here"
            ) from error
        return np.asarray(rows, np.float32).reshape(len(tokens), self.width)


def _found(path: Path) -> tuple[Path, int, TensorInfo]:
    """The file of the model that holds the table, where it begins there, and what it is."""
    for shard in shard_paths(path):
        file = read_gguf(shard)
        for tensor in file.tensors:
            if tensor.name == TOKEN_TABLE and len(tensor.dims) == 2:
                return shard, file.data_start + tensor.offset, tensor
    raise ModelFormatError(f"{path} has no token table ({TOKEN_TABLE})")

"""Reads small float tensors (RoPE factors) out of a GGUF file, which llama.cpp does not give out.

It knows where a tensor lies, and not what it is for.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Collection
from pathlib import Path

from kvloom.errors import ModelError
from kvloom.model.gguf_file import read_gguf

__all__ = ["read_float_tensors"]

_MAX_VALUES = 1 << 16
"""No table of RoPE factors is larger; a corrupt header must not make us read gigabytes."""
_logger = logging.getLogger(__name__)


def read_float_tensors(path: Path, names: Collection[str]) -> dict[str, tuple[float, ...]]:
    """The F32 tensors among `names` that the file holds; {} where it cannot be read."""
    found: dict[str, tuple[float, ...]] = {}
    try:
        gguf = read_gguf(path)
        with path.open("rb") as file:
            for tensor in gguf.tensors:
                if tensor.name in names and tensor.type_name == "F32" and tensor.num_values <= _MAX_VALUES:
                    file.seek(gguf.data_start + tensor.offset)
                    data = file.read(tensor.size_bytes)
                    found[tensor.name] = struct.unpack(f"<{tensor.num_values}f", data)
    except (OSError, ModelError, struct.error) as error:
        _logger.warning("the tensors of %s cannot be read: %s", path, error)
        return {}
    return found

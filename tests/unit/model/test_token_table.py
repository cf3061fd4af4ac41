"""A model's token table, read out of files that the `gguf` library wrote, in several packings."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from kvloom.errors import ModelFormatError, ModelNotFoundError
from kvloom.model.token_table import TokenTable
from kvloom.types import F32Array

NUM_TOKENS, WIDTH = 40, 64


def values() -> F32Array:
    return np.random.default_rng(3).standard_normal((NUM_TOKENS, WIDTH)).astype(np.float32)


def write(path: Path, packing: gguf.GGMLQuantizationType | None, name: str = "token_embd.weight") -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    if packing is None:
        writer.add_tensor(name, values())
    else:
        writer.add_tensor(name, gguf.quants.quantize(values(), packing), raw_dtype=packing)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("packing", "most_off"),
    [
        (None, 0.0),
        (gguf.GGMLQuantizationType.F16, 0.01),
        (gguf.GGMLQuantizationType.Q8_0, 0.05),
        (gguf.GGMLQuantizationType.Q5_0, 0.3),
    ],
)
def test_rows_are_those_that_were_written(
    packing: gguf.GGMLQuantizationType | None, most_off: float, tmp_path: Path
) -> None:
    table = TokenTable(write(tmp_path / "m.gguf", packing))
    assert (table.num_tokens, table.width) == (NUM_TOKENS, WIDTH)
    asked = np.array([7, 0, 39, 7], np.int64)
    rows = table.rows(asked)
    assert rows.dtype == np.float32
    assert np.abs(rows - values()[asked]).max() <= most_off


def test_a_file_without_a_table_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=r"has no token table \(token_embd.weight\)"):
        TokenTable(write(tmp_path / "m.gguf", None, "something.weight"))


def test_no_file_and_no_model_are_errors_of_ours(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        TokenTable(tmp_path / "gone.gguf")
    (tmp_path / "text.gguf").write_text("no model")
    with pytest.raises(ModelFormatError):
        TokenTable(tmp_path / "text.gguf")

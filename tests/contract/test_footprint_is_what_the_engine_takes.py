"""The memory forecast against the sizes that llama.cpp itself reports when our driver opens a model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kvloom.model.footprint import CacheSpec, footprint
from kvloom.model.header import read_header
from kvloom.types import KVType

MIB = 1024**2
ALLOWED_BYTES = 16 * MIB

# A process of its own: llama.cpp's log can be taken over once, and its memory goes back for sure.
LOAD = """
import json, logging, sys
from pathlib import Path
lines = []
class Keep(logging.Handler):
    def emit(self, record): lines.append(record.getMessage())
logging.getLogger("kvloom.engine.llamacpp.native").addHandler(Keep())
logging.getLogger("kvloom.engine.llamacpp.native").setLevel(logging.DEBUG)
from kvloom.engine.llamacpp.load import LoadSettings, NativeModel
from kvloom.types import KVType
path, cells, k_type, v_type, sequences = sys.argv[1:]
native = NativeModel(LoadSettings(Path(path), int(cells), KVType(k_type), KVType(v_type), int(sequences)))
native.close()
print(json.dumps([line for line in lines if "buffer size" in line]))
"""


def engine_bytes(path: Path, spec: CacheSpec) -> dict[str, float]:
    """Bytes by kind (model, KV, compute, output), as llama.cpp logs them."""
    arguments = [str(path), str(spec.num_cells), spec.k_type.value, spec.v_type.value, str(spec.num_sequences - 1)]
    done = subprocess.run([sys.executable, "-c", LOAD, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    sizes: dict[str, float] = {}
    for line in json.loads(done.stdout):
        found = re.search(r"(model|KV|compute|output) buffer size =\s*([\d.]+) MiB", line)
        if found is not None:
            sizes[found[1]] = sizes.get(found[1], 0.0) + float(found[2]) * MIB
    return sizes


@pytest.mark.parametrize(
    "spec",
    [
        CacheSpec(num_cells=2048),
        CacheSpec(num_cells=8192, k_type=KVType.Q8_0, v_type=KVType.Q8_0),
        CacheSpec(num_cells=4096, k_type=KVType.F16, v_type=KVType.Q4_0, num_sequences=9),
        CacheSpec(num_cells=6000, num_sequences=129),
    ],
    ids=["small", "q8_0", "mixed-few-sequences", "many-sequences"],
)
@pytest.mark.parametrize("model", ["smollm2_path", "qwen_path"])
def test_the_forecast_is_within_16_mib(request: pytest.FixtureRequest, model: str, spec: CacheSpec) -> None:
    path: Path = request.getfixturevalue(model)
    forecast, real = footprint(read_header(path), spec), engine_bytes(path, spec)
    assert forecast.kv_bytes == pytest.approx(real["KV"], abs=0.01 * MIB)
    assert forecast.weights_bytes == pytest.approx(real["model"], abs=1 * MIB)
    assert forecast.output_bytes == pytest.approx(real["output"], abs=1 * MIB)
    assert abs(forecast.total_bytes - sum(real.values())) < ALLOWED_BYTES

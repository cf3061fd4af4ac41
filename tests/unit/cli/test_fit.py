"""`kvloom fit`: the forecast as a person and a program get it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from kvloom.config import load_settings
from kvloom.errors import EngineMemoryError
from kvloom.memory.sizing import Demand, Room, SizingLimits, auto_size
from kvloom.model.header import read_header
from kvloom.session.pool import num_cells
from kvloom.session.sizing import demand_of, window_for
from tests.hollow_gguf import HollowModel, write_hollow
from tests.unit.cli.conftest import Kvloom

GB, GIB = 10**9, 1024**3
LLAMA_3_1_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shape of Qwen2.5-0.5B, without its weights."""
    model = HollowModel("qwen2", 896, 4864, 24, 14, 2, 151936, is_tied=True, has_bias=True, context=32768)
    return write_hollow(tmp_path_factory.mktemp("hollow") / "qwen.gguf", model)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_1_8B))
    return tmp_path


def test_a_named_memory_is_used_in_place_of_what_is_free(kvloom: Kvloom, qwen: Path) -> None:
    found = kvloom("fit", qwen, "--context", "4096", "--memory", "8GB", "--json", loom=False).document
    assert found["memory_bytes"] == [8 * GB]
    assert found["free_bytes"] == 8 * GB
    assert found["budget_bytes"] == 8 * GB * 8 // 10 - 1  # below the guard's soft limit
    assert found["fits"] is True
    assert found["kv_bytes"] == 12_288 * found["num_cells"]


def test_what_does_not_fit_says_what_lacks_by_its_exit_code_too(kvloom: Kvloom, qwen: Path) -> None:
    ran = kvloom("fit", qwen, "--context", "32768", "--memory", "1GiB", loom=False)
    assert (ran.code, ran.err) == (1, "")
    assert "it lacks" in ran.out
    assert kvloom("fit", qwen, "--context", "32768", "--memory", "8GB", loom=False).code == 0
    found = kvloom("fit", qwen, "--context", "32768", "--memory", "1GiB", "--json", loom=False).document
    assert found["fits"] is False
    assert found["total_bytes"] > GIB
    assert "32,768" in found["refusal"]


def test_what_fits_but_passes_the_soft_limit_says_so(kvloom: Kvloom, qwen: Path) -> None:
    ran = kvloom("fit", qwen, "--context", "4096", "--memory", "1150MiB", loom=False)
    assert "soft limit" in ran.out
    found = kvloom("fit", qwen, "--context", "4096", "--memory", "1150MiB", "--json", loom=False).document
    assert found["fits"] is False
    assert found["refusal"] == ""


def test_the_largest_window_fits_and_the_next_step_does_not(kvloom: Kvloom, llama: Path) -> None:
    given = ("--memory", "24GB", "--json")
    most = kvloom("fit", llama, "--max", *given, loom=False).document["max_context"]
    assert most % 256 == 0
    assert 2048 < most < 131072
    assert kvloom("fit", llama, "--context", str(most), *given, loom=False).document["fits"] is True
    assert kvloom("fit", llama, "--context", str(most + 256), *given, loom=False).document["fits"] is False
    quantized = kvloom("fit", llama, "--max", "--kv-type", "q4_0", *given, loom=False).document["max_context"]
    assert quantized > most


def test_no_window_that_fits_is_told_as_none(kvloom: Kvloom, llama: Path) -> None:
    ran = kvloom("fit", llama, "--max", "--memory", "4GB", loom=False)
    assert ran.code == 1
    assert "none fits" in ran.out
    assert kvloom("fit", llama, "--max", "--memory", "4GB", "--json", loom=False).document["max_context"] == 0


def test_the_largest_window_is_an_answer_where_the_one_that_was_asked_for_does_not_fit(
    kvloom: Kvloom, llama: Path
) -> None:
    ran = kvloom("fit", llama, "--context", "128k", "--max", "--memory", "24GB", "--json", loom=False)
    assert (ran.code, ran.document["fits"], ran.document["context"]) == (0, False, 131072)
    assert ran.document["max_context"] > 2048


def test_a_window_may_be_given_in_thousands(kvloom: Kvloom, qwen: Path) -> None:
    for text in ("16k", "16K", "16384", "16,384", "16_384"):
        found = kvloom("fit", qwen, "--context", text, "--memory", "8GB", "--json", loom=False).document
        assert found["context"] == 16384, text


@pytest.mark.parametrize("text", ["16q", "k", "1.5k", "-4", "", "٣"])
def test_a_window_that_is_no_number_names_what_was_given_and_the_forms(kvloom: Kvloom, qwen: Path, text: str) -> None:
    ran = kvloom("fit", qwen, f"--context={text}", "--json", loom=False)
    assert ran.code == 2
    said = json.loads(ran.err)["error"]["message"]
    assert f"(16384, 16,384, 16k), got {text!r}" in said
    assert "--context" in said


def test_the_automatic_window_is_the_one_that_sizing_chooses(
    kvloom: Kvloom, qwen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVLOOM_CONTEXT_AUTO", "true")
    for size in ("1700MiB", "8GB"):
        found = kvloom("fit", qwen, "--memory", size, "--json", loom=False).document
        header = read_header(qwen)
        demand = Demand(header.shape, header.tensor_bytes, num_cells=num_cells)
        [total] = found["memory_bytes"]
        sizing = auto_size(demand, Room(total, total), SizingLimits())
        assert found["context"] == sizing.context
        assert found["reason"] == sizing.reason
        assert found["total_bytes"] == sizing.needed_bytes


def test_an_automatic_window_where_not_even_the_minimum_fits_is_the_minimum_and_refused(
    kvloom: Kvloom, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVLOOM_CONTEXT_AUTO", "true")
    found = kvloom("fit", llama, "--memory", "8GB", "--json", loom=False).document
    assert (found["context"], found["fits"]) == (2048, False)
    assert "not even a window of 2,048 tokens" in found["refusal"]


def test_a_window_beyond_the_trained_length_is_warned_of(kvloom: Kvloom, qwen: Path) -> None:
    ran = kvloom("fit", qwen, "--context", "40000", "--memory", "16GB", loom=False)
    assert re.search(r"^warning .* trained for 32,768 tokens, 40,000 .* RoPE", ran.out, re.MULTILINE)
    found = kvloom("fit", qwen, "--context", "40000", "--memory", "16GB", "--json", loom=False).document
    assert "32,768" in found["warning"]
    for memory in (("--memory", "600MB"), ("--memory", "8GB,8GB")):
        found = kvloom("fit", qwen, "--context", "40000", *memory, "--json", loom=False).document
        assert "32,768" in found["warning"], memory
    assert kvloom("fit", qwen, "--context", "32768", "--memory", "16GB", "--json", loom=False).document["warning"] == ""


def test_rope_scaling_stretches_the_window_as_it_does_at_load(
    kvloom: Kvloom, qwen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVLOOM_ROPE__FREQ_SCALE", "0.5")
    monkeypatch.setenv("KVLOOM_CONTEXT_TARGET", "65536")
    found = kvloom("fit", qwen, "--max", "--memory", "64GB", "--json", loom=False).document
    assert (found["context"], found["max_context"], found["trained_context"]) == (65536, 65536, 32768)
    ran = kvloom("fit", qwen, "--memory", "64GB", loom=False)
    assert "trained for 32,768, stretched to 65,536 by RoPE scaling" in ran.out
    assert "answers badly" not in ran.out


def test_a_target_taken_without_asking_memory_is_the_one_that_a_chat_takes(
    kvloom: Kvloom, qwen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVLOOM_CONTEXT_AUTO", "false")
    monkeypatch.setenv("KVLOOM_CONTEXT_TARGET", "100000")
    found = kvloom("fit", qwen, "--memory", "8GB", "--json", loom=False).document
    settings = load_settings()
    header = read_header(qwen)
    demand = demand_of(header.shape, header.weights.total_bytes, settings)
    assert found["context"] == window_for(settings, demand, Room(8 * GB, 8 * GB)).context == 32768
    too_large = kvloom("fit", qwen, "--memory", "600MB", "--json", loom=False).document
    assert too_large["context"] == 32768
    assert "32,768" in too_large["refusal"]
    with pytest.raises(EngineMemoryError, match="32,768"):
        window_for(settings, demand, Room(600_000_000, 600_000_000))


def test_layers_are_spread_over_the_gpus_in_proportion(kvloom: Kvloom, llama: Path) -> None:
    found = kvloom(
        "fit", llama, "--context", "8192", "--memory", "8GB,24GB", "--json", loom=False
    ).document  # fmt: skip
    first, second = found["devices"]
    assert (first["num_layers"], second["num_layers"]) == (9, 23)
    assert first["kv_bytes"] + second["kv_bytes"] == found["kv_bytes"]
    held: int = sum(part["weights_bytes"] for part in (first, second, found["host"]))
    assert held == found["weights_bytes"]
    for part in (first, second):
        assert part["total_bytes"] == part["weights_bytes"] + part["kv_bytes"] + part["buffer_bytes"]
    assert first["fits"] is second["fits"] is found["fits"] is True


def test_several_gpus_need_no_memory_to_be_forecast(
    kvloom: Kvloom, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing_here(monkeypatch)
    ran = kvloom("fit", llama, "--gpus", "2", "--context", "4096", loom=False)
    assert "GPU 1" in ran.out
    found = kvloom("fit", llama, "--gpus", "2", "--context", "4096", "--json", loom=False).document
    assert [part["num_layers"] for part in found["devices"]] == [17, 15]
    assert found["fits"] is None
    assert kvloom("fit", llama, "--gpus", "2", "--max", loom=False).code == 1


def test_one_size_is_that_of_every_gpu(kvloom: Kvloom, llama: Path) -> None:
    found = kvloom("fit", llama, "--gpus", "3", "--memory", "12GB", "--max", "--json", loom=False).document
    assert found["memory_bytes"] == [12 * GB] * 3
    assert found["max_context"] > 8192


def test_without_a_probe_that_answers_the_forecast_is_given_without_a_verdict(
    kvloom: Kvloom, qwen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing_here(monkeypatch)
    found = kvloom("fit", qwen, "--context", "4096", "--json", loom=False).document
    assert found["fits"] is found["free_bytes"] is None
    assert found["total_bytes"] > 0


def nothing_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of which nothing can be read."""
    from kvloom.memory import probe
    from kvloom.memory.reading import MemoryPicture

    monkeypatch.setattr(probe, "read_memory", lambda _=None: MemoryPicture())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--memory", "8"), "name the unit"),
        (("--memory", "lots"), "is no size"),
        (("--memory", "8GB,"), "is no size"),
        (("--memory", "-8GB"), "is no size"),
        (("--memory", "8GB,8GB", "--gpus", "3"), "contradict"),
        (("--gpus", "0"), "--gpus"),
        (("--context", "12"), "context"),
        (("--kv-type", "q3"), "kv_type"),
    ],
)
def test_options_that_make_no_sense_are_refused_with_the_reason(
    kvloom: Kvloom, qwen: Path, words: tuple[str, ...], says: str
) -> None:
    ran = kvloom("fit", qwen, *words, loom=False)
    assert ran.code != 0
    assert says in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("change", [{"kv_lora_rank": 512}, {"hidden_size": 0}])
def test_a_config_that_cannot_be_counted_says_so(kvloom: Kvloom, llama: Path, change: dict[str, Any]) -> None:
    (llama / "config.json").write_text(json.dumps(LLAMA_3_1_8B | change))
    ran = kvloom("fit", llama, loom=False)
    assert ran.code == 1
    assert "config.json" in ran.err or str(llama) in ran.err

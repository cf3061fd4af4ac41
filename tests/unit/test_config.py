from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kvloom.config import DiskCompression, Paths, create_home, default_threads, load_settings, paths
from kvloom.errors import ConfigError, StoreReadOnlyError
from kvloom.types import Fidelity, KVType


def write_config(where: Paths, text: str) -> Path:
    where.config_file.parent.mkdir(parents=True, exist_ok=True)
    where.config_file.write_text(text, encoding="utf-8")
    return where.config_file


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even what all other tests run with."""
    monkeypatch.delenv("KVLOOM_THREADS")


def test_without_anything_set_the_defaults_hold(where: Paths) -> None:
    settings = load_settings()
    assert settings.model == "qwen2.5-coder-0.5b"
    assert settings.fidelity is Fidelity.SPLICE
    assert settings.k_type is KVType.F16
    assert settings.v_type is KVType.F16
    assert settings.disk_compression is DiskCompression.OFF
    assert settings.num_threads == default_threads() >= 1


def test_the_command_line_wins_over_the_environment_over_the_file_over_the_default(
    where: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_settings().context is None
    write_config(where, "context: 1000\n")
    assert load_settings().context == 1000
    monkeypatch.setenv("KVLOOM_CONTEXT", "2000")
    assert load_settings().context == 2000
    assert load_settings({"context": 3000}).context == 3000
    assert load_settings({"context": None}).context == 2000


def test_a_number_of_tokens_may_be_written_in_thousands(where: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(where, "context: 16k\nreserve_tokens: 1,500\ncompression:\n  preserve_recent: 2k\n")
    settings = load_settings()
    assert (settings.context, settings.reserve_tokens, settings.compression.preserve_recent) == (16384, 1500, 2048)
    monkeypatch.setenv("KVLOOM_CONTEXT", "8k")
    monkeypatch.setenv("KVLOOM_OVERFLOW__WINDOW_TOKENS", "2K")
    monkeypatch.setenv("OLLM_CONTEXT_SIZE", "4k")
    settings = load_settings()
    assert (settings.context, settings.context_target, settings.overflow.window_tokens) == (8192, 4096, 2048)
    assert load_settings({"context": "2k"}).context == 2048


def test_what_is_no_number_of_tokens_names_the_place_what_was_given_and_the_forms(
    where: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_config(where, "reserve_tokens: 16\ncontext: 16 kilo\n")
    with pytest.raises(ConfigError, match=r"line 2: `context`: expected .*16384, 16,384, 16k.*, got '16 kilo'") as told:
        load_settings()
    assert str(file) in str(told.value)
    monkeypatch.setenv("KVLOOM_CONTEXT", "0k")
    with pytest.raises(ConfigError, match=r"KVLOOM_CONTEXT: `context`: .*64"):
        load_settings()


def test_our_own_variables_win_over_those_of_ollm(where: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(where, "context_target: 1000\n")
    monkeypatch.setenv("OLLM_CONTEXT_SIZE", "1500")
    assert load_settings().context_target == 1500
    monkeypatch.setenv("KVLOOM_CONTEXT_TARGET", "2000")
    assert load_settings().context_target == 2000


def test_groups_are_merged_key_by_key_over_all_sources(where: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(where, "sampling:\n  temperature: 0.5\n  top_k: 7\n  seed: 3\n")
    monkeypatch.setenv("KVLOOM_SAMPLING__TOP_K", "9")
    params = load_settings({"sampling": {"seed": 4, "top_p": None}}).sampling.params()
    assert (params.temperature, params.top_k, params.seed, params.top_p) == (0.5, 9, 4, None)


def test_variables_of_ollm_are_understood(where: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLM_CONTEXT_SIZE", "4096")
    monkeypatch.setenv("OLLM_CONTEXT_AUTO", "true")
    monkeypatch.setenv("OLLM_CONTEXT_VRAM_BUFFER", "256")
    monkeypatch.setenv("OLLM_KV_CACHE_TYPE", "q8_0")
    settings = load_settings()
    assert settings.context_target == 4096
    assert settings.context_auto is True
    assert settings.memory_reserve_bytes == 256 * 1024**2
    assert settings.k_type is KVType.Q8_0
    assert settings.v_type is KVType.Q8_0


def test_k_and_v_may_have_types_of_their_own(where: Paths) -> None:
    settings = load_settings({"kv_type": "q8_0", "kv_type_v": "q4_0"})
    assert (settings.k_type, settings.v_type) == (KVType.Q8_0, KVType.Q4_0)


def test_sizes_may_carry_a_unit(where: Paths) -> None:
    write_config(where, "ram_budget_bytes: 3GiB\ndisk_budget_bytes: 1000\n")
    settings = load_settings()
    assert settings.ram_budget_bytes == 3 * 1024**3
    assert settings.disk_budget_bytes == 1000


@pytest.mark.parametrize(
    ("text", "line", "hint"),
    [
        ("model: x\ncontxt: 1\n", 2, "`context`"),
        ("# a comment\n\nsampling:\n  seed: 1\n  temprature: 1\n", 5, "`temperature`"),
        ("rope:\n  freq_bas: 1\n", 2, "`freq_base`"),
        ("context: many\n", 1, "'many'"),
        ("context: 8192\nfidelity: exactly\n", 2, "'exactly'"),
        ("context: 8192\nram_budget_bytes: lots\n", 2, "'lots'"),
        ("context: 8192\nfidelity: splise\n", 2, "did you mean `splice`?"),
        ("sampling: 3\n", 1, "`sampling` is a group; expected temperature, top_k"),
        ("guard:\n  soft: 0.5\n  critcal: 0.9\n", 3, "did you mean `critical`?"),
        ("overflow:\n  policy: fifoo\n", 2, "did you mean `fifo`?"),
        ("compression:\n  strategy: sumarize\n", 2, "did you mean `summarize`?"),
        ("compression: lossless\n", 1, "`compression` is a group; expected enabled, threshold"),
        ("snapshots:\n\n  max_count: -1\n", 3, "greater than or equal to 0"),
        ("guard:\n  2: 1\n", 2, "there is no setting `guard.2`; valid names: critical"),
        ("guard:\n  hard: 0.7\n", 2, "soft < hard < critical must hold, got 0.8 / 0.7 / 0.95"),
        ("guard:\n  soft: 0.1\n  hysteresis: 0.2\n", 3, "got 0.2 and 0.1"),
        ("context_max: 1024\n", 1, "(2048 tokens) is larger than the largest (1024)"),
        ("model: m\ncontext_min: 4096\ncontext_max: 2048\n", 3, "(4096 tokens) is larger than the largest (2048)"),
        ("context: [1\n", 2, "YAML"),
        ("- context\n", 1, "name: value"),
        ("blend_budget: 0\n", 1, "greater than 0"),
    ],
)
def test_a_mistake_in_the_file_names_file_line_and_what_is_valid(where: Paths, text: str, line: int, hint: str) -> None:
    file = write_config(where, text)
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert f"{file}, line {line}" in str(caught.value)
    assert hint in str(caught.value)


def test_several_mistakes_are_told_at_once(where: Paths) -> None:
    write_config(where, "contxt: 1\nthreads: 0\n")
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert "line 1" in str(caught.value)
    assert "line 2" in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value", "hint"),
    [
        ("KVLOOM_CONTEX", "1", "KVLOOM_CONTEXT"),
        ("KVLOOM_SAMPLING__TEMP", "1", "KVLOOM_SAMPLING__TEMPERATURE"),
        ("KVLOOM_CONTEXT", "big", "'big'"),
        ("KVLOOM_SAMPLING__TOP_P", "2", "less than or equal to 1"),
        ("OLLM_KV_CACHE_TYPE", "q5", "'q5'"),
        ("KVLOOM_SAMPLING", "no json", "cannot be read"),
        ("KVLOOM_OVERFLOW__POLICY", "stopp", "did you mean `stop`?"),
        ("KVLOOM_GUARD__SOFFT", "0.5", "KVLOOM_GUARD__SOFT"),
        ("KVLOOM_GUARD__SOFT", "0.97", "soft < hard < critical"),
        ("KVLOOM_COMPRESSION__MIN_GAIN", "1", "less than 1"),
        ("OLLM_CONTEXT_SIZE", "1", "greater than or equal to 64"),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable(
    where: Paths, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, hint: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as caught:
        load_settings()
    if hint != "cannot be read":
        assert variable in str(caught.value)
    assert hint in str(caught.value)


def test_a_mistake_on_the_command_line_names_the_option(where: Paths) -> None:
    write_config(where, "kv_type: f16\n")
    with pytest.raises(ConfigError, match=r"option --kv-type: .*'q9'"):
        load_settings({"kv_type": "q9"})


def test_an_empty_file_or_variable_counts_as_not_set(where: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(where, "# nothing\n")
    monkeypatch.setenv("KVLOOM_CONTEXT", "")
    assert load_settings().context is None


def test_a_file_that_is_not_text_is_refused(where: Paths) -> None:
    write_config(where, "").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_settings()


def test_a_given_home_brings_its_own_config_file(where: Paths, tmp_path: Path) -> None:
    write_config(where, "context: 1000\n")
    write_config(paths(tmp_path / "other"), "context: 2000\n")
    assert load_settings().context == 1000
    assert load_settings(home=tmp_path / "other").context == 2000
    assert load_settings(home=tmp_path / "third").context is None
    write_config(paths(tmp_path / "other"), "contex: 2000\n")
    with pytest.raises(ConfigError, match=r"other/config\.yaml, line 1"):
        load_settings(home=tmp_path / "other")


def test_kvloom_home_moves_home_and_config_but_not_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KVLOOM_MODELS", raising=False)
    monkeypatch.delenv("KVLOOM_HOME", raising=False)
    before = paths()
    monkeypatch.setenv("KVLOOM_HOME", str(tmp_path / "elsewhere"))
    after = paths()
    assert after.home == tmp_path / "elsewhere"
    assert after.config_file == tmp_path / "elsewhere" / "config.yaml"
    assert after.models_dir == before.models_dir
    assert paths(tmp_path / "given").home == tmp_path / "given"


def test_xdg_folders_are_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform == "darwin":
        return
    for variable in ("KVLOOM_HOME", "KVLOOM_MODELS"):
        monkeypatch.delenv(variable, raising=False)
    for kind in ("DATA", "CONFIG", "CACHE"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / kind))
    found = paths()
    assert found.home == tmp_path / "DATA" / "kvloom"
    assert found.config_file == tmp_path / "CONFIG" / "kvloom" / "config.yaml"
    assert found.models_dir == tmp_path / "CACHE" / "kvloom" / "models"


def test_a_home_is_for_its_owner_alone(where: Paths) -> None:
    home = create_home(where)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert create_home(where) == home


def test_a_home_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreReadOnlyError, match="KVLOOM_HOME"):
        create_home(paths(tmp_path / "file" / "home"))


def test_threads_follow_the_cores_that_this_process_may_use() -> None:
    if not hasattr(os, "sched_setaffinity"):
        return
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from kvloom.config import default_threads; print(default_threads())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


@pytest.mark.parametrize("value", [0, -5, 1.5, "x", [], {"a": 1}])
def test_a_wrong_override_names_its_option(where: Paths, value: Any) -> None:
    with pytest.raises(ConfigError, match="--context"):
        load_settings({"context": value})

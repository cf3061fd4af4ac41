"""Registry files: shapes that are taken, what fills what is not said, and mistakes told with file, line and name."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from kvloom.config import load_settings
from kvloom.errors import ConfigError
from kvloom.server.presets import PRESETS
from kvloom.server.registry_file import Registry, read_registry, single
from kvloom.types import KVType

MIB = 1024**2


def registry(folder: Path, text: str, name: str = "models.yaml") -> Registry:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return read_registry(path)


def mistake(folder: Path, text: str, name: str = "models.yaml") -> str:
    with pytest.raises(ConfigError) as caught:
        registry(folder, text, name)
    return str(caught.value)


def test_a_list_a_mapping_and_one_model_alone_are_the_same(tmp_path: Path) -> None:
    texts = (
        "models:\n- id: one\n  context: 512\n",
        "models:\n  one:\n    context: 512\n",
        "- id: one\n  context: 512\n",
        "id: one\ncontext: 512\n",
    )
    found = [registry(tmp_path, text).models for text in texts]
    assert all(len(models) == 1 for models in found)
    assert {(models[0].entry, models[0].name) for models in found} == {(found[0][0].entry, "one")}


def test_the_order_of_the_file_stays_and_the_first_is_the_default(tmp_path: Path) -> None:
    assert registry(tmp_path, "models:\n  b:\n  a:\n  c: {}\n").ids == ["b", "a", "c"]


def test_models_are_found_by_id_first_then_by_alias(tmp_path: Path) -> None:
    found = registry(tmp_path, "- {id: one, aliases: [gpt-4o-mini, uno]}\n- {id: user/repo:Q4_K_M}\n")
    for name in ("one", "gpt-4o-mini", "uno"):
        model = found.find(name)
        assert model is not None
        assert model.id == "one"
    assert found.find("user/repo:Q4_K_M") is found.models[1]
    assert found.find("One") is None


SEED = [
    {
        "id": "lfm2.5-1.2b-f16",
        "max_position_embeddings": 2048,
        "tier_config": {"max_ram_mb": 3000, "kv_cache_ram_mb": 512},
    },
    {
        "id": "hymt-1.5-7b-q4km",
        "max_position_embeddings": 4096,
        "sliding_window": 4096,
        "tier_config": {"max_ram_mb": 6000, "kv_cache_ram_mb": 1024},
    },
    {
        "id": "llama-3.3-70b",
        "max_position_embeddings": 32768,
        "tier_config": {
            "max_ram_mb": 48000,
            "kv_cache_ram_mb": 8192,
            "max_ssd_mb": 16384,
            "enable_distributed": True,
        },
    },
]


@pytest.mark.parametrize("indent", [None, 4, "\t"])
def test_the_shape_with_a_tier_config_is_taken_from_json(
    tmp_path: Path, indent: int | str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = registry(tmp_path, json.dumps(SEED, indent=indent), "config.json")
    small, _, large = found.models
    assert (small.entry.limit_bytes("max_ram_mb"), small.entry.limit_bytes("max_ssd_mb")) == (3000 * MIB, None)
    assert large.entry.limit_bytes("kv_cache_ram_mb") == 8192 * MIB
    settings = large.entry.settings(load_settings({}))
    assert settings.context_max == 32768
    assert settings.model_disk_bytes == 16384 * MIB
    # A window of the attention is no policy of ours.
    assert found.models[1].entry.settings(load_settings({})).overflow.policy is None
    assert "enable_distributed" in caplog.text


def test_one_model_of_that_shape_alone_is_taken(tmp_path: Path) -> None:
    assert registry(tmp_path, json.dumps(SEED[0]), "one.json").ids == ["lfm2.5-1.2b-f16"]


def test_a_preset_lies_between_the_settings_and_the_entry(tmp_path: Path) -> None:
    base = load_settings({"kv_type": "q4_0", "kv_type_k": "q8_0", "context": 999, "ram_budget_bytes": 5})
    entries = registry(tmp_path, "- {id: a}\n- {id: b, preset: long}\n- {id: c, preset: long, kv_type: f16}\n").models
    plain, preset, own = (one.entry.settings(base) for one in entries)
    assert (plain.k_type, plain.v_type, plain.context) == (KVType.Q8_0, KVType.Q4_0, 999)
    assert (preset.k_type, preset.v_type, preset.context) == (KVType.Q8_0, KVType.Q8_0, None)
    assert preset.ram_budget_bytes == PRESETS["long"]["ram_budget_bytes"]
    assert (own.k_type, own.v_type) == (KVType.F16, KVType.F16)


def test_every_preset_holds_settings_that_there_are_and_that_agree() -> None:
    for values in PRESETS.values():
        load_settings(dict(values))  # raises for a name or a value that is none


def test_a_policy_is_the_policy_of_the_models_sessions(tmp_path: Path) -> None:
    entry = registry(tmp_path, "- {id: a, policy: fifo}\n").models[0].entry
    assert entry.settings(load_settings({})).overflow.policy == "fifo"


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_path_is_relative_to_the_registry_and_may_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    file = tmp_path / "m" / "weights.gguf"
    file.touch()
    (tmp_path / "m" / "mmproj-x.gguf").touch()
    (tmp_path / "m" / "config.json").write_text("{}")
    for path in ("m", "m/weights.gguf", str(file)):
        (found,) = registry(tmp_path, f"- {{id: a, path: '{path}'}}\n").models
        assert found.name == str(file)
        assert found.config == tmp_path / "m" / "config.json"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ((), "line 2: there is no GGUF in"),
        (("config.json",), "convert it first"),
        (("a.gguf", "b.gguf"), "holds 2 models; name one: a.gguf, b.gguf"),
    ],
)
def test_a_folder_without_one_gguf_says_so(tmp_path: Path, files: tuple[str, ...], words: str) -> None:
    (tmp_path / "m").mkdir()
    for file in files:
        (tmp_path / "m" / file).touch()
    assert words in mistake(tmp_path, "- id: a\n  path: m\n")


def test_a_single_model_goes_by_its_name_and_a_file_by_its_own() -> None:
    assert single("qwen2.5-coder-0.5b").ids == ["qwen2.5-coder-0.5b"]
    found = single("/models/My Model.Q4.gguf", ("alias",))
    assert found.ids == ["My-Model.Q4"]
    assert found.models[0].name == "/models/My Model.Q4.gguf"
    assert found.find("alias") is found.models[0]
    assert found.models[0].entry.preload


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("models:\n- id: a\n  kv_typ: f16\n", 3, "there is no setting `kv_typ`; did you mean `kv_type`?"),
        ("models:\n- id: a\n  kv_type: q8\n", 3, "did you mean `q8_0`?"),
        ("models:\n- id: a\n  tier_config:\n    max_ram: 5\n", 4, "did you mean `max_ram_mb`?"),
        ("models:\n- id: a\n  policy: fivo\n", 3, "did you mean `fifo`?"),
        ("models:\n- id: a\n  context: 3\n", 3, "`context`"),
        ("models:\n- id: a\n  max_ram_mb: -1\n", 3, "`max_ram_mb`"),
        ("models:\n- context: 512\n", 2, "`id` is missing"),
        ("model:\n- id: a\n", 1, "did you mean `models`?"),
        ("models:\n- id: a\n- id: b\n  aliases: [a]\n", 3, "the name `a` is taken already"),
        ("models:\n- id: a\n- id: a\n", 3, "taken already"),
        ("models:\n- id: a\n  path: x\n  model: y\n", 2, "keep one of them"),
        ("models:\n- id: a\n  max_ram_mb: 5\n  tier_config: {max_ram_mb: 6}\n", 2, "stands in `tier_config`, too"),
        ("models:\n- id: a\n  context: 4096\n  max_position_embeddings: 2048\n", 2, "larger than"),
        ("models:\n- id: a\n  path: nowhere.gguf\n", 3, "there is no file"),
        ("models:\n- id: a\n  config: nowhere.json\n", 3, "there is no file"),
        ("models:\n- a\n", 2, "expected a model"),
        ("models: 5\n", 1, "expected a list of models"),
        ("models:\n- id: a b\n", 2, "`id`"),
        ("models:\n- id: [\n", 3, "not valid YAML"),
        ("models:\n  a:\n    id: b\n", 3, "in the entry 'a'"),
    ],
)
def test_a_mistake_names_file_line_and_what_was_meant(tmp_path: Path, text: str, line: int, words: str) -> None:
    told = mistake(tmp_path, text)
    assert f"{tmp_path / 'models.yaml'}, line {line}: " in told
    assert words in told


def test_all_mistakes_of_a_file_are_told_together(tmp_path: Path) -> None:
    told = mistake(tmp_path, "- {id: a, kv_typ: f16}\n- {id: b, context: no}\n")
    assert [line.split(":")[0].rpartition(" ")[2] for line in told.splitlines()] == ["1", "2"]


def test_json_that_is_none_names_its_line(tmp_path: Path) -> None:
    assert "models.json, line 2: not valid JSON" in mistake(tmp_path, '[{"id": "a",\n}]', "models.json")


def test_a_key_that_stands_twice_is_a_mistake_of_both_lines(tmp_path: Path) -> None:
    for text in ("models:\n- id: one\n  context: 512\n  id: two\n", "models:\n  one:\n    context: 1\n  one: {}\n"):
        assert "line 4: `" in mistake(tmp_path, text)
        assert "stands here and in line 2" in mistake(tmp_path, text)


@pytest.mark.parametrize("text", ["", "models: []\n", "models:\n"])
def test_a_registry_without_models_is_a_mistake(tmp_path: Path, text: str) -> None:
    assert "no models in it" in mistake(tmp_path, text)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no file .*nothing\.yaml"):
        read_registry(tmp_path / "nothing.yaml")


def test_values_of_any_type_are_mistakes_and_no_crash(tmp_path: Path) -> None:
    values: list[Any] = [None, True, 1.5, "x", [], {}, [[1]], {"a": {"b": 1}}]
    for value in values:
        for name in ("id", "path", "aliases", "context", "tier_config", "kv_type", "policy", "preload"):
            text = json.dumps([{"id": "a", name: value}])
            with suppress(ConfigError):
                registry(tmp_path, text, "any.json")

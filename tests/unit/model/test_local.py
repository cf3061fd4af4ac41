from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvloom.config import Paths
from kvloom.errors import ModelFormatError, ModelNotFoundError
from kvloom.model.local import lm_studio_models, local_models, ollama_models
from kvloom.model.registry import (
    REGISTRY,
    HubName,
    ModelOrigin,
    fetched_models,
    find_model,
    hub_folder,
    parse_hub_name,
    quant_of,
    target_path,
)

DIGEST = "sha256:" + "ab" * 32
MODEL_LAYER = {"mediaType": "application/vnd.ollama.image.model", "digest": DIGEST, "size": 4}
TEMPLATE_LAYER = {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:" + "cd" * 32}


def put(path: Path, content: bytes = b"GGUF") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def put_ollama(folder: Path, name: str, layers: object) -> None:
    put(folder / "manifests" / name, json.dumps({"schemaVersion": 2, "layers": layers}).encode())
    put(folder / "blobs" / DIGEST.replace(":", "-"))


@pytest.fixture(autouse=True)
def _empty_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's home without models of other programs."""
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)


# --- other programs' models ------------------------------------------------------------------------------------------


def test_models_of_ollama_are_found_by_their_short_names(tmp_path: Path) -> None:
    put_ollama(tmp_path, "registry.ollama.ai/library/qwen2.5/0.5b", [TEMPLATE_LAYER, MODEL_LAYER])
    put_ollama(tmp_path, "registry.ollama.ai/library/llama3/latest", [MODEL_LAYER])
    put_ollama(tmp_path, "registry.ollama.ai/somebody/tuned/q8", [MODEL_LAYER])
    put_ollama(tmp_path, "hf.example/user/repo-GGUF/Q4_K_M", [MODEL_LAYER])
    models = ollama_models([tmp_path])
    expected = ["hf.example/user/repo-GGUF:Q4_K_M", "llama3:latest", "qwen2.5:0.5b", "somebody/tuned:q8"]
    assert [model.name for model in models] == expected
    assert {model.path for model in models} == {tmp_path / "blobs" / DIGEST.replace(":", "-")}
    assert models[1].answers_to("llama3")
    assert not models[2].answers_to("qwen2.5")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"layers": 3}',
        b'{"layers": []}',
        json.dumps({"layers": [MODEL_LAYER | {"digest": "sha256:../../../etc/passwd"}]}).encode(),
        json.dumps({"layers": [MODEL_LAYER | {"digest": "sha256:" + "ef" * 32}]}).encode(),
    ],
)
def test_what_ollama_left_broken_is_left_out(tmp_path: Path, content: bytes) -> None:
    put_ollama(tmp_path, "registry.ollama.ai/library/good/latest", [MODEL_LAYER])
    put(tmp_path / "manifests" / "registry.ollama.ai/library/bad/latest", content)
    assert [model.name for model in ollama_models([tmp_path])] == ["good:latest"]


def test_models_of_lm_studio_are_found_without_projectors_and_later_parts(tmp_path: Path) -> None:
    folder = tmp_path / "publisher" / "repo"
    for name in ("m-Q4_K_M.gguf", "mmproj-m.gguf", "b-00001-of-00002.gguf", "b-00002-of-00002.gguf", "notes.txt"):
        put(folder / name)
    models = lm_studio_models([tmp_path])
    assert [model.name for model in models] == ["publisher/repo/b-00001-of-00002", "publisher/repo/m-Q4_K_M"]
    assert not models[0].answers_to("publisher/repo")
    (folder / "b-00001-of-00002.gguf").unlink()
    assert lm_studio_models([tmp_path])[0].answers_to("publisher/repo")


def test_folders_are_found_where_the_programs_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    put_ollama(tmp_path / "ollama", "registry.ollama.ai/library/a/latest", [MODEL_LAYER])
    put(tmp_path / "user" / ".lmstudio-home-pointer", str(tmp_path / "studio").encode())
    put(tmp_path / "studio" / "models" / "p" / "r" / "b.gguf")
    assert [model.name for model in local_models()] == ["a:latest", "p/r/b"]


# --- a model argument ------------------------------------------------------------------------------------------------


def test_a_path_comes_first(where: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "smollm2-135m")
    found = find_model("smollm2-135m", where)
    assert (found.path, found.origin) == (tmp_path / "smollm2-135m", ModelOrigin.PATH)


def test_a_registry_model_is_found_once_it_is_whole(where: Paths) -> None:
    model = REGISTRY["smollm2-135m"]
    with pytest.raises(ModelNotFoundError, match=r"98 MB.*kvloom pull smollm2-135m"):
        find_model(model.id, where)
    target = put(target_path(model, where))
    with pytest.raises(ModelNotFoundError):
        find_model(model.id, where)
    with target.open("r+b") as file:
        file.truncate(model.size_bytes)
    assert find_model(model.id.upper(), where).path == target
    assert [found.name for found in fetched_models(where)] == [model.id]


def test_a_fetched_hub_model_is_found_by_quant_or_alone(where: Paths) -> None:
    folder = hub_folder(where, "user/repo-GGUF")
    q8 = put(folder / "m-q8_0.gguf")
    q4 = put(folder / "m-q4_k_m.gguf")
    assert find_model("user/repo-GGUF:q8_0", where).path == q8
    assert find_model("user/repo-GGUF", where).path == q4
    assert {found.name for found in fetched_models(where)} == {"user/repo-GGUF:Q8_0", "user/repo-GGUF:Q4_K_M"}
    with pytest.raises(ModelNotFoundError, match="kvloom pull user/repo-GGUF:Q6_K"):
        find_model("user/repo-GGUF:Q6_K", where)


def test_a_model_of_ollama_is_found_by_its_name(where: Paths, tmp_path: Path) -> None:
    put_ollama(tmp_path / "user" / ".ollama" / "models", "registry.ollama.ai/library/qwen2.5/0.5b", [MODEL_LAYER])
    found = find_model("qwen2.5:0.5b", where)
    assert (found.origin, found.path.read_bytes()) == (ModelOrigin.OLLAMA, b"GGUF")


def test_an_unknown_name_says_what_is_near(where: Paths) -> None:
    with pytest.raises(ModelNotFoundError, match=r"did you mean qwen2\.5-coder-0\.5b"):
        find_model("qwen-coder-0.5b", where)
    with pytest.raises(ModelNotFoundError, match="there is no file"):
        find_model("./missing.gguf", where)
    with pytest.raises(ModelFormatError, match="folder"):
        find_model(str(where.home.parent), where)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("user/repo", HubName("user/repo")),
        ("user/repo:Q8_0", HubName("user/repo", "Q8_0")),
        ("Qwen/Qwen2.5-0.5B-GGUF", HubName("Qwen/Qwen2.5-0.5B-GGUF")),
        ("repo", None),
        ("a/b/c", None),
        ("../etc", None),
        ("user/..", None),
        ("/abs/path", None),
        ("", None),
    ],
)
def test_hub_names_are_told_from_paths(name: str, expected: HubName | None) -> None:
    assert parse_hub_name(name) == expected


@pytest.mark.parametrize(
    ("file", "quant"),
    [
        ("m-q4_k_m.gguf", "Q4_K_M"),
        ("M.Q4_1.gguf", "Q4_1"),
        ("m-IQ4_XS.gguf", "IQ4_XS"),
        ("m-fp16-f16.gguf", "F16"),
        ("m-Q8_0-00001-of-00003.gguf", "Q8_0"),
        ("model.gguf", "model"),
    ],
)
def test_the_quant_is_read_off_a_file_name(file: str, quant: str) -> None:
    assert quant_of(file) == quant

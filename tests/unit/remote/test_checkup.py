"""`kvloom doctor` and `kvloom fit` of a model behind an address: what can be told, and what to do where it cannot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvloom.cli.main import run
from kvloom.engine.remote.engine import STAND_IN_TEMPLATE
from tests.unit.remote.models import MODEL, OpenAIModel, RecordedOllama
from tests.unit.remote.server import Server, as_json

GIB = 1024**3
LLAMA_3_8B: dict[str, object] = {
    "general.architecture": "llama", "general.file_type": 2, "general.parameter_count": 8030261248,
    "llama.attention.head_count": 32, "llama.attention.head_count_kv": 8,
    "llama.attention.layer_norm_rms_epsilon": 1e-05, "llama.block_count": 32, "llama.context_length": 8192,
    "llama.embedding_length": 4096, "llama.feed_forward_length": 14336, "llama.rope.dimension_count": 128,
    "llama.rope.freq_base": 500000, "llama.vocab_size": 128256, "tokenizer.ggml.bos_token_id": 128000,
    "tokenizer.ggml.merges": [], "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.token_type": [],
    "tokenizer.ggml.tokens": [],
}  # fmt: skip
"""`model_info` of llama3 as docs/api.md of the repository ollama/ollama shows it for /api/show."""

Ran = tuple[int, str, str]
Kvloom = Callable[..., Ran]


@pytest.fixture
def kvloom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Kvloom:
    def call(*words: str) -> Ran:
        capsys.readouterr()
        code = run([*words, "--home", str(tmp_path / "home")])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return call


@pytest.fixture
def llama(ollama: RecordedOllama, server: Server) -> RecordedOllama:
    server.routes["POST /api/show"] = lambda _: as_json({"template": "{{ .Prompt }}", "model_info": LLAMA_3_8B})
    return ollama


def checks(ran: Ran) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in json.loads(ran[1])["checks"]}


def as_llama_cpp(server: Server, path: str) -> None:
    """The server answers as llama.cpp's does."""
    props = {
        "chat_template": STAND_IN_TEMPLATE, "model_path": path, "default_generation_settings": {"n_ctx": 512},
    }  # fmt: skip
    server.routes["GET /props"] = lambda _: as_json(props)
    server.routes["POST /tokenize"] = lambda asked: as_json({"tokens": asked.body["content"].split()})


# -- doctor ---------------------------------------------------------------------------------------------------------


def test_doctor_says_what_an_ollama_can_do(ollama: RecordedOllama, kvloom: Kvloom) -> None:
    ran = kvloom("doctor", f"ollama:{MODEL}", "--json")
    found = checks(ran)
    assert ran[0] == 0
    assert found["Endpoint"]["found"].startswith("Ollama at http://127.0.0.1")
    assert MODEL in found["Endpoint"]["found"]
    assert "up to 8,192; another one by --context" in found["Window"]["found"]
    assert "estimated" in found["Tokens"]["found"]
    assert "fidelity" in found["KV"]["found"]
    assert not {"llama.cpp", "Trial run", "Default model"} & set(found), "nothing of this machine's models is needed"
    assert not ollama.sent(), "nothing was computed"


def test_doctor_knows_llama_cpps_server_by_its_counts(openai: OpenAIModel, server: Server, kvloom: Kvloom) -> None:
    as_llama_cpp(server, "/models/m.gguf")
    found = checks(kvloom("doctor", openai.name, "--json"))
    assert "llama.cpp's server at" in found["Endpoint"]["found"]
    assert found["Window"]["found"] == "512 tokens served now; fixed where it was started"
    assert found["Tokens"]["found"] == "counted by the server, exactly"


def test_a_window_that_nobody_tells_is_warned_of(openai: OpenAIModel, kvloom: Kvloom) -> None:
    ran = kvloom("doctor", openai.name, "--json")
    window = checks(ran)["Window"]
    assert (ran[0], window["state"]) == (0, "warn")
    assert "--context" in window["advice"]


def test_an_endpoint_that_does_not_answer_fails_with_the_way_out(kvloom: Kvloom) -> None:
    ran = kvloom("doctor", "http://127.0.0.1:9/v1#m", "--json")
    check = checks(ran)["Endpoint"]
    assert (ran[0], check["state"]) == (1, "fail")
    assert "127.0.0.1:9" in check["found"]
    assert "start the server" in check["advice"]


def test_a_model_that_an_ollama_does_not_have_is_named_with_those_it_has(
    ollama: RecordedOllama, kvloom: Kvloom
) -> None:
    del ollama
    ran = kvloom("doctor", "ollama:other", "--json")
    assert ran[0] == 1
    assert f"it has {MODEL}:latest" in checks(ran)["Endpoint"]["found"]


def test_doctor_of_what_is_no_address_says_what_one_looks_like(kvloom: Kvloom) -> None:
    code, _, err = kvloom("doctor", "smollm2-135m", "--json")
    assert code == 1
    assert "http://HOST:PORT/v1#MODEL or ollama:NAME" in json.loads(err)["error"]["message"]


def test_an_endpoint_in_the_settings_is_checked_in_the_place_of_a_file(
    ollama: RecordedOllama, kvloom: Kvloom, monkeypatch: pytest.MonkeyPatch
) -> None:
    del ollama
    monkeypatch.setenv("KVLOOM_MODEL", f"ollama:{MODEL}")
    found = checks(kvloom("doctor", "--json"))
    assert found["Endpoint"]["state"] == "ok"
    assert "Default model" not in found


# -- fit ------------------------------------------------------------------------------------------------------------


def test_fit_reads_a_models_shape_off_ollama(llama: RecordedOllama, kvloom: Kvloom) -> None:
    code, out, _ = kvloom("fit", f"ollama:{MODEL}", "--context", "8192", "--memory", "16GiB", "--max", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["kv_bytes"] >= 8192 * 32 * 2 * 8 * 128 * 2 == GIB
    assert found["weights_bytes"] == 5137025024, "as /api/tags tells it"
    assert (found["architecture"], found["trained_context"], found["max_context"]) == ("llama", 8192, 8192)
    assert found["fits"] is True
    assert any("OLLAMA_NUM_PARALLEL" in note for note in found["notes"])
    assert not llama.sent()


def test_an_ollama_on_another_machine_is_not_measured_by_this_ones_memory(
    llama: RecordedOllama, kvloom: Kvloom, monkeypatch: pytest.MonkeyPatch
) -> None:
    del llama
    monkeypatch.setattr("kvloom.engine.remote.address.RemoteAddress.is_loopback", False)
    code, out, _ = kvloom("fit", f"ollama:{MODEL}", "--json")
    assert (code, json.loads(out)["fits"]) == (0, None)
    code, out, _ = kvloom("fit", f"ollama:{MODEL}", "--memory", "4GB", "--json")
    assert (code, json.loads(out)["fits"]) == (1, False)


def test_layers_on_several_gpus_need_the_file(llama: RecordedOllama, kvloom: Kvloom) -> None:
    del llama
    code, _, err = kvloom("fit", f"ollama:{MODEL}", "--gpus", "2", "--json")
    assert code == 1
    assert "--gpus needs" in json.loads(err)["error"]["message"]


@pytest.mark.parametrize(
    ("path", "said"), [("/m/x.gguf", "kvloom fit /m/x.gguf on its machine"), ("", "its GGUF file or its config.json")]
)
def test_an_endpoint_that_does_not_tell_says_what_to_do(
    openai: OpenAIModel, server: Server, kvloom: Kvloom, path: str, said: str
) -> None:
    if path:
        as_llama_cpp(server, path)
    code, _, err = kvloom("fit", openai.name, "--json")
    error = json.loads(err)["error"]
    assert (code, error["type"]) == (1, "UsageError")
    assert said in error["message"]


def test_an_ollama_that_tells_too_little_is_refused(ollama: RecordedOllama, kvloom: Kvloom) -> None:
    del ollama
    code, _, err = kvloom("fit", f"ollama:{MODEL}", "--json")
    assert code == 1
    assert "embedding size 0" in json.loads(err)["error"]["message"]

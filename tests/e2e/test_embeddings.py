"""`/v1/embeddings` of a real model over HTTP: the vectors are those of llama.cpp's own server."""

from __future__ import annotations

import base64
import importlib.util
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from openai import BadRequestError, OpenAI

from kvloom.bench.served import Served

pytestmark = pytest.mark.e2e

WINDOW = 1024
FAR = 1e-3
"""Most cosine distance to llama.cpp's own."""
PATIENCE_S = 120.0
TEXTS = (
    "Hello, world!",
    "The harbour of Anstruther has two piers. The east pier was built in 1866.\n" * 12,
    "def area(width, height):\n    return width * height\n",
    "日本語のテキスト",
    "<|im_end|> is text here",
)


@pytest.fixture(scope="module")
def served(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    environment = {"KVLOOM_MODEL": str(smollm2_path), "KVLOOM_CONTEXT": str(WINDOW), "KVLOOM_THREADS": "1"}
    with Served(tmp_path_factory.mktemp("home"), environment) as server:
        yield server


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{served.url}/v1", api_key="none", timeout=PATIENCE_S) as made:
        yield made


def ask(served: Served, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{served.url}{path}", json={"model": served.model, **body}, timeout=PATIENCE_S)


def distance(one: Any, other: Any) -> float:
    first, second = np.asarray(one, np.float64), np.asarray(other, np.float64)
    return 1.0 - float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp is not installed")
def test_the_vectors_are_those_of_llama_cpps_own_server(served: Served, smollm2_path: Path) -> None:
    from kvloom.bench.peer import Peer, PeerSettings

    ours = ask(served, "/v1/embeddings", input=list(TEXTS)).json()
    settings = PeerSettings(model=str(smollm2_path), n_ctx=WINDOW, threads=1, threads_batch=1, embeddings=True)
    with Peer(settings) as peer:
        # It reads `<|im_end|>` in a text as the token, which it does not become here: by ids both read the same.
        ids = [ask(served, "/tokenize", content=text).json()["tokens"] for text in TEXTS]
        body = {"model": "peer", "input": ids}
        theirs = httpx.post(f"{peer.url}/v1/embeddings", json=body, timeout=PATIENCE_S).json()
    distances = [distance(a["embedding"], b["embedding"]) for a, b in zip(ours["data"], theirs["data"], strict=True)]
    print("cosine distances:", [f"{one:.1e}" for one in distances])
    assert max(distances) < FAR
    others = distance(ours["data"][0]["embedding"], ours["data"][2]["embedding"])
    assert others > 10 * max(distances)
    assert ours["usage"]["prompt_tokens"] == sum(map(len, ids))


def test_the_openai_client_gets_vectors_of_length_1_and_what_was_read(client: OpenAI, served: Served) -> None:
    assert ask(served, "/tokenize", content="ab").status_code == 200
    reply = client.embeddings.create(model=served.model, input=["ab", "the harbour"])
    assert [item.index for item in reply.data] == [0, 1]
    assert all(abs(float(np.linalg.norm(item.embedding)) - 1) < 1e-5 for item in reply.data)
    assert reply.usage.prompt_tokens == reply.usage.total_tokens > 1
    plain = client.embeddings.create(model=served.model, input="ab", encoding_format="float")
    assert distance(plain.data[0].embedding, reply.data[0].embedding) < FAR


def test_numbers_and_bytes_texts_and_ids_say_the_same(served: Served) -> None:
    ids = ask(served, "/tokenize", content="two piers").json()["tokens"]
    inputs: dict[str, object] = {"text": "two piers", "texts": ["two piers"], "ids": ids, "lists": [ids]}
    found = {name: ask(served, "/v1/embeddings", input=given).json() for name, given in inputs.items()}
    packed = ask(served, "/v1/embeddings", input="two piers", encoding_format="base64").json()
    values = np.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), "<f4")
    for body in found.values():
        assert distance(body["data"][0]["embedding"], values) < FAR
        assert body["usage"] == {"prompt_tokens": len(ids), "total_tokens": len(ids)}


def test_what_cannot_be_had_is_refused_by_name(client: OpenAI, served: Served) -> None:
    with pytest.raises(BadRequestError) as refused:
        client.embeddings.create(model=served.model, input="x", dimensions=64)
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "dimensions")
    refusals: tuple[tuple[dict[str, Any], str | None], ...] = (
        ({"input": "harbour " * 2 * WINDOW}, "context_length_exceeded"),
        ({"input": [10**9]}, "invalid_value"),
        ({"input": []}, None),
        ({"input": [""]}, None),
    )
    for wrong, code in refusals:
        answer = ask(served, "/v1/embeddings", **wrong)
        assert answer.status_code == 400, answer.text
        assert code is None or answer.json()["error"]["code"] == code, answer.text


def test_replies_flow_while_texts_are_embedded(served: Served) -> None:
    """Both at once, on the same cores: neither is refused, neither waits for the other's end."""
    embedded: list[int] = []
    texts = [f"{number}: " + TEXTS[1] for number in range(12)]
    worker = threading.Thread(target=lambda: embedded.append(ask(served, "/v1/embeddings", input=texts).status_code))
    worker.start()
    answer = ask(
        served, "/v1/chat/completions", messages=[{"role": "user", "content": "Hello?"}], max_tokens=3, temperature=0
    )
    replied_first = worker.is_alive()
    worker.join(PATIENCE_S)
    assert answer.status_code == 200 and embedded == [200]
    assert replied_first

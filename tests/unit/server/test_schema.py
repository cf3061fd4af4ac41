"""One OpenAPI schema: what it says is true, its examples work, and nothing made from it brings the server down."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.unit.server.drawn import Drawn
from tests.unit.server.live import live
from tests.unit.server.scripted import MODEL, ScriptedBackend, app_over, scripted

NUM_EXAMPLES = 20
"""For each operation: the whole test takes some seconds."""

OWN_API = "/v1/kvloom/"
"""kvloom's own: it needs a real loom behind it, and has its tests apart."""


def schema_of() -> dict[str, Any]:
    schema = app_over(ScriptedBackend()).openapi()
    paths = {path: operations for path, operations in schema["paths"].items() if not path.startswith(OWN_API)}
    return {**schema, "paths": paths}


def test_the_schema_lists_every_path_with_errors_in_one_shape() -> None:
    schema = schema_of()
    assert set(schema["paths"]) == {
        "/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/v1/models",
        "/v1/models/{model}", "/tokenize", "/detokenize", "/health", "/metrics",
    }  # fmt: skip
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            assert "422" not in operation["responses"], path
            assert path == "/health" or "default" in operation["responses"], path
            assert path == "/health" or operation["security"], path
    assert schema["info"]["title"] == "kvloom"


@pytest.mark.anyio
async def test_the_examples_of_the_schema_are_accepted() -> None:
    schema = schema_of()
    tried = 0
    async with scripted(ScriptedBackend(has_embeddings=True)) as client:
        for path, operations in schema["paths"].items():
            body = operations.get("post", {}).get("requestBody")
            if body is None:
                continue
            name = body["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]
            for example in schema["components"]["schemas"][name].get("examples", []):
                named = {**example, "model": MODEL} if "model" in example else example
                answer = await client.post(path, json=named)
                assert answer.status_code == 200, (path, example, answer.text)
                tried += 1
    assert tried >= 7


def test_nothing_made_from_the_schema_is_a_server_error() -> None:
    def prepare(case: Any) -> None:
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = MODEL  # or it would never come further than to the name

    with live(ScriptedBackend(has_embeddings=True), slots=4) as server:
        drawn = Drawn(server.url, timeout_s=20)
        drawn.ask(NUM_EXAMPLES, lambda path: not path.startswith(OWN_API), prepare)
        assert httpx.get(f"{server.url}/health").json()["running"] == 0
    assert len(drawn.labels) == 10
    assert drawn.statuses[200] >= NUM_EXAMPLES
    assert len(drawn.codes) >= 5, drawn.codes  # it was wrong in many ways

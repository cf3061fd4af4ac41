"""One OpenAPI schema: what it says is true, its examples work, and nothing made from it brings the server down."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.core.result import Ok

from tests.unit.server.live import live
from tests.unit.server.scripted import MODEL, ScriptedBackend, app_over, scripted

NUM_EXAMPLES = 20
"""For each operation: the whole test takes some seconds."""

DRAWING = settings(
    max_examples=NUM_EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


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
    counts: Counter[str] = Counter()
    statuses: Counter[int] = Counter()
    codes: set[str] = set()
    with live(ScriptedBackend(has_embeddings=True), slots=4) as server:

        def check(case: Any) -> None:
            if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
                case.body["model"] = MODEL  # or it would never come further than to the name
            answer = case.call(base_url=server.url, timeout=20)
            counts[case.operation.label] += 1
            statuses[answer.status_code] += 1
            assert answer.status_code < 500, answer.text
            if answer.status_code >= 400:
                error = json.loads(answer.content)["error"]
                assert error["message"] and error["type"]
                codes.add(error["code"])

        for result in schemathesis.openapi.from_url(f"{server.url}/openapi.json").get_all_operations():
            assert isinstance(result, Ok), result
            operation = result.ok()
            if operation.path.startswith(OWN_API):
                continue
            modes = [GenerationMode.POSITIVE]
            if operation.method.upper() == "POST":
                modes.append(GenerationMode.NEGATIVE)  # nothing can be wrong with a GET without parameters
            for mode in modes:
                DRAWING(given(case=operation.as_strategy(generation_mode=mode))(check))()
        assert httpx.get(f"{server.url}/health").json()["running"] == 0
    assert len(counts) == 10
    assert statuses[200] >= NUM_EXAMPLES
    assert len(codes) >= 5, codes  # it was wrong in many ways

"""A whole afternoon with the API, its profiles and its status; and its part of the OpenAPI schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.core.result import Ok

from kvloom.config import ServerSettings
from kvloom.server.run import listen
from kvloom.session.loom import Loom
from tests.unit.server.kvloom_api import (
    CHUNKS,
    GREEDY,
    PLAIN,
    PROFILES,
    SECRET,
    SESSIONS,
    app_of,
    names,
    serving,
)
from tests.unit.server.live import Live
from tests.unit.server.scripted import scripted
from tests.unit.server.test_chat import events_of

DRAWING = settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.anyio
async def test_upload_ask_switch_snapshot_clear_undo_restore_and_look_back(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        uploaded = await api.client.post(CHUNKS, files={"file": ("secret.txt", SECRET.encode() * 5)})
        chunk = uploaded.json()["id"]
        path = await api.session(name="afternoon", fidelity="splice")
        on = await api.do("POST", f"{path}/activate", {"chunks": [chunk]})
        body = {"text": "What is the word?", **GREEDY, "stream": True}
        first = events_of((await api.client.post(f"{path}/turns", json=body)).text)[-1]["turn"]
        off = await api.do("POST", f"{path}/deactivate", {"chunks": ["secret.txt"]})
        second = await api.ask(path, "And now?")
        history = await api.do("GET", f"{path}/history")
        snapshot = await api.do("POST", f"{path}/snapshots", {"title": "two turns"})
        cleared = await api.do("POST", f"{path}/clear", {})
        ledger = await api.do("GET", f"{path}/ledger")
        undone = await api.do("POST", f"{path}/undo")
        await api.do("POST", f"{path}/clear", {})
        restored = await api.do("POST", f"{path}/snapshots/{snapshot['id']}/restore")
        after = await api.do("GET", f"{path}/ledger")
        third = await api.ask(path, "And at last?")
    assert names(on) == ["secret.txt"] and names(off, active=False) == ["secret.txt"]
    assert (first["number"], second["number"], third["number"]) == (1, 2, 3)
    assert first["kvloom"]["fidelity"] == "splice" and any("splice" in notice for notice in first["notices"])
    assert [turn["traces"] for turn in history["data"]] == [[chunk], [chunk]]
    assert names(cleared) == [] and snapshot["num_turns"] == 2
    assert [line["ref"] for line in ledger["data"]] == [chunk, first["id"], second["id"]]
    assert names(undone["usage"]) == names(restored) == ["turn 1", "turn 2"]
    assert after["data"] == []
    assert third["kvloom"]["computed_tokens"] < third["usage"]["prompt_tokens"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("reuse", "is_known", "is_approximate"), [("off", False, False), ("exact", True, False), ("splice", True, True)]
)
async def test_a_plain_request_with_the_text_of_a_chunk_reuses_it_as_the_server_is_set(
    tmp_path: Path, reuse: str, is_known: bool, is_approximate: bool
) -> None:
    text = "".join(f"line {number} of a file that somebody has loaded\n" for number in range(12))
    async with serving(tmp_path, reuse=reuse) as api:
        chunk = await api.chunk(text, "known.txt")
        messages = [{"role": "user", "content": f"look at this:\n{text}\nwhat is it?"}]
        body = {"model": "fake", "messages": messages, "max_tokens": 8, "temperature": 0}
        reply = (await api.client.post("/v1/chat/completions", json=body)).json()
    assert reply["kvloom"]["chunks"] == ([chunk] if is_known else [])
    assert reply["kvloom"]["is_approximate"] == is_approximate


@pytest.mark.anyio
async def test_a_profile_brings_chunks_prompt_and_fidelity_back(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        chunks = [await api.chunk(text, name) for text, name in ((PLAIN, "plain"), (SECRET, "secret"))]
        path = await api.session(system="Be brief.", chunks=["plain"], fidelity="splice")
        saved = await api.do("PUT", f"{PROFILES}/review", {"session": path.rsplit("/", 1)[1]})
        session = {"session": path.rsplit("/", 1)[1], "chunks": ["secret", "{which}"]}
        slotted = await api.do("PUT", f"{PROFILES}/slotted", session)
        listed = await api.do("GET", PROFILES)
        fresh = await api.session()
        used = await api.do("POST", f"{fresh}/profile", {"name": "review"})
        messages = await api.do("GET", f"{fresh}/messages")
        missing = await api.refused("POST", f"{fresh}/profile", {"name": "slotted"})
        filled = await api.do("POST", f"{fresh}/profile", {"name": "slotted", "slots": {"which": "plain"}})
        unknown = await api.refused("POST", f"{fresh}/profile", {"name": "slotted", "slots": {"which": "/etc/passwd"}})
        wrong = [
            await api.refused("PUT", f"{PROFILES}/{name}", body)
            for name, body in (
                ("review", {"session": "0" * 16}),
                ("review", {"session": "main"}),
                ("a b", session),
                ("review", {**session, "chunks": ["none"]}),
                ("review", {**session, "chunks": [str(Path(__file__))]}),
            )
        ]
        await api.do("DELETE", f"{PROFILES}/review")
        gone = await api.refused("DELETE", f"{PROFILES}/review")
    assert saved["chunks"] == chunks[:1] and saved["fidelity"] == "splice" and saved["system"] == "Be brief."
    assert slotted["slots"] == ["which"] and [one["name"] for one in listed["data"]] == ["review", "slotted"]
    assert names(used) == ["plain"] and used["fidelity"] == "splice"
    assert messages["data"][0]["content"] == "Be brief."
    assert missing[0] == 400 and unknown == (404, "chunk_not_found") and names(filled) == ["plain", "secret"]
    assert [status for status, _ in wrong] == [404, 400, 400, 404, 404] and gone == (404, "profile_not_found")


@pytest.mark.anyio
async def test_a_profile_of_files_opens_none_over_http(tmp_path: Path) -> None:
    file = tmp_path / "private.txt"
    file.write_text(SECRET)
    async with serving(tmp_path / "home") as api:
        with api.loom.session() as session:  # as the command line does
            session.load(file)
            api.loom.save_profile("files", session)
        path = await api.session()
        listed = await api.do("GET", PROFILES)
        saved = await api.do("PUT", f"{PROFILES}/own", {"session": path.rsplit("/", 1)[1], "chunks": ["private.txt"]})
        refused = await api.refused("POST", f"{path}/profile", {"name": "files"})
        usage = await api.do("GET", f"{path}/usage")
        chunk = await api.do("GET", f"{CHUNKS}/{saved['chunks'][0]}")
    shown = {one["name"]: (one["chunks"], one["num_files"]) for one in listed["data"]}
    assert shown == {"files": ([], 1)} and refused == (400, "invalid_value") and names(usage) == []
    assert str(tmp_path) not in json.dumps([listed, saved, chunk])


@pytest.mark.anyio
async def test_the_status_tells_this_machine_of_the_whole_server(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        path = await api.session(chunks=[await api.chunk(PLAIN, "plain")])
        await api.ask(path)
        status = await api.do("GET", "/v1/kvloom/status")
        wrong = await api.refused("GET", "/v1/kvloom/status?model=none")
    assert (status["model"], status["engine"], status["guard"]["is_refusing"]) == ("fake", "FakeEngine", False)
    assert status["own"]["num_chunks"] == status["own"]["num_sessions"] == status["own"]["num_open_sessions"] == 1
    assert {tier["tier"] for tier in status["server"]["tiers"]} >= {"device", "ram", "disk"}
    assert status["server"]["used_cells"] > 0 and str(tmp_path) not in json.dumps(status)
    assert wrong == (404, "model_not_found")


@pytest.mark.anyio
async def test_no_answer_tells_where_the_model_lies(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        api.loom.model_name = str(tmp_path / "some.gguf")
        path = await api.session()
        snapshot = await api.do("POST", f"{path}/snapshots", {})
        told = [snapshot, *[await api.do("GET", one) for one in (path, SESSIONS, "/v1/kvloom/status")]]
    assert snapshot["model"] == told[1]["model"] == told[3]["model"] == "some"
    assert str(tmp_path) not in json.dumps(told)


@pytest.mark.anyio
async def test_a_backend_without_looms_says_so() -> None:
    async with scripted() as client:
        for answer in (
            await client.get(CHUNKS),
            await client.post(SESSIONS, json={}),
            await client.get(f"{SESSIONS}/{'0' * 16}"),
        ):
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_value")


# -- the schema ----------------------------------------------------------------------------------------------------


def test_every_route_stands_in_the_schema_with_a_summary_examples_and_errors(tmp_path: Path) -> None:
    schema = app_of(tmp_path)[0].openapi()
    own = {path: one for path, one in schema["paths"].items() if path.startswith("/v1/kvloom/")}
    assert len(own) >= 35
    for path, operations in own.items():
        for operation in operations.values():
            assert operation["tags"][0].startswith("kvloom ") and operation["summary"], path
            assert operation["security"] and "default" in operation["responses"], path
            content = operation.get("requestBody", {}).get("content", {}).get("application/json")
            if content is not None:
                body = content["schema"]
                if "$ref" in body:
                    body = schema["components"]["schemas"][body["$ref"].rsplit("/", 1)[1]]
                assert body["examples"], path


def test_nothing_made_from_the_schema_is_a_server_error(tmp_path: Path) -> None:
    app, backend = app_of(tmp_path, slots=2)
    server = Live(app, ServerSettings(slots=2), listen("127.0.0.1", 0))
    server.start()
    seen: dict[str, set[int]] = {}
    try:
        ids = _something_of_each(server, backend.loom)

        def check(case: Any) -> None:
            for name, value in ids.items():
                if name in (case.path_parameters or {}):
                    case.path_parameters[name] = value  # or nothing would be found
            if isinstance(case.body, dict) and isinstance(case.body.get("max_tokens"), int):
                case.body["max_tokens"] = min(case.body["max_tokens"], 4)
            if case.operation.method.upper() == "DELETE" and len(seen.get(case.operation.label, ())) > 1:
                return
            answer = case.call(base_url=server.url, timeout=20)
            seen.setdefault(case.operation.label, set()).add(answer.status_code)
            assert answer.status_code < 500, (case.operation.label, answer.text)
            if answer.status_code >= 400:
                error = json.loads(answer.content)["error"]
                assert error["message"] and error["type"] and error["code"]

        for result in schemathesis.openapi.from_url(f"{server.url}/openapi.json").get_all_operations():
            assert isinstance(result, Ok), result
            operation = result.ok()
            is_last = operation.method.upper() == "DELETE"
            if operation.path.startswith("/v1/kvloom/") and not is_last:
                for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                    DRAWING(given(case=operation.as_strategy(generation_mode=mode))(check))()
        _check_whole(server)
    finally:
        server.stop()
    assert len(seen) >= 35
    assert sum(200 in statuses for statuses in seen.values()) >= 20, seen


def _something_of_each(server: Live, loom: Loom) -> dict[str, str]:
    """Ids that exist, by the names of path parameters."""
    chunk = httpx.post(f"{server.url}{CHUNKS}", json={"name": "notes.txt", "text": PLAIN}).json()["id"]
    session = httpx.post(f"{server.url}{SESSIONS}", json={"chunks": ["notes.txt"]}).json()["id"]
    path = f"{server.url}{SESSIONS}/{session}"
    httpx.post(f"{path}/turns", json={"text": "Hi", **GREEDY}).raise_for_status()
    snapshot = httpx.post(f"{path}/snapshots", json={}).json()["id"]
    httpx.put(f"{server.url}{PROFILES}/review", json={"session": session}).raise_for_status()
    assert loom.session_info(session).num_turns == 1
    return {"chunk": chunk, "session": session, "snapshot": snapshot, "name": "review"}


def _check_whole(server: Live) -> None:
    """After all of it the server does what it did before."""
    health = httpx.get(f"{server.url}/health").json()
    assert health["running"] == health["waiting"] == 0
    session = httpx.post(f"{server.url}{SESSIONS}", json={}).json()["id"]
    turn = httpx.post(f"{server.url}{SESSIONS}/{session}/turns", json={"text": "Hi", **GREEDY}).json()
    assert turn["number"] == 1

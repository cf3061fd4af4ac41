"""Two tenants on one server: neither finds, changes, or learns of anything of the other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kvloom.server.account_gate import AccountKeys
from kvloom.server.accounts import Accounts
from kvloom.server.keys import KeyRing
from tests.unit.server.kvloom_api import CHUNKS, GREEDY, PROFILES, SECRET, SESSIONS, Api, names, serving
from tests.unit.server.test_kvloom_sessions import EDITS, LOOKS

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def two_tenants(tmp_path: Path, **options: Any) -> AsyncIterator[tuple[Api, str, str]]:
    """The server, and a key of each."""
    (tmp_path / "accounts").mkdir()
    with Accounts(tmp_path / "accounts") as accounts:
        ring = KeyRing(accounts)
        one, other = (ring.add(name, tenant=name).text for name in ("one", "other"))
        keys = AccountKeys(ring, is_always_required=True)
        async with serving(tmp_path / "home", keys=keys, **options) as api:
            yield api, one, other


async def test_nobody_reaches_a_session_of_another_tenant(tmp_path: Path) -> None:
    """The answer is word for word that for a session which never was."""
    async with two_tenants(tmp_path) as (api, one, other):
        await api.chunk(SECRET, "plain", key=one)
        await api.chunk("something else", "plain", key=other)
        path = await api.session(name="mine", chunks=["plain"], key=one)
        await api.ask(path, "One?", key=one)
        before = [await api.do("GET", f"{path}{end}", key=one) for end in ("/messages", "/ledger", "/snapshots")]
        own, never = path.rsplit("/", 1)[1], "f" * 16
        for method, end, body in [*EDITS, *(("GET", end, None) for end in LOOKS)]:
            answers = [
                await api.client.request(
                    method, f"{SESSIONS}/{session}{end}", json=body, headers={"authorization": f"Bearer {other}"}
                )
                for session in (own, never)
            ]
            assert [answer.status_code for answer in answers] == [404, 404], (method, end)
            assert answers[0].text.replace(own, never) == answers[1].text
        profile = await api.refused("PUT", f"{PROFILES}/p", {"session": own}, key=other)
        listed = await api.do("GET", SESSIONS, key=other)
        after = [await api.do("GET", f"{path}{end}", key=one) for end in ("/messages", "/ledger", "/snapshots")]
    assert profile == (404, "session_not_found") and listed["data"] == []
    assert after == before


async def test_nobody_reaches_a_chunk_of_another_tenant(tmp_path: Path) -> None:
    async with two_tenants(tmp_path) as (api, one, other):
        chunk, never = await api.chunk(SECRET, "secret", key=one), "f" * 64
        mine = await api.session(key=other)
        asked: list[tuple[str, str, Any]] = [
            ("GET", "", None), ("PATCH", "", {"metadata": {"a": "b"}}), ("DELETE", "", None),
            ("DELETE", "?purge=true", None), *(("POST", f"/{verb}", None) for verb in
            ("restore", "offload", "save", "verify")),
        ]  # fmt: skip
        for method, end, body in asked:
            answers = [
                await api.client.request(
                    method, f"{CHUNKS}/{one_id}{end}", json=body, headers={"authorization": f"Bearer {other}"}
                )
                for one_id in (chunk, never)
            ]
            assert [answer.status_code for answer in answers] == [404, 404], (method, end)
            assert answers[0].text.replace(chunk, never) == answers[1].text
        for ref in (chunk, chunk[:12], "secret"):
            assert await api.refused("POST", f"{mine}/activate", {"chunks": [ref]}, key=other) == (
                404, "chunk_not_found",
            )  # fmt: skip
        listed = await api.do("GET", CHUNKS, key=other)
        kept = await api.do("GET", f"{CHUNKS}/{chunk}", key=one)
    assert listed["data"] == [] and kept["metadata"] == {}


async def test_the_same_text_of_two_tenants_is_computed_for_each(tmp_path: Path) -> None:
    async with two_tenants(tmp_path) as (api, one, other):
        costs = []
        for key in (one, other, one):
            uploaded = await api.do("POST", CHUNKS, {"name": "secret", "text": SECRET * 10}, key=key)
            path = await api.session(chunks=["secret"], fidelity="splice", key=key)
            turn = await api.ask(path, key=key)
            costs.append((uploaded["is_new"], turn["kvloom"]["computed_tokens"]))
    assert costs[0] == costs[1], "the second tenant is told and pays as if it were the first"
    assert costs[2][0] is False and costs[2][1] < costs[0][1]


async def test_profiles_and_the_status_are_the_callers_own(tmp_path: Path) -> None:
    async with two_tenants(tmp_path) as (api, one, other):
        await api.chunk(SECRET * 10, "secret", key=one)
        path = await api.session(chunks=["secret"], key=one)
        await api.ask(path, key=one)
        await api.do("PUT", f"{PROFILES}/review", {"session": path.rsplit("/", 1)[1]}, key=one)
        theirs = await api.do("GET", PROFILES, key=other)
        deleted = await api.refused("DELETE", f"{PROFILES}/review", key=other)
        mine = await api.session(key=other)
        used = await api.refused("POST", f"{mine}/profile", {"name": "review"}, key=other)
        statuses = [await api.do("GET", "/v1/kvloom/status", key=key) for key in (one, other)]
    assert theirs["data"] == [] and deleted == used == (404, "profile_not_found")
    assert [status["own"]["num_chunks"] for status in statuses] == [1, 0]
    assert statuses[1]["own"]["kv_bytes"] == {} and sum(statuses[0]["own"]["kv_bytes"].values()) > 0
    assert [status["server"] for status in statuses] == [None, None]
    assert str(tmp_path) not in str(statuses)


async def test_a_window_beyond_the_servers_is_not_given_to_a_key(tmp_path: Path) -> None:
    async with two_tenants(tmp_path) as (api, one, _):
        path = await api.session(key=one)
        window = api.loom.pool.window
        refused = await api.refused("POST", f"{path}/resize", {"window": window + 256}, key=one)
        most = await api.do("POST", f"{path}/resize", {"window": None}, key=one)
    assert refused == (400, "invalid_value") and most == {"window": window}


async def test_no_key_no_answer(tmp_path: Path) -> None:
    async with two_tenants(tmp_path) as (api, _, _):
        for path in (CHUNKS, SESSIONS, PROFILES, "/v1/kvloom/status", f"{SESSIONS}/{'0' * 16}"):
            assert await api.refused("GET", path) == (401, "invalid_api_key")


async def test_one_tenants_turn_keeps_nobody_else_from_editing(tmp_path: Path) -> None:
    async with two_tenants(tmp_path) as (api, one, other):
        await api.chunk(SECRET, "secret", key=one)
        chunk = await api.chunk(SECRET, "secret", key=other)
        paths = [await api.session(chunks=["secret"], key=key) for key in (one, other)]
        await api.ask(paths[0], key=one)
        purged = await api.do("DELETE", f"{CHUNKS}/{chunk}?purge=true", key=other)
        mine = await api.do("GET", f"{paths[0]}/usage", key=one)
        theirs = await api.do("GET", f"{paths[1]}/usage", key=other)
        again = await api.client.post(
            f"{paths[0]}/turns", json={"text": "Two?", **GREEDY}, headers={"authorization": f"Bearer {one}"}
        )
    assert purged["is_purged"] and again.status_code == 200
    assert names(mine) == ["secret", "turn 1"] and names(theirs) == []

"""Who may ask, and what of it is taken: keys, hosts, reservations; over the real accounts where they decide."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvloom.config import QuotaTier
from kvloom.errors import ConfigError
from kvloom.server.account_gate import AccountKeys, AccountQuota
from kvloom.server.accounts import Accounts
from kvloom.server.keys import KeyRing
from kvloom.server.quota import QuotaLedger
from kvloom.server.run import check_address
from tests.unit.server.scripted import Script, ScriptedBackend, app_over, chat, client_of, scripted

pytestmark = pytest.mark.anyio

PATH = "/v1/chat/completions"


async def test_without_keys_a_foreign_name_for_this_machine_is_refused() -> None:
    async with scripted() as client:
        for host, status in (
            ("localhost", 200), ("127.0.0.1:9632", 200), ("[::1]:9632", 200), ("evil.example", 403),
            ("evil.example:9632", 403), ("192.168.1.5", 403),
        ):  # fmt: skip
            answer = await client.get("/v1/models", headers={"host": host})
            assert answer.status_code == status, host


async def test_without_keys_any_key_is_as_good_as_none() -> None:
    async with scripted() as client:
        answer = await client.post(PATH, json=chat(), headers={"authorization": "Bearer sk-none"})
    assert answer.status_code == 200


async def test_keys_are_asked_for_from_the_first_one_on_and_for_good(tmp_path: Path) -> None:
    with Accounts(tmp_path) as accounts:
        ring = KeyRing(accounts)
        app = app_over(ScriptedBackend(), keys=AccountKeys(ring, is_always_required=False))
        async with client_of(app) as client:
            open_before = await client.post(PATH, json=chat())
            made = ring.add("one", tenant="acme")
            header = {"authorization": f"Bearer {made.text}"}
            without = await client.post(PATH, json=chat())
            wrong = await client.post(PATH, json=chat(), headers={"authorization": "Bearer kvl_no"})
            basic = await client.post(PATH, json=chat(), headers={"authorization": f"Basic {made.text}"})
            right = await client.post(PATH, json=chat(), headers=header | {"host": "anywhere.example"})
            health = await client.get("/health")
            ring.revoke("one")
            revoked = await client.post(PATH, json=chat(), headers=header)
            open_after = await client.post(PATH, json=chat())
    assert open_before.status_code == right.status_code == health.status_code == 200
    for answer in (without, wrong, basic, revoked, open_after):
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"


async def test_a_request_reserves_what_it_may_take_and_is_charged_what_it_took(tmp_path: Path) -> None:
    tier = QuotaTier(tokens_per_second=None, tokens_per_hour=100, requests_per_hour=5)
    backend = ScriptedBackend()
    with Accounts(tmp_path) as accounts, QuotaLedger(accounts, {"default": tier}) as ledger:
        ring = KeyRing(accounts)
        header = {"authorization": f"Bearer {ring.add('one').text}"}
        app = app_over(backend, AccountKeys(ring, is_always_required=True), AccountQuota(ledger))
        async with client_of(app, headers=header) as client:
            first = await client.post(PATH, json=chat(max_tokens=50))
            service = app.state.service
            await service.lifecycle.idle(5)
            second = await client.post(PATH, json=chat(max_tokens=50, stream=True))
            await service.lifecycle.idle(5)
            wrong = await client.post(PATH, json=chat(max_tokens=0))
            too_much = await client.post(PATH, json=chat(max_tokens=95))
            never = await client.post(PATH, json=chat(max_tokens=99))
            backend.script = Script(fails_at=0)
            failed = await client.post(PATH, json=chat(max_tokens=50))
            await service.lifecycle.idle(5)
            backend.script = Script()
            third = await client.post(PATH, json=chat(max_tokens=50))
    assert first.headers["x-ratelimit-limit-tokens"] == "100"
    assert first.headers["x-ratelimit-remaining-tokens"] == str(100 - 52)
    assert second.headers["x-ratelimit-remaining-tokens"] == str(100 - 5 - 52)  # 2 + 3 were used, not 52
    assert wrong.status_code == 400
    assert too_much.status_code == 429
    assert too_much.json()["error"]["code"] == "rate_limit_exceeded"
    assert too_much.json()["error"]["type"] == "rate_limit_error"
    assert int(too_much.headers["retry-after"]) >= 1
    assert never.status_code == 429
    assert never.headers["x-should-retry"] == "false"  # larger than the limit: it never passes
    assert failed.status_code == 500
    assert third.headers["x-ratelimit-remaining-tokens"] == str(100 - 10 - 52)  # our failure cost nothing


async def test_a_request_that_the_queue_refuses_gives_its_reservation_back(tmp_path: Path) -> None:
    tier = QuotaTier(tokens_per_second=None, tokens_per_hour=100, requests_per_hour=5)
    with Accounts(tmp_path) as accounts, QuotaLedger(accounts, {"default": tier}) as ledger:
        ring = KeyRing(accounts)
        header = {"authorization": f"Bearer {ring.add('one').text}"}
        keys = AccountKeys(ring, is_always_required=True)
        app = app_over(ScriptedBackend(), keys, AccountQuota(ledger), slots=1, queue_size=0)
        async with client_of(app, headers=header) as client:
            refused = await client.post(PATH, json=chat(max_tokens=10, n=2))
            after = await client.post(PATH, json=chat(max_tokens=10))
    assert refused.json()["error"]["code"] == "queue_full"
    assert after.headers["x-ratelimit-remaining-tokens"] == str(100 - 12)
    assert after.headers["x-ratelimit-remaining-requests"] == "4"


def test_an_address_that_others_can_reach_needs_keys() -> None:
    for host in ("127.0.0.1", "::1", "[::1]", "localhost", "127.8.8.8"):
        check_address(host, has_keys=False)
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        check_address(host, has_keys=True)
        with pytest.raises(ConfigError, match="kvloom keys add"):
            check_address(host, has_keys=False)

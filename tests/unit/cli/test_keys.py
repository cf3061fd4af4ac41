"""`kvloom keys …`: the program as a person runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvloom.errors import InvalidKeyError
from kvloom.server.accounts import Accounts
from kvloom.server.keys import KeyRing
from tests.unit.cli.conftest import Kvloom


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_a_key_is_printed_alone_on_standard_output_and_works(kvloom: Kvloom, home: Path) -> None:
    ran = kvloom("keys", "add", "ci", "--home", home, loom=False)
    assert ran.code == 0
    assert "not shown again" in ran.err
    with Accounts(home) as accounts:
        key = KeyRing(accounts).find(ran.out.strip())
    assert (key.name, key.tenant, key.tier) == ("ci", "default", "default")


def test_add_with_json_is_one_document(kvloom: Kvloom, home: Path) -> None:
    made = kvloom("keys", "add", "ci", "--tenant", "team", "--home", home, "--json", loom=False).document
    assert made["key"].startswith("kvl_")
    assert (made["name"], made["tenant"], made["tier"]) == ("ci", "team", "default")


def test_list_shows_keys_and_never_their_text(kvloom: Kvloom, home: Path) -> None:
    text = kvloom("keys", "add", "ci", "--home", home, loom=False).out.strip()
    ran = kvloom("keys", "list", "--home", home, loom=False)
    assert all(word in ran.out for word in ("ci", "default", "never", "in force"))
    [key] = kvloom("keys", "list", "--home", home, "--json", loom=False).document["keys"]
    assert key["name"] == "ci"
    assert text not in ran.out
    assert "digest" not in key


def test_an_empty_list_says_how_to_make_one(kvloom: Kvloom, home: Path) -> None:
    assert "kvloom keys add NAME" in kvloom("keys", "list", "--home", home, loom=False).out


def test_a_revoked_key_is_refused_and_stays_in_the_list(kvloom: Kvloom, home: Path) -> None:
    text = kvloom("keys", "add", "ci", "--home", home, loom=False).out.strip()
    assert kvloom("keys", "revoke", "ci", "--home", home, "--json", loom=False).document["revoked"]["name"] == "ci"
    assert "revoked" in kvloom("keys", "list", "--home", home, loom=False).out
    with Accounts(home) as accounts, pytest.raises(InvalidKeyError):
        KeyRing(accounts).find(text)


def test_revoking_what_there_is_not_is_an_error(kvloom: Kvloom, home: Path) -> None:
    ran = kvloom("keys", "revoke", "nosuch", "--home", home, "--json", loom=False)
    assert ran.code == 1
    assert json.loads(ran.err)["error"]["type"] == "UnknownKeyError"


def test_a_tier_has_to_be_in_the_settings(kvloom: Kvloom, home: Path) -> None:
    home.mkdir()
    (home / "config.yaml").write_text("tiers:\n  gold:\n    tokens_per_day: 5\n", encoding="utf-8")
    ran = kvloom("keys", "add", "ci", "--tier", "glod", "--home", home, loom=False)
    assert ran.code == 1
    assert "did you mean gold" in ran.err
    assert kvloom("keys", "add", "ci", "--tier", "gold", "--home", home, loom=False).code == 0

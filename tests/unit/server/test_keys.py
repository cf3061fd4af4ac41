"""API keys: shown once, stored as a hash, found, refused, revoked; and the file that they lie in."""

from __future__ import annotations

import re
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvloom.errors import InvalidKeyError, StoreError, StoreReadOnlyError, UnknownKeyError, UsageError
from kvloom.server.accounts import ACCOUNTS_NAME, Accounts
from kvloom.server.keys import KeyRing


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def accounts(home: Path) -> Iterator[Accounts]:
    with Accounts(home) as accounts:
        yield accounts


@pytest.fixture
def ring(accounts: Accounts) -> KeyRing:
    return KeyRing(accounts)


def test_a_key_is_found_by_its_text_with_tenant_and_tier(ring: KeyRing) -> None:
    made = ring.add("ci", tenant="team-a", tier="gold")
    found = ring.find(made.text)
    assert (found.id, found.name, found.tenant, found.tier) == (made.key.id, "ci", "team-a", "gold")
    assert not found.is_revoked


def test_a_key_is_32_random_bytes_behind_a_prefix(ring: KeyRing) -> None:
    texts = [ring.add(f"k{number}").text for number in range(20)]
    assert all(re.fullmatch(r"kvl_[A-Za-z0-9_-]{43}", text) for text in texts)
    assert len(set(texts)) == 20


def test_the_text_of_a_key_is_nowhere_but_with_who_made_it(home: Path, ring: KeyRing) -> None:
    made = ring.add("ci")
    ring.find(made.text)
    secret = made.text.removeprefix("kvl_")
    assert all(secret.encode() not in path.read_bytes() for path in home.rglob("*") if path.is_file())
    assert secret not in repr(made)
    assert secret not in repr(ring.list())


@pytest.mark.parametrize(
    "text", ["", "kvl_", "nonsense", "kvl_" + "A" * 43, "kvl_" + "x" * 100_000, "kvl_\ud800", "kvl_é\x00"]
)
def test_a_text_that_is_no_key_is_refused_and_not_repeated(ring: KeyRing, text: str) -> None:
    ring.add("ci")
    with pytest.raises(InvalidKeyError) as caught:
        ring.find(text)
    assert len(text) < 10 or text not in str(caught.value)


def test_a_text_that_differs_in_one_place_is_refused(ring: KeyRing) -> None:
    text = ring.add("ci").text
    for place in range(len(text)):
        other = "A" if text[place] != "A" else "B"
        with pytest.raises(InvalidKeyError):
            ring.find(text[:place] + other + text[place + 1 :])


def test_a_hash_that_agrees_only_where_it_is_looked_up_is_refused(ring: KeyRing, accounts: Accounts) -> None:
    text = ring.add("ci").text
    with accounts.transaction() as db:
        db.execute("UPDATE keys SET digest = zeroblob(32)")
    with pytest.raises(InvalidKeyError):
        ring.find(text)


def test_a_revoked_key_is_refused_by_name_and_in_every_process(home: Path, ring: KeyRing) -> None:
    made = ring.add("ci")
    with Accounts(home) as elsewhere:
        other = KeyRing(elsewhere)
        other.find(made.text)
        assert ring.revoke("ci").is_revoked
        with pytest.raises(InvalidKeyError, match="'ci' was revoked"):
            other.find(made.text)


def test_a_revoked_keys_name_is_free_again(ring: KeyRing) -> None:
    first = ring.add("ci")
    with pytest.raises(UsageError, match="there is a key 'ci' already"):
        ring.add("ci")
    ring.revoke("ci")
    second = ring.add("ci")
    assert ring.find(second.text).id != first.key.id
    assert [key.is_revoked for key in ring.list()] == [True, False]


def test_a_key_is_revoked_by_its_id_or_the_beginning_of_it(ring: KeyRing) -> None:
    one, two = ring.add("one"), ring.add("two")
    assert ring.revoke(one.key.id).name == "one"
    assert ring.revoke(two.key.id[:8]).name == "two"


@pytest.mark.parametrize("ref", ["nosuch", "", "%", "abcdef"])
def test_a_key_that_there_is_not_cannot_be_revoked_and_the_others_are_named(ring: KeyRing, ref: str) -> None:
    ring.add("ci")
    ring.revoke("ci")
    ring.add("live")
    with pytest.raises(UnknownKeyError, match="in force: 'live'"):
        ring.revoke(ref)
    with pytest.raises(UnknownKeyError):
        ring.revoke("ci")


@pytest.mark.parametrize("name", ["", " ", "a\nb", " a", "x" * 65, "\x1b[31m"])
def test_a_name_that_is_none_is_refused(ring: KeyRing, name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a key"):
        ring.add(name)


@pytest.mark.parametrize("tenant", ["", "A", "../x", "a b", "-a", "x" * 65, "ä", "a\n"])
def test_a_tenant_is_a_plain_word(ring: KeyRing, tenant: str) -> None:
    with pytest.raises(UsageError, match="cannot name a tenant"):
        ring.add("k", tenant=tenant)


def test_whether_there_are_keys_counts_those_in_force(ring: KeyRing) -> None:
    assert not ring.has_keys()
    ring.add("ci")
    assert ring.has_keys()
    ring.revoke("ci")
    assert not ring.has_keys()


def test_last_use_is_noted_at_most_once_a_minute(accounts: Accounts) -> None:
    now = [1000.0]
    ring = KeyRing(accounts, lambda: now[0])
    text = ring.add("ci").text
    assert ring.list()[0].last_used_s is None
    for now_s, noted in ((1001.0, 1001.0), (1060.0, 1001.0), (1061.0, 1061.0), (500.0, 500.0)):
        now[0] = now_s
        ring.find(text)
        assert ring.list()[0].last_used_s == noted


def test_many_threads_find_keys_while_others_are_made(ring: KeyRing) -> None:
    texts = [ring.add(f"k{number}").text for number in range(8)]
    with ThreadPoolExecutor(16) as pool:
        made = [pool.submit(ring.add, f"new{number}") for number in range(8)]
        found = list(pool.map(lambda number: ring.find(texts[number % 8]).name, range(200)))
    assert found == [f"k{number % 8}" for number in range(200)]
    assert {ring.find(one.result().text).name for one in made} == {f"new{number}" for number in range(8)}


# --- the file --------------------------------------------------------------------------------------------------------


def test_the_accounts_are_for_their_owner_only(home: Path, ring: KeyRing) -> None:
    ring.add("ci")
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    files = [path for path in home.iterdir() if path.is_file()]
    assert {path.name for path in files} >= {ACCOUNTS_NAME, ACCOUNTS_NAME + "-wal"}
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)


def test_accounts_of_a_newer_version_are_left_alone(home: Path, accounts: Accounts) -> None:
    with accounts.transaction() as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="version 99"):
        Accounts(home)


def test_damaged_accounts_say_what_to_do(home: Path) -> None:
    home.mkdir()
    (home / ACCOUNTS_NAME).write_bytes(b"no database at all" * 100)
    with pytest.raises(StoreError, match=r"damaged.*make new keys"):
        Accounts(home)


def test_a_home_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(StoreReadOnlyError, match="KVLOOM_HOME"):
        Accounts(tmp_path / "file" / "home")


def test_a_failed_transaction_leaves_nothing(accounts: Accounts, ring: KeyRing) -> None:
    def fail_in_the_middle() -> None:
        with accounts.transaction() as db:
            db.execute("INSERT INTO holders VALUES ('x')")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_in_the_middle()
    with accounts.reading() as db:
        assert db.execute("SELECT COUNT(*) FROM holders").fetchone() == (0,)
    ring.add("after")


def test_another_process_that_writes_is_waited_for(home: Path, ring: KeyRing) -> None:
    code = (
        "import sqlite3, sys\n"
        f"db = sqlite3.connect({str(home / ACCOUNTS_NAME)!r}, isolation_level=None)\n"
        "db.execute('BEGIN IMMEDIATE')\n"
        "print('holds', flush=True)\n"
        "sys.stdin.readline()\n"
        "db.execute('COMMIT')\n"
    )
    with (
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder,
        ThreadPoolExecutor(1) as pool,
    ):
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"holds\n"
        adding = pool.submit(ring.add, "ci")
        with pytest.raises(TimeoutError):
            adding.result(0.3)
        holder.stdin.write(b"\n")
        holder.stdin.flush()
        assert adding.result(60).key.name == "ci"
    assert holder.returncode == 0


def test_a_key_can_be_checked_by_hand_against_the_hash(home: Path, ring: KeyRing) -> None:
    import hashlib

    text = ring.add("ci").text
    with sqlite3.connect(home / ACCOUNTS_NAME) as db:
        assert db.execute("SELECT digest FROM keys").fetchone() == (hashlib.sha256(text.encode()).digest(),)
    db.close()

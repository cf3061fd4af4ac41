"""API keys: made, found by their text, listed, revoked. Knows no quota and no HTTP.

A key is 32 random bytes, so its SHA-256 is all that is stored: nobody can try 2^256 texts, and a slow hash, made for
words that people choose, would only cost every request. No salt either: no two keys are alike.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NewType

from kvloom.config import DEFAULT_TIER
from kvloom.errors import InvalidKeyError, UnknownKeyError, UsageError
from kvloom.server.accounts import Accounts

KeyId = NewType("KeyId", str)
"""What a key is called where its text must not be seen: random, 12 lower-case hex digits."""

DEFAULT_TENANT = "default"
KEY_PREFIX = "kvl_"
"""So that a key is known for one where it has slipped into a file or a log."""
_KEY_BYTES = 32
_LOOKUP_BYTES = 8
_USED_EVERY_S = 60.0
"""`last_used_s` is written at most this often: finding a key is a read."""

_TENANT = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_NAME = re.compile(r"\S(?:.{0,62}\S)?")
_ID_PREFIX = re.compile(r"[0-9a-f]{6,12}")

_COLUMNS = "id, name, tenant, tier, created_s, last_used_s, revoked_s"


@dataclass(frozen=True)
class ApiKey:
    """What is known of a key; its text is not. Times are Unix seconds."""

    id: KeyId
    name: str
    tenant: str
    tier: str
    created_s: float
    last_used_s: float | None = None
    revoked_s: float | None = None

    @property
    def is_revoked(self) -> bool:
        return self.revoked_s is not None


@dataclass(frozen=True)
class NewKey:
    """A key with its text, which is nowhere else: who made it sees it once."""

    key: ApiKey
    text: str = field(repr=False)


class KeyRing:
    """The keys of a home. Every method may be called from any thread; changes are seen by all processes at once."""

    def __init__(self, accounts: Accounts, clock: Callable[[], float] = time.time) -> None:
        self._accounts = accounts
        self._clock = clock

    def add(self, name: str, tenant: str = DEFAULT_TENANT, tier: str = DEFAULT_TIER) -> NewKey:
        """Makes a key. Raises UsageError for a name that a key in force has, or that is none."""
        if not _NAME.fullmatch(name) or not name.isprintable():
            raise UsageError(f"{name!r} cannot name a key: 1 to 64 printable characters, none of them space at an end")
        if not _TENANT.fullmatch(tenant):
            raise UsageError(
                f"{tenant!r} cannot name a tenant: 1 to 64 of a–z, 0–9, '.', '_' and '-', a letter or digit first"
            )
        text = KEY_PREFIX + secrets.token_urlsafe(_KEY_BYTES)
        digest = _digest(text)
        key = ApiKey(KeyId(secrets.token_hex(6)), name, tenant, tier, self._clock())
        try:
            with self._accounts.transaction(durable=True) as db:
                db.execute(
                    "INSERT INTO keys (id, name, tenant, tier, lookup, digest, created_s) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (key.id, name, tenant, tier, digest[:_LOOKUP_BYTES], digest, key.created_s),
                )
        except sqlite3.IntegrityError as exc:
            raise UsageError(
                f"there is a key {name!r} already: choose another name, or revoke it first (`kvloom keys revoke`)"
            ) from exc
        return NewKey(key, text)

    def list(self) -> tuple[ApiKey, ...]:
        """All keys, the revoked ones too, the oldest first."""
        with self._accounts.reading() as db:
            rows = db.execute(f"SELECT {_COLUMNS} FROM keys ORDER BY created_s, id").fetchall()
        return tuple(ApiKey(*row) for row in rows)

    def has_keys(self) -> bool:
        """Whether any key is in force: without one a server serves this machine only."""
        with self._accounts.reading() as db:
            return db.execute("SELECT 1 FROM keys WHERE revoked_s IS NULL LIMIT 1").fetchone() is not None

    def find(self, text: str) -> ApiKey:
        """The key of this text. Raises InvalidKeyError where there is none, or it was revoked.

        The time it takes says nothing of a stored key: rows are looked up by a part of the text's hash, which nobody
        can steer, and the whole of it is compared in constant time.
        """
        digest = _digest(text)
        with self._accounts.reading() as db:
            rows = db.execute(
                f"SELECT digest, {_COLUMNS} FROM keys WHERE lookup = ?", (digest[:_LOOKUP_BYTES],)
            ).fetchall()
        found = [ApiKey(*row[1:]) for row in rows if hmac.compare_digest(row[0], digest)]
        if not found:
            raise InvalidKeyError("this API key is not known here: `kvloom keys add NAME` makes one")
        [key] = found
        if key.is_revoked:
            raise InvalidKeyError(f"the API key {key.name!r} was revoked: `kvloom keys add NAME` makes another")
        self._mark_used(key)
        return key

    def revoke(self, ref: str) -> ApiKey:
        """Ends a key, by its name, its id, or 6 or more digits of it; from now on it is refused everywhere.

        Raises UnknownKeyError where no key in force has that name or id, or several do.
        """
        with self._accounts.transaction(durable=True) as db:
            rows = db.execute(f"SELECT {_COLUMNS} FROM keys WHERE revoked_s IS NULL").fetchall()
            live = [ApiKey(*row) for row in rows]
            named = [key for key in live if key.name == ref]
            found = named or [key for key in live if _ID_PREFIX.fullmatch(ref) and key.id.startswith(ref)]
            if len(found) != 1:
                names = ", ".join(sorted(repr(key.name) for key in live)) or "none"
                what = f"{len(found)} keys have an id like" if found else "no key in force is named"
                raise UnknownKeyError(f"{what} {ref!r}; in force: {names}")
            revoked_s = self._clock()
            db.execute("UPDATE keys SET revoked_s = ? WHERE id = ?", (revoked_s, found[0].id))
        [key] = found
        return ApiKey(key.id, key.name, key.tenant, key.tier, key.created_s, key.last_used_s, revoked_s)

    def _mark_used(self, key: ApiKey) -> None:
        now_s = self._clock()
        # A clock that was set back shall not leave a time in the future standing for good.
        if key.last_used_s is None or abs(now_s - key.last_used_s) >= _USED_EVERY_S:
            with self._accounts.transaction() as db:
                db.execute("UPDATE keys SET last_used_s = ? WHERE id = ?", (now_s, key.id))


def _digest(text: str) -> bytes:
    # What comes over HTTP may be no text at all; it has a hash nevertheless, and is no key.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()

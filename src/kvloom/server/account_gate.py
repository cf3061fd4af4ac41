"""The accounts of a home as the edge's seams: keys find callers, the ledger gives reservations. Knows no route.

Both read a file and may wait for another process, so they run in threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

from kvloom.errors import InvalidKeyError, QuotaExceededError
from kvloom.server.auth import Caller, NoQuota, Reservation
from kvloom.server.errors import ApiError
from kvloom.server.keys import ApiKey, KeyRing
from kvloom.server.quota import QuotaLedger
from kvloom.server.quota import Reservation as LedgerEntry
from kvloom.server.quota_headers import limit_headers, refusal_code, refusal_headers


@dataclass(frozen=True)
class KeyedCaller(Caller):
    """A caller by a key."""

    key: ApiKey | None = None


class AccountKeys:
    """`is_always_required`: for addresses that others can reach, where the last key's end must not open the door."""

    def __init__(self, ring: KeyRing, *, is_always_required: bool) -> None:
        self._ring = ring
        self._is_required = is_always_required

    async def is_required(self) -> bool:
        """From the first key on, for good: revoking the last one does not open the server again."""
        self._is_required = self._is_required or await asyncio.to_thread(self._ring.has_keys)
        return self._is_required

    async def check(self, key: str) -> Caller | None:
        try:
            found = await asyncio.to_thread(self._ring.find, key)
        except InvalidKeyError:
            return None
        return KeyedCaller(tenant=found.tenant, key_id=found.id, key=found)


class AccountQuota:
    """The ledger's limits for callers by key; a caller without one is this machine's, and has none."""

    def __init__(self, ledger: QuotaLedger) -> None:
        self._ledger = ledger

    async def reserve(self, caller: Caller, num_tokens: int, request_id: str) -> Reservation:
        key = caller.key if isinstance(caller, KeyedCaller) else None
        if key is None:
            return await NoQuota().reserve(caller, num_tokens, request_id)
        try:
            return _Reserved(self._ledger, await asyncio.to_thread(self._ledger.reserve, key, num_tokens))
        except QuotaExceededError as exc:
            headers = refusal_headers(exc, await asyncio.to_thread(self._ledger.standing, key))
            raise ApiError(HTTPStatus.TOO_MANY_REQUESTS, str(exc), code=refusal_code(exc), headers=headers) from exc


class _Reserved:
    def __init__(self, ledger: QuotaLedger, entry: LedgerEntry) -> None:
        self._ledger = ledger
        self._entry = entry

    @property
    def headers(self) -> Mapping[str, str]:
        return limit_headers(self._entry.standing)

    async def settle(self, used_tokens: int) -> None:
        await asyncio.to_thread(self._ledger.settle, self._entry, used_tokens)

    async def release(self) -> None:
        await asyncio.to_thread(self._ledger.release, self._entry)

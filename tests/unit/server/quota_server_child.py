"""A server's process in the tests that kill it: `python quota_server_child.py HOME LOG PORT TIER SPEED HOLDS`.

The real edge, keys and ledger over the deterministic engine. One line for everything that the ledger is asked, before
and after: a kill may come between any two. `SPEED`: the clocks run so many times faster. `HOLDS`: so many replies stay
open (0: none), however fast the machine is: whoever kills finds them.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from kvloom.config import QuotaTier, ServerSettings
from kvloom.server.account_gate import AccountKeys, AccountQuota
from kvloom.server.accounts import Accounts
from kvloom.server.app import create_app
from kvloom.server.auth import Caller, Reservation
from kvloom.server.clock import SteadyClock
from kvloom.server.errors import ApiError
from kvloom.server.keys import KeyRing
from kvloom.server.local import LocalBackend
from kvloom.server.quota import QuotaLedger
from kvloom.server.run import listen, serve
from tests.unit.server.quota_child import clocks
from tests.unit.session.fakes import fake_loom

SLOTS = 16
MOST_WAITING = 2000
TIERS = {
    # Room for what three killed processes leave open, and little more than that for the last one.
    "sums": QuotaTier(
        tokens_per_second=None, tokens_per_hour=300_000, tokens_per_day=None, requests_per_hour=None,
        concurrent_requests=1000,
    ),
    "few": QuotaTier(
        tokens_per_second=None, tokens_per_hour=24_000, tokens_per_day=None, requests_per_hour=None,
        concurrent_requests=200,
    ),
    "windows": QuotaTier(
        tokens_per_second=6, burst_tokens=4000, tokens_per_hour=12_000, tokens_per_day=100_000,
        requests_per_hour=250, concurrent_requests=30,
    ),
}  # fmt: skip


class Log:
    """One write a line: what is written stays, whenever the kill comes."""

    def __init__(self, path: Path, clock: SteadyClock) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.clock = clock

    def say(self, *words: object) -> None:
        os.write(self._file, (" ".join(map(str, words)) + "\n").encode())


class Gate:
    """Lets replies end: the first few, and then only while more than `num_held` are open, up to a bound.

    Without it a fast machine ends them before so many are open, and a slow one uses up the hour before it is killed.
    """

    def __init__(self, num_held: int) -> None:
        self._num_held = num_held
        self._num_open = self._num_ended = 0
        self._changed = asyncio.Condition()

    async def opened(self) -> None:
        async with self._changed:
            self._num_open += 1
            self._changed.notify_all()

    async def may_end(self) -> None:
        """Once it returns, the reply has ended for the gate."""
        async with self._changed:
            await self._changed.wait_for(self._has_room)
            self._num_open -= 1
            self._num_ended += 1

    async def released(self) -> None:
        async with self._changed:
            self._num_open -= 1

    def _has_room(self) -> bool:
        few, most = self._num_held // 10 + 1, self._num_held // 3
        is_over = self._num_open > self._num_held and self._num_ended < most
        return not self._num_held or self._num_ended < few or is_over


class ToldQuota:
    """The quota of the server, telling what it is asked by the request's id."""

    def __init__(self, quota: AccountQuota, log: Log, gate: Gate) -> None:
        self._quota, self._log, self._gate = quota, log, gate

    async def reserve(self, caller: Caller, num_tokens: int, request_id: str) -> Reservation:
        self._log.say("asks", request_id, num_tokens)
        try:
            found = await self._quota.reserve(caller, num_tokens, request_id)
        except ApiError:
            self._log.say("refused", request_id)
            raise
        self._log.say("has", request_id, num_tokens, self._log.clock.now_us())
        await self._gate.opened()
        return ToldReservation(found, self._log, request_id, self._gate)


class ToldReservation:
    """Only what counts is told: the first end."""

    def __init__(self, inner: Reservation, log: Log, tag: str, gate: Gate) -> None:
        self._inner, self._log, self._tag, self._gate = inner, log, tag, gate
        self._has_ended = False

    @property
    def headers(self) -> Mapping[str, str]:
        return self._inner.headers

    async def settle(self, used_tokens: int) -> None:
        await self._gate.may_end()
        self._begin(used_tokens)
        await self._inner.settle(used_tokens)
        self._log.say("settled", self._tag, used_tokens)

    async def release(self) -> None:
        if self._has_ended:
            await self._inner.release()
            return
        await self._gate.released()
        self._begin(0)
        await self._inner.release()
        self._log.say("settled", self._tag, 0)

    def _begin(self, used_tokens: int) -> None:
        self._has_ended = True
        self._log.say("uses", self._tag, used_tokens, self._log.clock.now_us())
        self._log.say("settles", self._tag, used_tokens)


def main(home: Path, log_path: Path, port: int, tier: str, speed: int, num_held: int) -> None:
    ledger_clock, log_clock = clocks(speed)
    log = Log(log_path, log_clock)
    settings = ServerSettings(slots=SLOTS, queue_size=MOST_WAITING, drain_timeout_s=1.0)
    with Accounts(home) as accounts, QuotaLedger(accounts, {"default": TIERS[tier]}, ledger_clock) as ledger:
        keys = AccountKeys(KeyRing(accounts), is_always_required=True)
        backend = LocalBackend(lambda: fake_loom(home, context=512), "fake")
        app = create_app(backend, settings, keys=keys, quota=ToldQuota(AccountQuota(ledger), log, Gate(num_held)))
        with listen("127.0.0.1", port) as bound:
            log.say("starts")
            serve(app, settings, bound, lambda: None)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5]), int(sys.argv[6]))

"""The ledger of quotas: reserve before work, settle after, exact over threads, processes and kills. Knows no HTTP.

A limit is never overshot, in no window of its length (`quota_windows` says why). What a dead process left open counts
as used in full, from the moment its death is seen: how much of it was really used nobody knows, and it may be all.
"""

from __future__ import annotations

import itertools
import logging
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, replace

from kvloom.config import QuotaTier
from kvloom.errors import AccountError, ConfigError, QuotaExceededError, UsageError
from kvloom.server.accounts import Accounts
from kvloom.server.clock import Mark, SteadyClock
from kvloom.server.holders import Holder
from kvloom.server.keys import ApiKey, KeyId
from kvloom.server.quota_windows import (
    DAY,
    HOUR,
    MICROTOKENS,
    OPEN_WAIT_S,
    SECOND_US,
    WINDOWS,
    KeyUse,
    LimitName,
    Shortage,
    Slot,
    Standing,
    Window,
    WindowUse,
    bucket_wait_s,
    drained,
    shortages,
    slots_wait_us,
    standing,
)

_log = logging.getLogger(__name__)

MAX_TOKENS = 10**9
"""More than any request can need; far below what a column of the ledger holds."""


@dataclass(frozen=True)
class Reservation:
    """Room for one request: until it is settled or released, all of it counts as used.

    `standing`: the key's limits right after, this reservation included.
    """

    key_id: KeyId
    tier: str
    holder_id: str
    number: int
    num_tokens: int
    standing: Standing


class QuotaLedger:
    """One per process over the home's accounts; every method may be called from any thread, and takes well under a
    millisecond where no other process holds the file.

    `tiers`: the limits by the names that keys have. Raises StoreError where the accounts cannot be written.
    """

    def __init__(self, accounts: Accounts, tiers: Mapping[str, QuotaTier], clock: SteadyClock | None = None) -> None:
        self.accounts = accounts
        self._tiers = dict(tiers)
        self._clock = clock or SteadyClock()
        self._numbers = itertools.count(1)
        self._is_closed = False
        self.holder = Holder.new(accounts.home)
        with accounts.transaction() as db:
            self._now_us(db)
            db.execute("INSERT INTO holders VALUES (?)", (self.holder.id,))
        self._bury_the_dead()

    def __enter__(self) -> QuotaLedger:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def reserve(self, key: ApiKey, num_tokens: int) -> Reservation:
        """Room for a request of at most so many tokens, prompt and reply together, or nothing at all.

        Raises QuotaExceededError; ConfigError where the settings no longer have the key's tier; UsageError for a
        number that is none.
        """
        if not 1 <= num_tokens <= MAX_TOKENS:
            raise UsageError(f"a request of {num_tokens} tokens cannot be reserved: 1 to {MAX_TOKENS:,} can")
        tier = self._tier_of(key)
        try:
            return self._reserve(key, tier, num_tokens)
        except QuotaExceededError:
            # Some of what is in the way may belong to a process that is gone.
            if not self._bury_the_dead():
                raise
            return self._reserve(key, tier, num_tokens)

    def settle(self, reservation: Reservation, num_used: int) -> bool:
        """Charges what was used and gives the rest back. Call it however the request ended.

        A second call, or one after `release`, changes nothing and returns False.
        """
        if num_used < 0:
            raise UsageError(f"{num_used} tokens cannot have been used")
        if num_used > reservation.num_tokens:
            # The truth is charged; that it overshoots is a fault of whoever reserved too little.
            _log.error("%d tokens were used of %d reserved", num_used, reservation.num_tokens)
        with self.accounts.transaction() as db:
            if not self._take_out(db, reservation):
                return False
            now_us = self._now_us(db)
            self._charge(db, reservation.key_id, reservation.tier, WindowUse(num_used, 1), now_us)
        return True

    def release(self, reservation: Reservation) -> bool:
        """Gives all of it back, the request too: for one that was turned away before any work was done."""
        with self.accounts.transaction() as db:
            return self._take_out(db, reservation)

    def standing(self, key: ApiKey) -> Standing:
        """The key's limits now. Raises ConfigError as `reserve` does."""
        tier = self._tier_of(key)
        with self.accounts.transaction() as db:
            return standing(tier, self._use(db, key.id, tier))

    def close(self) -> None:
        """Idempotent. What is still open is charged in full, as for a process that dies: settle first."""
        self._is_closed = True
        self._settle_all_of(self.holder)

    # -- inside -------------------------------------------------------------------------------------------------

    def _tier_of(self, key: ApiKey) -> QuotaTier:
        tier = self._tiers.get(key.tier)
        if tier is None:
            raise ConfigError(
                f"the key {key.name!r} is of tier {key.tier!r}, and the settings have only "
                f"{', '.join(sorted(self._tiers))}: add it under `tiers`, or make another key"
            )
        return tier

    def _now_us(self, db: sqlite3.Connection) -> int:
        """The ledger's time, one for all processes, and the mark below which it never falls again."""
        mark = self._clock.after(Mark(*db.execute("SELECT latest_us, boot, ahead_us FROM time").fetchone()))
        db.execute("UPDATE time SET latest_us = ?, boot = ?, ahead_us = ?", (mark.latest_us, mark.boot, mark.ahead_us))
        return mark.latest_us

    def _reserve(self, key: ApiKey, tier: QuotaTier, num_tokens: int) -> Reservation:
        with self.accounts.transaction() as db:
            use = self._use(db, key.id, tier)
            if self._is_closed:
                raise AccountError("the ledger of quotas was closed: nothing can be reserved any more")
            if short := shortages(tier, use, num_tokens):
                raise self._refusal(db, key, use, num_tokens, short)
            number = next(self._numbers)
            row = (key.id, self.holder.id, number, num_tokens)
            db.execute("INSERT INTO reservations VALUES (?, ?, ?, ?)", row)
        after = replace(
            use,
            num_open_requests=use.num_open_requests + 1,
            num_open_tokens=use.num_open_tokens + num_tokens,
        )
        return Reservation(key.id, key.tier, self.holder.id, number, num_tokens, standing(tier, after))

    def _use(self, db: sqlite3.Connection, key_id: KeyId, tier: QuotaTier) -> KeyUse:
        now_us = self._now_us(db)
        num_requests, num_tokens = db.execute(
            "SELECT COUNT(*), COALESCE(SUM(num_tokens), 0) FROM reservations WHERE key_id = ?", (key_id,)
        ).fetchone()
        return KeyUse(
            now_us=now_us,
            num_open_requests=num_requests,
            num_open_tokens=num_tokens,
            owed_microtokens=_owed(db, key_id, tier, now_us),
            hour=_window_use(db, key_id, HOUR, now_us),
            day=_window_use(db, key_id, DAY, now_us),
        )

    def _take_out(self, db: sqlite3.Connection, reservation: Reservation) -> bool:
        row = (reservation.key_id, reservation.holder_id, reservation.number)
        sql = "DELETE FROM reservations WHERE key_id = ? AND holder_id = ? AND number = ?"
        return db.execute(sql, row).rowcount == 1

    def _charge(self, db: sqlite3.Connection, key_id: KeyId, tier: str, used: WindowUse, now_us: int) -> None:
        """Enters what was used, at this moment, into the bucket and both windows."""
        owed = _owed(db, key_id, self._tiers.get(tier), now_us) + used.num_tokens * MICROTOKENS
        db.execute(
            "INSERT INTO buckets VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET "
            "owed_microtokens = excluded.owed_microtokens, at_us = excluded.at_us",
            (key_id, owed, now_us),
        )
        for window in WINDOWS:
            db.execute(
                "INSERT INTO slots VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                "num_tokens = num_tokens + excluded.num_tokens, num_requests = num_requests + excluded.num_requests",
                (key_id, window.name, window.slot(now_us), used.num_tokens, used.num_requests),
            )
            db.execute(
                "DELETE FROM slots WHERE key_id = ? AND window = ? AND slot < ?",
                (key_id, window.name, window.oldest(now_us)),
            )

    # -- those who are gone -------------------------------------------------------------------------------------

    def _bury_the_dead(self) -> int:
        """Settles in full what dead processes left open; the number of them."""
        with self.accounts.reading() as db:
            others = db.execute("SELECT id FROM holders WHERE id != ?", (self.holder.id,)).fetchall()
        num_dead = 0
        for (holder_id,) in others:
            dead = Holder.of_the_dead(self.accounts.home, holder_id)
            if dead is not None:
                self._settle_all_of(dead)
                num_dead += 1
        return num_dead

    def _settle_all_of(self, holder: Holder) -> None:
        """One transaction: whoever is killed within it leaves all of it to the next."""
        with self.accounts.transaction() as db:
            now_us = self._now_us(db)
            left = db.execute(
                "SELECT key_id, tier, SUM(num_tokens), COUNT(*) FROM reservations "
                "JOIN keys ON keys.id = key_id WHERE holder_id = ? GROUP BY key_id",
                (holder.id,),
            ).fetchall()
            for key_id, tier, num_tokens, num_requests in left:
                _log.warning("%d requests were left open: %d tokens are charged", num_requests, num_tokens)
                self._charge(db, key_id, tier, WindowUse(num_tokens, num_requests), now_us)
            db.execute("DELETE FROM reservations WHERE holder_id = ?", (holder.id,))
            db.execute("DELETE FROM holders WHERE id = ?", (holder.id,))
        holder.remove()

    # -- refusals -----------------------------------------------------------------------------------------------

    def _refusal(
        self, db: sqlite3.Connection, key: ApiKey, use: KeyUse, num_tokens: int, short: list[Shortage]
    ) -> QuotaExceededError:
        """Of all that stands in the way, what stands there longest."""
        waits = [(self._wait_s(db, key, use, num_tokens, one), one) for one in short]
        wait_s, worst = max(waits, key=lambda item: (item[1].is_too_large, item[0]))
        state, name = worst.state, worst.state.name.value
        wanted = f"{num_tokens:,} tokens" if name.startswith("tokens_") else "one more"
        shown = f"burst of {state.limit:,} tokens" if name == "tokens_per_second" else f"{name} of {state.limit:,}"
        why = f"the key {key.name!r} (tier {key.tier}) has a {shown}"
        if worst.is_too_large:
            message = f"{why}, and this request alone needs {num_tokens:,}: ask for less"
        elif worst.num_settled_excess > 0:
            message = f"{why}, of which {state.remaining:,} are free; this request needs {wanted}: wait {wait_s:.1f} s"
        else:
            message = (
                f"{why}, of which {state.remaining:,} are free and the rest is held by running requests; "
                f"this request needs {wanted}: ask again when one of them has ended"
            )
        return QuotaExceededError(
            message,
            limit_name=name,
            limit=state.limit,
            remaining=state.remaining,
            retry_after_s=None if worst.is_too_large else wait_s,
            is_spent=state.name is LimitName.TOKENS_PER_DAY and not worst.is_too_large and worst.num_settled_excess > 0,
        )

    def _wait_s(self, db: sqlite3.Connection, key: ApiKey, use: KeyUse, num_tokens: int, short: Shortage) -> float:
        """The earliest moment at which there may be room."""
        if short.is_too_large or short.num_settled_excess <= 0:
            return OPEN_WAIT_S
        name = short.state.name
        if name is LimitName.TOKENS_PER_SECOND:
            return bucket_wait_s(self._tiers[key.tier], use, num_tokens)
        window = DAY if name is LimitName.TOKENS_PER_DAY else HOUR
        rows = db.execute(
            "SELECT slot, num_tokens, num_requests FROM slots WHERE key_id = ? AND window = ? AND slot >= ? "
            "ORDER BY slot",
            (key.id, window.name, window.oldest(use.now_us)),
        )
        of_requests = name is LimitName.REQUESTS_PER_HOUR
        slots = (Slot(*row) for row in rows)
        wait_us = slots_wait_us(slots, window, use.now_us, short.num_settled_excess, of_requests=of_requests)
        return wait_us / SECOND_US


def _owed(db: sqlite3.Connection, key_id: KeyId, tier: QuotaTier | None, now_us: int) -> int:
    """What the key's bucket owes now. A tier that the settings no longer have drains nothing."""
    row = db.execute("SELECT owed_microtokens, at_us FROM buckets WHERE key_id = ?", (key_id,)).fetchone()
    if row is None:
        return 0
    if tier is not None and tier.tokens_per_second is None:
        return 0
    rate = tier.tokens_per_second if tier is not None else 0
    return drained(row[0], now_us - row[1], rate or 0)


def _window_use(db: sqlite3.Connection, key_id: KeyId, window: Window, now_us: int) -> WindowUse:
    row = db.execute(
        "SELECT COALESCE(SUM(num_tokens), 0), COALESCE(SUM(num_requests), 0), COALESCE(MAX(slot), 0) FROM slots "
        "WHERE key_id = ? AND window = ? AND slot >= ?",
        (key_id, window.name, window.oldest(now_us)),
    ).fetchone()
    return WindowUse(*row)

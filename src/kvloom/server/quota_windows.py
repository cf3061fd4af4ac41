"""The sums of a quota: sliding windows in slots, a bucket that drains, what has room and when. Pure; knows no storage.

A reservation counts in full from `reserve` until it is settled; what was used counts on from there until a window's
length has passed since `settle`. Its tokens were used somewhere between the two, so whatever window one looks at,
everything used in it was counted together at one moment, against the limit. Time is whole microseconds, bucket levels
are whole millionths of a token: nothing is rounded away.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from kvloom.config import QuotaTier

SECOND_US = 1_000_000
MICROTOKENS = 1_000_000
"""Millionths of a token: a bucket drains by `tokens_per_second` of them each microsecond."""

NUM_SLOTS = 360
"""A window is so many slots (10 s of an hour, 4 min of a day): a sum reads few rows, and quota comes back at most one
slot late, never early."""

OPEN_WAIT_S = 1.0
"""Where running requests hold the room: nobody knows when they end, so a client asks again this soon."""


@dataclass(frozen=True)
class Window:
    """A sliding window. A slot is a number: the slot's end, in slot lengths since 1970."""

    name: str
    length_us: int

    @property
    def slot_us(self) -> int:
        return self.length_us // NUM_SLOTS

    def slot(self, now_us: int) -> int:
        """The slot in which something that happens now counts: its end is after now."""
        return now_us // self.slot_us + 1

    def oldest(self, now_us: int) -> int:
        """The oldest slot that counts now."""
        return now_us // self.slot_us - NUM_SLOTS + 1

    def leaves_us(self, slot: int) -> int:
        """When a slot stops counting: a window's length after its end."""
        return slot * self.slot_us + self.length_us


HOUR = Window("hour", 3600 * SECOND_US)
DAY = Window("day", 24 * 3600 * SECOND_US)
WINDOWS = (HOUR, DAY)


@dataclass(frozen=True)
class Slot:
    """What was settled in one slot."""

    slot: int
    num_tokens: int
    num_requests: int


@dataclass(frozen=True)
class WindowUse:
    """What was settled in a window. `newest`: the newest slot with anything in it, 0 where there is none."""

    num_tokens: int = 0
    num_requests: int = 0
    newest: int = 0


@dataclass(frozen=True)
class KeyUse:
    """All that counts against one key at a moment."""

    now_us: int
    num_open_requests: int
    num_open_tokens: int
    owed_microtokens: int
    hour: WindowUse
    day: WindowUse


class LimitName(Enum):
    """The limits of a tier; a tier's settings have the same names."""

    TOKENS_PER_SECOND = "tokens_per_second"
    TOKENS_PER_HOUR = "tokens_per_hour"
    TOKENS_PER_DAY = "tokens_per_day"
    REQUESTS_PER_HOUR = "requests_per_hour"
    CONCURRENT_REQUESTS = "concurrent_requests"


@dataclass(frozen=True)
class LimitState:
    """One limit of a key now. `limit` of TOKENS_PER_SECOND is the burst.

    `reset_s`: until all of it is free again, where nothing more is asked for and what runs ends now.
    """

    name: LimitName
    limit: int
    remaining: int
    reset_s: float


@dataclass(frozen=True)
class Standing:
    """Every limit that a key's tier sets, as they are at one moment."""

    limits: tuple[LimitState, ...]

    def get(self, name: LimitName) -> LimitState | None:
        """None where the tier sets no such limit."""
        return next((state for state in self.limits if state.name is name), None)

    @property
    def requests(self) -> LimitState | None:
        return self.get(LimitName.REQUESTS_PER_HOUR)

    @property
    def tokens(self) -> LimitState | None:
        """Of the limits on tokens the one with the least room."""
        counted = [state for state in self.limits if state.name.value.startswith("tokens_")]
        return min(counted, key=lambda state: state.remaining, default=None)


@dataclass(frozen=True)
class Shortage:
    """A limit that has no room for a request, and why it has none.

    `is_too_large`: the request alone is more than the limit. `num_settled_excess`: what would have to leave the limit
    by time, were all running requests to give everything back; 0 or less where one of them ending may be enough.
    """

    state: LimitState
    is_too_large: bool
    num_settled_excess: int


def drained(owed_microtokens: int, since_us: int, tokens_per_second: int) -> int:
    """What a bucket owes after so much time."""
    return max(0, owed_microtokens - since_us * tokens_per_second)


def bucket_wait_s(tier: QuotaTier, use: KeyUse, num_tokens: int) -> float:
    """Until the bucket has drained so far that it has room for so many tokens, were nothing open."""
    excess = use.owed_microtokens + (num_tokens - tier.burst_tokens) * MICROTOKENS
    return -(-excess // (tier.tokens_per_second or 1)) / SECOND_US


def standing(tier: QuotaTier, use: KeyUse) -> Standing:
    """The tier's limits against what counts now."""
    states: list[LimitState] = []
    for name, limit, settled, opened in _counts(tier, use):
        states.append(LimitState(name, limit, max(0, limit - settled - opened), _reset_s(name, tier, use)))
    return Standing(tuple(states))


def shortages(tier: QuotaTier, use: KeyUse, num_tokens: int) -> list[Shortage]:
    """The limits that have no room for one more request of so many tokens; none: it may be reserved."""
    found = []
    for name, limit, settled, opened in _counts(tier, use):
        wanted = num_tokens if name.value.startswith("tokens_") else 1
        if settled + opened + wanted > limit:
            state = LimitState(name, limit, max(0, limit - settled - opened), _reset_s(name, tier, use))
            found.append(Shortage(state, wanted > limit, settled + wanted - limit))
    return found


def slots_wait_us(slots: Iterable[Slot], window: Window, now_us: int, excess: int, *, of_requests: bool) -> int:
    """Until so much has left the window. `slots`: those that count now, the oldest first; they hold at least that."""
    gone = 0
    for slot in slots:
        gone += slot.num_requests if of_requests else slot.num_tokens
        if gone >= excess:
            return window.leaves_us(slot.slot) - now_us
    raise AssertionError(f"{excess} cannot leave a window that holds {gone}")


def _counts(tier: QuotaTier, use: KeyUse) -> Iterable[tuple[LimitName, int, int, int]]:
    """Each limit that is set: its name, how much, how much of it is settled, how much is open."""
    requests, tokens = use.num_open_requests, use.num_open_tokens
    # A bucket that owes a part of a token has no room for that token.
    owed = -(-use.owed_microtokens // MICROTOKENS)
    found = (
        (LimitName.TOKENS_PER_SECOND, tier.tokens_per_second and tier.burst_tokens, owed, tokens),
        (LimitName.TOKENS_PER_HOUR, tier.tokens_per_hour, use.hour.num_tokens, tokens),
        (LimitName.TOKENS_PER_DAY, tier.tokens_per_day, use.day.num_tokens, tokens),
        (LimitName.REQUESTS_PER_HOUR, tier.requests_per_hour, use.hour.num_requests, requests),
        (LimitName.CONCURRENT_REQUESTS, tier.concurrent_requests, 0, requests),
    )
    return [(name, limit, settled, opened) for name, limit, settled, opened in found if limit is not None]


def _reset_s(name: LimitName, tier: QuotaTier, use: KeyUse) -> float:
    if name is LimitName.CONCURRENT_REQUESTS:
        return 0.0
    if name is LimitName.TOKENS_PER_SECOND:
        owed = use.owed_microtokens + use.num_open_tokens * MICROTOKENS
        return owed / (tier.tokens_per_second or 1) / SECOND_US
    window, used = (DAY, use.day) if name is LimitName.TOKENS_PER_DAY else (HOUR, use.hour)
    newest = window.slot(use.now_us) if use.num_open_requests else used.newest
    return (window.leaves_us(newest) - use.now_us) / SECOND_US if newest else 0.0

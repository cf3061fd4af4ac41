"""A server's process in the tests that kill it: `python quota_child.py HOME LOG TIER SPEED SECONDS NUM_OPEN`.

It keeps NUM_OPEN requests open at once and appends one line for
everything it does, before and after: a kill may come between any two. `SPEED`: its clocks run so many times faster.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from pathlib import Path

from kvloom.config import QuotaTier
from kvloom.errors import QuotaExceededError
from kvloom.server.accounts import Accounts
from kvloom.server.clock import SteadyClock
from kvloom.server.keys import ApiKey, KeyRing
from kvloom.server.quota import QuotaLedger, Reservation

EPOCH_NS = 1_790_000_000 * 10**9
"""When the machine was started, as the clocks have it; the same for all processes."""
NUM_THREADS = 8
TIERS = {
    # Room for what three killed processes leave open, and little more than that for the last one.
    "sums": QuotaTier(
        tokens_per_second=None, tokens_per_hour=450_000, tokens_per_day=None, requests_per_hour=None,
        concurrent_requests=1000,
    ),
    "windows": QuotaTier(
        tokens_per_second=5, burst_tokens=8000, tokens_per_hour=20_000, tokens_per_day=200_000,
        requests_per_hour=250, concurrent_requests=30,
    ),
}  # fmt: skip


def clocks(speed: int) -> tuple[SteadyClock, SteadyClock]:
    """The ledger's clock and one like it for the log: to the microsecond, and the same in all processes."""

    def passed_ns() -> int:
        return time.monotonic_ns() * speed

    def clock() -> SteadyClock:
        began_ns = passed_ns()
        made = SteadyClock(lambda: EPOCH_NS + began_ns, lambda: began_ns)  # it reads them one after the other
        made._monotonic_ns = passed_ns
        return made

    return clock(), clock()


class Server:
    """Streams that begin, give tokens and end, in `NUM_THREADS` threads over one pool of open requests."""

    def __init__(self, ledger: QuotaLedger, key: ApiKey, log: int, clock: SteadyClock, num_open: int) -> None:
        self.ledger, self.key, self.log, self.clock, self.num_open = ledger, key, log, clock, num_open
        self.open: list[tuple[Reservation, int]] = []
        self.lock = threading.Lock()

    def say(self, *words: object) -> None:
        """One write: what is written stays, whenever the kill comes."""
        os.write(self.log, (" ".join(map(str, words)) + "\n").encode())

    def now_us(self) -> int:
        with self.lock:
            return self.clock.now_us()

    def run(self, seed: int, until_s: float) -> None:
        random_ = random.Random(seed)
        while time.monotonic() < until_s:
            with self.lock:
                is_full = len(self.open) >= self.num_open
            if is_full or random_.random() < 0.1:
                self.end_one(random_)
            elif not self.begin_one(random_) and not self.end_one(random_):
                # Nothing is open and nothing is to be had: the windows have to move on.
                time.sleep(0.002)

    def begin_one(self, random_: random.Random) -> bool:
        num_tokens = random_.randint(20, 180)
        tag = random_.getrandbits(62)
        self.say("asks", tag, num_tokens)
        try:
            reservation = self.ledger.reserve(self.key, num_tokens)
        except QuotaExceededError:
            self.say("refused", tag)
            return False
        self.say("has", tag, num_tokens, self.now_us())
        with self.lock:
            self.open.append((reservation, tag))
        return True

    def end_one(self, random_: random.Random) -> bool:
        with self.lock:
            if not self.open:
                return False
            reservation, tag = self.open.pop(random_.randrange(len(self.open)))
        used = reservation.num_tokens if random_.random() < 0.5 else random_.randint(0, reservation.num_tokens)
        self.say("uses", tag, used, self.now_us())
        self.say("settles", tag, used)
        assert self.ledger.settle(reservation, used)
        self.say("settled", tag, used)
        return True


def main(home: str, log: str, tier: str, speed: int, seconds: float, num_open: int) -> None:
    ledger_clock, log_clock = clocks(speed)
    accounts = Accounts(Path(home))
    [key] = KeyRing(accounts).list()
    ledger = QuotaLedger(accounts, {"default": TIERS[tier]}, ledger_clock)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    server = Server(ledger, key, handle, log_clock, num_open)
    server.say("starts")
    until_s = time.monotonic() + seconds
    threads = [threading.Thread(target=server.run, args=(random.randrange(2**62), until_s)) for _ in range(NUM_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for reservation, tag in server.open:
        server.say("settles", tag, 0)
        assert ledger.settle(reservation, 0)
        server.say("settled", tag, 0)
    ledger.close()
    accounts.close()
    server.say("ends")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5]), int(sys.argv[6]))

"""Many streams at once against a key's limits, over HTTP, while the server is killed and started again.

What clients saw is held against what the server's process told in its log, and against the ledger itself.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from kvloom.server.accounts import ACCOUNTS_NAME, Accounts
from kvloom.server.keys import KeyRing
from tests.unit.server.quota_server_child import TIERS
from tests.unit.server.test_quota_kill import Story

REPOSITORY = Path(__file__).parents[3]
PATIENCE_S = 120.0
REFUSED_WAIT_S = 1.0
"""Of 1,000 clients; fewer ask again sooner, so that the server has other things to do than to refuse."""
REPLY_TOKENS = (8, 40)
PROMPT_CHARS = (10, 100)


@dataclass
class Heard:
    """What the clients know. `whole`: tokens by request id, as the reply's usage says; `part`: pieces that came before
    a kill."""

    whole: dict[str, int] = field(default_factory=dict)
    part: dict[str, int] = field(default_factory=dict)
    statuses: Counter[int] = field(default_factory=Counter)


class Run:
    """One run: a server that dies and lives, and clients that go on asking."""

    def __init__(self, folder: Path, tier: str, speed: int, num_clients: int) -> None:
        self.home, self.log = folder / "home", folder / "log"
        self.tier, self.speed, self.num_clients = tier, speed, num_clients
        self.heard = Heard()
        self.has_ended = False
        with Accounts(self.home) as accounts:
            self.key = KeyRing(accounts).add("k").text
        self.log.touch()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])

    async def go(self, num_kills: int, min_open: int, last_s: float, *, is_holding: bool = False) -> None:
        """So many servers that are killed with so many requests open, and one that ends by itself.

        `is_holding`: those that are killed let no reply end that would leave fewer open.
        """
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        headers = {"authorization": f"Bearer {self.key}"}
        base = f"http://127.0.0.1:{self.port}"
        async with httpx.AsyncClient(
            base_url=base, headers=headers, limits=limits, timeout=PATIENCE_S, trust_env=False
        ) as client:
            clients = [asyncio.create_task(self._asks(client, number)) for number in range(self.num_clients)]
            try:
                for number in range(num_kills):
                    child = self._start(min_open if is_holding else 0)
                    try:
                        await self._wait_for_work(child, number + 1, min_open)
                        child.send_signal(signal.SIGKILL)
                        assert await asyncio.to_thread(child.wait, PATIENCE_S) == -signal.SIGKILL
                    finally:
                        child.kill()
                        child.wait()
                child = self._start()
                try:
                    await self._wait_for_work(child, num_kills + 1, 1)
                    await asyncio.sleep(last_s)
                    self.has_ended = True
                    await asyncio.gather(*clients)
                    child.send_signal(signal.SIGTERM)
                    assert await asyncio.to_thread(child.wait, PATIENCE_S) == 0
                finally:
                    child.kill()
                    child.wait()
            finally:
                for task in clients:
                    task.cancel()

    def story(self) -> Story:
        return Story.of(self.log)

    def charged(self) -> tuple[int, int]:
        """(tokens that the ledger holds against the day, reservations that are open)."""
        with sqlite3.connect(self.home / ACCOUNTS_NAME) as db:
            (tokens,) = db.execute("SELECT SUM(num_tokens) FROM slots WHERE window = 'day'").fetchone()
            (num_open,) = db.execute("SELECT COUNT(*) FROM reservations").fetchone()
        db.close()
        return int(tokens), int(num_open)

    # -- inside -------------------------------------------------------------------------------------------------

    def _start(self, num_held: int = 0) -> subprocess.Popen[bytes]:
        words = [self.home, self.log, self.port, self.tier, self.speed, num_held]
        line = [sys.executable, "-m", "tests.unit.server.quota_server_child", *map(str, words)]
        with (self.home / "serve.log").open("ab") as log:
            return subprocess.Popen(line, cwd=REPOSITORY, stderr=log)

    async def _wait_for_work(self, child: subprocess.Popen[bytes], num_starts: int, min_open: int) -> None:
        """Until this process has ended some and has enough open; then a moment: each kill comes elsewhere."""
        until_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < until_s:
            assert child.poll() is None, (self.home / "serve.log").read_text()
            parts = self.log.read_text(encoding="utf-8").split("starts\n")
            num_open = parts[-1].count("\nhas ") - parts[-1].count("\nuses ")
            if len(parts) > num_starts and num_open >= min_open and parts[-1].count("\nsettled ") > min_open // 10:
                await asyncio.sleep(random.random() * 0.05)
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"no work was done in {PATIENCE_S:.0f} s: {self.heard.statuses}")

    async def _asks(self, client: httpx.AsyncClient, number: int) -> None:
        random_ = random.Random(number)
        while not self.has_ended:
            body = {
                "model": "fake",
                "prompt": "".join(random_.choice("abcdefgh ") for _ in range(random_.randint(*PROMPT_CHARS))),
                "max_tokens": random_.randint(*REPLY_TOKENS),
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            try:
                has_replied = await self._ask(client, body)
            except httpx.TransportError:  # the server was killed, or is not there yet
                has_replied = False
            if not has_replied:
                await asyncio.sleep(REFUSED_WAIT_S * self.num_clients / 1000 * (0.5 + random_.random()))

    async def _ask(self, client: httpx.AsyncClient, body: dict[str, object]) -> bool:
        """Whether there was a reply, and not a refusal."""
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            self.heard.statuses[answer.status_code] += 1
            if answer.status_code != 200:
                await answer.aread()
                assert answer.status_code in (429, 503), answer.text
                return False
            tag = answer.headers["x-request-id"]
            self.heard.part[tag] = 0
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line.removeprefix("data: "))
                assert "error" not in event, line
                self.heard.part[tag] += any(choice["text"] for choice in event["choices"])
                if event.get("usage"):
                    self.heard.whole[tag] = event["usage"]["total_tokens"]
                    del self.heard.part[tag]
            return True


def check_sums(run: Run, num_kills: int, min_open: int) -> None:
    """All within one hour: nothing is charged twice, nothing is lost, and the limit holds."""
    story, limit = run.story(), TIERS[run.tier].tokens_per_hour or 0
    charged, num_open = run.charged()
    least, most = story.charged_between()
    num_ahead = len(story.left & set(run.heard.whole))
    print(
        f"{sum(run.heard.statuses.values())} requests {dict(run.heard.statuses)}, open at the kills: {story.left_open},"
        f" {num_ahead} of them heard to the end; charged {charged:,} of {limit:,} tokens, within {least:,} and {most:,}"
    )
    assert num_open == 0
    assert least <= charged <= most
    # Each client asks for one reply at a time: who had none open at a kill may have been asking, or ending one. So may
    # those who had heard the whole of one that the server had not settled yet.
    num_uncertain = sum(run.num_clients - left for left in story.left_open) + num_ahead
    assert most - least <= num_uncertain * max(story.asked.values()), "only what was under way at a kill is uncertain"
    assert charged <= limit
    assert story.refused, "it has to ask for more than there is"
    assert max(story.settled.values()) == 1
    assert len(story.left_open) == num_kills and all(left >= min_open for left in story.left_open)
    # What the clients were told they used is what was charged, and what came before a kill was set aside.
    for tag, num_tokens in run.heard.whole.items():
        assert story.wants.get(tag, num_tokens) == num_tokens <= story.had[tag]
    for tag, num_pieces in run.heard.part.items():
        assert num_pieces <= story.had[tag]
    used = sum(run.heard.whole.values()) + sum(run.heard.part.values())
    assert 0 < used <= charged

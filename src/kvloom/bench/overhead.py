"""What HTTP and scheduling add to the time to the first token: one client, a short prompt, the deterministic engine.

The same request goes through `kvloom serve`'s edge in a process of its own and through `Loom.complete` here, in turn.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from statistics import median
from urllib.parse import urlsplit

from kvloom.bench.report import Row
from kvloom.bench.served import WITHOUT_MODEL, Served
from kvloom.bench.setting import own_home
from kvloom.config import load_settings
from kvloom.errors import EngineError
from kvloom.session.fake_rooms import open_fake
from kvloom.session.loom import Loom
from kvloom.session.requests import ChatMessage, ChatPrompt, Request, TextPart
from kvloom.types import SamplingParams

ROUNDS = 300
WARM_ROUNDS = 20
LIMIT_S = 0.005
WINDOW = 2048
REPLY_TOKENS = 4
QUESTION = "Which of the two piers is older?"
TIMEOUT_S = 30.0


def overhead_row(rounds: int = ROUNDS) -> Row:
    """The row `added-first-token`: medians over the rounds, the limit beside it. About 5 s."""
    environment = {"KVLOOM_CONTEXT": str(WINDOW), "KVLOOM_GUARD__ENABLED": "false"}
    with own_home() as home:
        settings = load_settings({"context": WINDOW, "guard": {"enabled": False}})
        with open_fake(settings, home / "here") as loom, Served(home / "served", environment, WITHOUT_MODEL) as served:
            asker = _Asker(served)
            try:
                return _row(lambda: _direct_s(loom), asker.first_token_s, rounds)
            finally:
                asker.close()


def _row(direct_s: Callable[[], float], served_s: Callable[[], float], rounds: int) -> Row:
    direct: list[float] = []
    served: list[float] = []
    for number in range(WARM_ROUNDS + rounds):
        here, there = direct_s(), served_s()
        if number >= WARM_ROUNDS:
            direct.append(here)
            served.append(there)
    added = max(median(served) - median(direct), 1e-6)
    extra = {
        "n": rounds,
        "served_first_token_s": median(served),
        "direct_first_token_s": median(direct),
        "served_p95_s": sorted(served)[int(0.95 * rounds)],
    }
    return Row("added-first-token", "", added, "limit of 5 ms", LIMIT_S, LIMIT_S / added, 1.0, extra)


def _direct_s(loom: Loom) -> float:
    prompt = ChatPrompt((ChatMessage("user", (TextPart(QUESTION),)),))
    request = Request(prompt, max_tokens=REPLY_TOKENS, sampling=SamplingParams(temperature=0.0))
    began, first = time.perf_counter(), 0.0
    for delta in loom.complete(request):
        if delta.text and not first:
            first = time.perf_counter() - began
    if not first:
        raise EngineError("the deterministic engine gave an empty reply")
    return first


class _Asker:
    """One client on one connection that stays open, with as little of its own as can be."""

    def __init__(self, served: Served) -> None:
        address = urlsplit(served.url)
        self._connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=TIMEOUT_S)
        self._body = json.dumps(
            {
                "model": served.model, "messages": [{"role": "user", "content": QUESTION}], "stream": True,
                "max_tokens": REPLY_TOKENS, "temperature": 0,
            }
        ).encode()  # fmt: skip

    def first_token_s(self) -> float:
        began, first = time.perf_counter(), 0.0
        headers = {"content-type": "application/json"}
        self._connection.request("POST", "/v1/chat/completions", self._body, headers)
        response = self._connection.getresponse()
        if response.status != http.client.OK:
            raise EngineError(f"the server answered {response.status}: {response.read()[:300]!r}")
        while line := response.readline():
            if first or not line.startswith(b"data: {"):
                continue
            now = time.perf_counter()
            choices = json.loads(line.removeprefix(b"data: "))["choices"]
            if choices and choices[0]["delta"].get("content"):
                first = now - began
        if not first:
            raise EngineError("the server's stream had no text")
        return first

    def close(self) -> None:
        self._connection.close()

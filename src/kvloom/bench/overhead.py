"""What HTTP and scheduling cost one client: time to the first token, and tokens per second.

The first on the deterministic engine: the same request goes through `kvloom serve`'s edge in a process of its own and
through `Loom.complete` here, in turn. The second on the real model, beside the bare native loop.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

from kvloom.bench.decode import PROMPT, QUICK_REPEATS, QUICK_REPLY_TOKENS, REPEATS
from kvloom.bench.report import Row, compare
from kvloom.bench.served import WITHOUT_MODEL, Served, environment_of
from kvloom.bench.setting import Request as BenchRequest
from kvloom.bench.setting import open_loom, own_home, settings_for
from kvloom.bench.teller import Teller
from kvloom.config import load_settings
from kvloom.errors import EngineError
from kvloom.session.fake_rooms import open_fake
from kvloom.session.loom import Loom
from kvloom.session.probe import Probe
from kvloom.session.requests import ChatMessage, ChatPrompt, Request, TextPart
from kvloom.types import SamplingParams

ROUNDS = 300
WARM_ROUNDS = 20
LIMIT_S = 0.005
WINDOW = 2048
REPLY_TOKENS = 4
QUESTION = "Which of the two piers is older?"
LONG_REPLY_TOKENS = 128
BARE_TARGET = 0.97
"""Of the bare loop's tokens per second."""
TIMEOUT_S = 300.0


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


def one_client_row(request: BenchRequest, home: Path, tell: Teller) -> Row:
    """The row `one-client`: a long greedy reply over HTTP, and the bare native loop with the same prompt, in turn."""
    repeats = request.repeats or (QUICK_REPEATS if request.quick else REPEATS)
    num_tokens = QUICK_REPLY_TOKENS if request.quick else LONG_REPLY_TOKENS
    settings = settings_for(request, context=WINDOW)
    environment = environment_of(settings)
    ours: list[float] = []
    bare: list[float] = []
    with open_loom(settings, home / "bare", tell) as loom, Served(home / "served", environment) as served:
        asker = _Asker(served, PROMPT, num_tokens)
        try:
            with loom.session() as session:
                probe = Probe(session)
                for number in range(repeats + 1):
                    found, alone = asker.tokens_per_s(), probe.bare_tokens_per_s(PROMPT, num_tokens)
                    if number:
                        ours.append(1 / found)
                        bare.append(1 / alone)
                        tell.say(f"one client: {found:.1f} tokens/s, bare loop {alone:.1f}")
        finally:
            asker.close()
    extra = {"reply_tokens": num_tokens, "ours_tokens_per_s": 1 / median(ours), "peer_tokens_per_s": 1 / median(bare)}
    return compare("one-client", "", ours, ("bare native loop", bare), BARE_TARGET, extra)


class _Asker:
    """One client on one connection that stays open, with as little of its own as can be."""

    def __init__(self, served: Served, question: str = QUESTION, num_tokens: int = REPLY_TOKENS) -> None:
        address = urlsplit(served.url)
        self._connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=TIMEOUT_S)
        self._body = json.dumps(
            {
                "model": served.model, "messages": [{"role": "user", "content": question}], "stream": True,
                "max_tokens": num_tokens, "temperature": 0, "stream_options": {"include_usage": True},
            }
        ).encode()  # fmt: skip

    def first_token_s(self) -> float:
        """Seconds to the first text."""
        return self._asked()[0]

    def tokens_per_s(self) -> float:
        """Of a whole reply, the first token not counted."""
        first, last, num_tokens = self._asked()
        return (num_tokens - 1) / (last - first)

    def _asked(self) -> tuple[float, float, int]:
        """(seconds to the first text, seconds to the last, tokens)."""
        began, first, last, num_tokens = time.perf_counter(), 0.0, 0.0, 0
        headers = {"content-type": "application/json"}
        self._connection.request("POST", "/v1/chat/completions", self._body, headers)
        response = self._connection.getresponse()
        if response.status != http.client.OK:
            raise EngineError(f"the server answered {response.status}: {response.read()[:300]!r}")
        while line := response.readline():
            if not line.startswith(b"data: {"):
                continue
            now = time.perf_counter()
            event = json.loads(line.removeprefix(b"data: "))
            if event["choices"] and event["choices"][0]["delta"].get("content"):
                last = now - began
                first = first or last
            num_tokens = (event.get("usage") or {}).get("completion_tokens", num_tokens)
        if not first:
            raise EngineError("the server's stream had no text")
        return first, last, num_tokens

    def close(self) -> None:
        self._connection.close()

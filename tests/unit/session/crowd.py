"""A crowd of clients over one loom: they ask, share, leave in the middle and come back, with too few cells for all."""

from __future__ import annotations

import itertools
import random
import threading
import time
from dataclasses import dataclass, field

from kvloom.session.loom import Loom
from kvloom.session.requests import ChatMessage, ChatPrompt, Request, TextPart
from kvloom.types import SamplingParams

LEAST_REQUESTS = 4
"""Of each client, however slow the machine is."""
SYSTEMS = ("Answer.", "a system text that many have in common " * 12)


@dataclass
class Crowd:
    """What came of it: replies by request, and every error."""

    replies: dict[str, set[str]] = field(default_factory=dict)
    num_left: int = 0
    errors: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def request_of(number: int) -> Request:
    """One of the requests of the crowd: always the same for a number."""
    draw = random.Random(number)
    text = " ".join(draw.choice(("alpha", "beta", "gamma")) for _ in range(draw.choice((3, 30, 90))))
    messages = [ChatMessage("system", (TextPart(draw.choice(SYSTEMS)),)), ChatMessage("user", (TextPart(text),))]
    return Request(ChatPrompt(tuple(messages)), draw.choice((1, 8, 60, 300)), SamplingParams(temperature=0.0))


def one(loom: Loom, draw: random.Random, crowd: Crowd) -> None:
    number = draw.randrange(24)
    leaves_behind = draw.choice((None, None, None, 0, 1, 5))
    stream = loom.complete(request_of(number))
    said = ""
    for place, delta in enumerate(stream):
        said += delta.text
        if leaves_behind is not None and place >= leaves_behind:
            stream.close()
    with crowd.lock:
        if stream.result.finish_reason == "cancelled":
            crowd.num_left += 1
        else:
            crowd.replies.setdefault(str(number), set()).add(stream.result.text)


def crowd_of(loom: Loom, num_clients: int, seconds: float, seed: int) -> Crowd:
    """`num_clients` threads at it for so long."""
    crowd, end = Crowd(), time.monotonic() + seconds

    def client(number: int) -> None:
        draw = random.Random(seed * 1000 + number)
        for count in itertools.count():
            if crowd.errors or (count >= LEAST_REQUESTS and time.monotonic() >= end):
                break
            try:
                one(loom, draw, crowd)
            except Exception as error:  # noqa: BLE001 - the edge of a thread: whatever it is, the test tells it
                crowd.errors.append(repr(error))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(num_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return crowd


def alone(loom: Loom, number: int) -> str:
    stream = loom.complete(request_of(number))
    for _ in stream:
        pass
    return stream.result.text

"""Native cells that 8 conversations take over one document: it is held once, whoever asks about it.

Rows of `bench serve`. Knows the façade only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from kvloom.bench.documents import documents
from kvloom.bench.report import Row
from kvloom.bench.setting import SYSTEM, Request, open_loom, settings_for
from kvloom.bench.teller import Teller
from kvloom.session.requests import ChatMessage, ChatPrompt, ChunkPart, TextPart
from kvloom.session.requests import Request as CompletionRequest
from kvloom.types import SamplingParams

if TYPE_CHECKING:
    from kvloom.session.loom import Loom

CONVERSATIONS = 8
DOCUMENT_TOKENS, QUICK_DOCUMENT_TOKENS = 4000, 2000
REPLY_TOKENS = 16
WINDOW_SLACK = 2048
MOST_CELLS = 1.2
"""Of one conversation's: what all of them may take."""
WAIT_S = 1800.0
"""For the others at the meeting point: the document has to be read once, on a small machine."""

Start = Callable[[int], Iterator[object]]
"""`start(number)`: the deltas of one conversation's reply."""


def sharing_rows(request: Request, home: Path, tell: Teller) -> list[Row]:
    """The rows `shared-sessions` and `shared-requests`: cells in use while all reply at once, over those of one."""
    size = QUICK_DOCUMENT_TOKENS if request.quick else DOCUMENT_TOKENS
    settings = settings_for(request, context=size + WINDOW_SLACK)
    rows: list[Row] = []
    with open_loom(settings, home, tell) as loom:
        [document] = documents(loom.count, 1, size)
        chunk = loom.load_text(document.text, name=document.name).id
        with ExitStack() as stack:
            sessions = [stack.enter_context(loom.session(system=SYSTEM)) for _ in range(CONVERSATIONS + 1)]
            for session in sessions:
                session.activate(chunk)
            rows.append(
                _row(
                    "shared-sessions", loom, document.num_tokens,
                    lambda number: sessions[number].stream(_question(number), max_tokens=REPLY_TOKENS, temperature=0.0),
                )
            )  # fmt: skip
        rows.append(_row("shared-requests", loom, document.num_tokens, lambda number: _completion(loom, chunk, number)))
    for row in rows:
        tell.step(f"{row.case}: {row.extra['ratio']:.3f} times the cells of one")
    return rows


def _row(case: str, loom: Loom, document_tokens: int, start: Start) -> Row:
    _forget_the_device(loom)
    one, _ = _cells_at_once(loom, [CONVERSATIONS], start)  # one that takes no part in the other
    _forget_the_device(loom)
    began = time.perf_counter()
    cells, meeting_s = _cells_at_once(loom, range(CONVERSATIONS), start)
    extra = {
        "conversations": CONVERSATIONS,
        "document_tokens": document_tokens,
        "cells": cells,
        "cells_of_one": one,
        "ratio": cells / one,
    }
    limit = f"{MOST_CELLS:g} × the cells of one"
    return Row(case, "exact", meeting_s - began, limit, None, MOST_CELLS * one / cells, 1.0, extra)


def _cells_at_once(loom: Loom, numbers: Sequence[int], start: Start) -> tuple[int, float]:
    """(cells in use, when) while all these replies are under way: each has its first token and is not closed."""
    found: list[tuple[int, float]] = []
    meeting = threading.Barrier(
        len(numbers), lambda: found.append((loom.status().used_cells, time.perf_counter())), timeout=WAIT_S
    )

    def reply(number: int) -> None:
        deltas = start(number)
        try:
            next(deltas, None)
            meeting.wait()
        except BaseException:
            meeting.abort()  # or the others would wait for this one
            raise
        for _ in deltas:
            pass

    with ThreadPoolExecutor(len(numbers)) as pool:
        for done in [pool.submit(reply, number) for number in numbers]:
            done.result()
    return found[0]


def _forget_the_device(loom: Loom) -> None:
    """Nobody's cells are in use; entries stay in the tiers."""
    with loom.device.lock:
        for owner in {owner for owner, _ in loom.device.residents()}:
            loom.device.release_owner(owner)


def _completion(loom: Loom, chunk: str, number: int) -> Iterator[object]:
    parts = (ChunkPart(chunk), TextPart(f"\n\n{_question(number)}"))
    prompt = ChatPrompt((ChatMessage("user", parts),))
    return loom.complete(CompletionRequest(prompt, max_tokens=REPLY_TOKENS, sampling=SamplingParams(temperature=0.0)))


def _question(number: int) -> str:
    return f"Question {number}: what is line {number + 1} of this file for?"

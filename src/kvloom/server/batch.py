"""Runs a batch in this process: every line is a request to the application itself, without a socket. Knows no shape.

So what a line asks is checked, counted and answered exactly as over HTTP.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from kvloom.config import Settings
from kvloom.errors import ModelNotFoundError, UsageError
from kvloom.server.app import create_app
from kvloom.server.backend import Backend
from kvloom.server.batch_files import MAX_TOLD, BatchLine, BatchOutput, read_batch, read_body
from kvloom.server.batch_order import Schedule
from kvloom.server.fleet import make_fleet
from kvloom.server.logs import LOGGER, REQUEST_ID_HEADER
from kvloom.server.service import Service

FIRST_NAP_S = 0.1
MAX_NAP_S = 10.0
"""A request that there is no room for is asked again after this, first sooner: what runs beside it may end at once."""
PATIENCE_S = 3600.0
"""For so long; then its line says that there was none."""
FATAL_CODES = frozenset(("model_unavailable", "model_too_large"))
"""What every other line would be told, too: the batch ends, and can be gone on with."""

OnDone = Callable[[int, int], None]
"""Called with (done, total) requests."""


@dataclass(frozen=True)
class BatchSummary:
    """How a run of a batch ended. Tokens are of this run; `cached_tokens` of the prompts were not computed."""

    num_requests: int
    num_done_before: int
    num_done: int
    num_failed: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    seconds: float


def run_batch(
    settings: Settings,
    source: Path,
    target: Path,
    home: Path | None = None,
    on_done: OnDone = lambda _done, _total: None,
) -> BatchSummary:
    """Answer the lines of `source` that `target` does not answer yet. Raises UsageError for a file that is no batch,
    and what the model cannot be loaded for."""
    _set_up_log()
    if source.exists() and target.exists() and source.samefile(target):
        raise UsageError(f"{target} is the input; name another file for the output")
    lines = read_batch(source)
    fleet = make_fleet(settings, home)
    check_models(lines, fleet, source)
    with BatchOutput(target, [line.custom_id for line in lines]) as output:
        return asyncio.run(answer_all(fleet, settings, source, lines, output, on_done))


def check_models(lines: list[BatchLine], backend: Backend, source: Path) -> None:
    """Raises UsageError for models that there are not, before anything is loaded."""
    infos = backend.models()
    known = {name for info in infos for name in (info.id, *info.aliases)}
    wrong = {line.model: line.number for line in reversed(lines) if line.model not in known}
    if wrong:
        told = [f"{source}, line {number}: there is no model {name!r}" for name, number in reversed(wrong.items())]
        more = [f"… and {len(told) - MAX_TOLD} more"] if len(told) > MAX_TOLD else []
        names = ", ".join(sorted(known))
        raise UsageError("\n".join([*told[:MAX_TOLD], *more, f"known: {names}"]))


async def answer_all(
    backend: Backend,
    settings: Settings,
    source: Path,
    lines: list[BatchLine],
    output: BatchOutput,
    on_done: OnDone,
) -> BatchSummary:
    """The batch over a backend, which is started and closed here."""
    started_s = time.monotonic()
    waiting = [line for line in lines if line.custom_id not in output.done]
    num_before = len(lines) - len(waiting)
    on_done(num_before, len(lines))
    app = create_app(backend, settings.server)
    run = _Run(source, waiting, output, lambda done: on_done(num_before + done, len(lines)))
    if waiting:
        async with app.router.lifespan_context(app):
            service: Service = app.state.service
            await _started(service)
            await run.answer(app, settings.server.slots)
    counts = run.counts
    return BatchSummary(
        num_requests=len(lines),
        num_done_before=num_before,
        num_done=counts["done"],
        num_failed=counts["failed"],
        prompt_tokens=counts["prompt_tokens"],
        cached_tokens=counts["cached_tokens"],
        completion_tokens=counts["completion_tokens"],
        seconds=round(time.monotonic() - started_s, 3),
    )


async def _started(service: Service) -> None:
    """Until it serves. Raises what the backend could not start with."""
    loaded = asyncio.ensure_future(service.lifecycle.loaded())
    try:
        while not loaded.done():
            await asyncio.wait({loaded}, timeout=0.05)
            if service.failure is not None:
                raise service.failure
    finally:
        loaded.cancel()


class _Run:
    """One run over the lines that are left."""

    def __init__(self, source: Path, lines: list[BatchLine], output: BatchOutput, tell: Callable[[int], None]) -> None:
        self._source = source
        self._lines = lines
        self._output = output
        self._tell = tell
        self._schedule = Schedule([(f"{line.model}\n{line.url}", line.key) for line in lines])
        self.counts: Counter[str] = Counter()

    async def answer(self, app: FastAPI, num_slots: int) -> None:
        """Raises the first error that is no line's own; what is answered by then is written."""
        transport = httpx.ASGITransport(app)
        running: dict[asyncio.Task[None], int] = {}
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=None) as client:
            try:
                while self._schedule.has_next or running:
                    while self._schedule.has_next and len(running) < num_slots:
                        number = self._schedule.next()
                        running[asyncio.create_task(self._one(client, self._lines[number]))] = number
                    ended, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for task in ended:
                        number = running.pop(task)
                        task.result()
                        self._schedule.done(number)
                        self._tell(self.counts["done"])
            finally:
                for task in running:
                    task.cancel()
                if running:
                    await asyncio.wait(running)

    async def _one(self, client: httpx.AsyncClient, line: BatchLine) -> None:
        body = await asyncio.to_thread(read_body, self._source, line)
        answer = await _asked(client, line.url, body)
        record = {
            "id": f"batch_req_{uuid.uuid4().hex}",
            "custom_id": line.custom_id,
            "response": {
                "status_code": answer.status_code,
                "request_id": answer.headers.get(REQUEST_ID_HEADER, ""),
                "body": answer.json(),
            },
            "error": None,
        }
        await asyncio.to_thread(self._output.append, record)
        self._count(answer)

    def _count(self, answer: httpx.Response) -> None:
        self.counts["done"] += 1
        if answer.status_code >= HTTPStatus.BAD_REQUEST:
            self.counts["failed"] += 1
            return
        usage = answer.json().get("usage") or {}
        prompt = usage.get("prompt_tokens", usage.get("input_tokens", 0))
        details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
        self.counts["prompt_tokens"] += prompt
        self.counts["cached_tokens"] += details.get("cached_tokens", 0)
        self.counts["completion_tokens"] += usage.get("completion_tokens", usage.get("output_tokens", 0))


async def _asked(client: httpx.AsyncClient, url: str, body: bytes) -> httpx.Response:
    """The answer; asked again while the server is busy. Raises ModelNotFoundError for what ends the batch."""
    nap_s, waited_s = FIRST_NAP_S, 0.0
    while True:
        answer = await client.post(url, content=body, headers={"content-type": "application/json"})
        code = _code(answer)
        if code in FATAL_CODES:
            raise ModelNotFoundError(f"{answer.json()['error']['message']}; run the batch again to go on")
        if answer.status_code != HTTPStatus.SERVICE_UNAVAILABLE or waited_s > PATIENCE_S:
            return answer
        await asyncio.sleep(nap_s)
        waited_s += nap_s
        nap_s = min(MAX_NAP_S, 2 * nap_s)


def _code(answer: httpx.Response) -> str:
    if answer.status_code < HTTPStatus.BAD_REQUEST:
        return ""
    error: Mapping[str, Any] = json.loads(answer.content).get("error", {})
    return str(error.get("code", ""))


def _set_up_log() -> None:
    """Progress is the caller's to show; what went wrong goes to stderr."""
    logger = logging.getLogger(LOGGER)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
        logger.setLevel(logging.WARNING)

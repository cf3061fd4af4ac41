"""Turns over HTTP: whole and streamed, cancelled, left by their client, counted as a chat completion is."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from kvloom.config import ServerSettings
from kvloom.server.auth import Caller
from kvloom.server.replies import Replies
from kvloom.server.run import listen
from tests.unit.server.kvloom_api import (
    GREEDY,
    SECRET,
    SESSIONS,
    PacedEngine,
    app_of,
    names,
    serving,
)
from tests.unit.server.live import PATIENCE_S, Live, read_until
from tests.unit.server.test_chat import events_of

pytestmark = pytest.mark.anyio


async def test_a_turn_is_answered_and_part_of_the_session(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        path = await api.session()
        turn = await api.ask(path, "One?")
        history = await api.do("GET", f"{path}/history")
        session = api.loom.session(id=turn["session"])
        assert turn["text"] == session.history()[0].answer
    assert (turn["number"], turn["finish_reason"]) == (1, "length")
    assert turn["usage"]["completion_tokens"] == 6
    cost = turn["kvloom"]
    whole = cost["reused_tokens"] + cost["loaded_tokens"] + cost["computed_tokens"]
    assert whole == turn["usage"]["prompt_tokens"] > 0
    assert [(one["id"], one["user"]) for one in history["data"]] == [(turn["id"], "One?")]


async def test_a_streamed_turn_spells_the_same_reply(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        first, second = await api.session(), await api.session()
        whole = await api.ask(first, "One?", max_tokens=12)
        body = {"text": "One?", **GREEDY, "max_tokens": 12, "stream": True}
        answer = await api.client.post(f"{second}/turns", json=body)
    events = events_of(answer.text)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "".join(event["text"] for event in events if event["type"] == "delta") == whole["text"]
    assert [event["type"] for event in events[-1:]] == ["done"]
    assert events[-1]["turn"]["text"] == whole["text"]
    assert events[-1]["turn"]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]


async def test_a_retry_takes_the_place_of_the_last_reply(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        path = await api.session()
        first = await api.ask(path, "One?")
        second = await api.do("POST", f"{path}/retry", {"temperature": 1.5, "seed": 7, "max_tokens": 6})
        turns = (await api.do("GET", f"{path}/history"))["data"]
        await api.do("POST", f"{path}/undo")
        before = (await api.do("GET", f"{path}/history"))["data"]
    assert [(one["id"], one["user"]) for one in turns] == [(second["id"], "One?")]
    assert [one["id"] for one in before] == [first["id"]]


async def test_stop_and_seed_and_length_are_the_turns_own(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        asked: dict[str, Any] = {"temperature": 1.2, "seed": 3, "max_tokens": 20}
        texts = [(await api.ask(await api.session(), **asked))["text"] for _ in range(2)]
        stop = texts[0][5:7]
        stopped = await api.ask(await api.session(), **asked, stop=stop)
    assert texts[0] == texts[1]
    assert stopped["text"] == texts[0][: texts[0].index(stop)] and stopped["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"text": ""}, "value_below_minimum"),
        ({"text": 1}, "invalid_type"),
        ({"max_tokens": 0}, "value_below_minimum"),
        ({"max_tokens": 100_001}, "value_above_maximum"),
        ({"temperature": 3}, "value_above_maximum"),
        ({"stop": [""]}, "invalid_value"),
        ({"stop": ["a"] * 17}, "invalid_value"),
        ({"n": 2}, "unknown_parameter"),
        ({"path": "/etc/passwd"}, "unknown_parameter"),
        ({"max_tokens": 4000}, "context_length_exceeded"),
        ({"text": "word " * 3000}, "context_length_exceeded"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_wrong_turn_is_refused_and_changes_nothing(
    tmp_path: Path, fields: dict[str, Any], code: str, stream: bool
) -> None:
    async with serving(tmp_path) as api:
        path = await api.session()
        before = await api.do("GET", f"{path}/usage")
        refused = await api.refused("POST", f"{path}/turns", {"text": "Hi", "stream": stream, **fields})
        assert await api.do("GET", f"{path}/usage") == before
        assert (await api.ask(path))["number"] == 1
    assert refused == (400, code)


async def test_an_overflow_names_the_numbers_and_a_policy_says_what_left(tmp_path: Path) -> None:
    async with serving(tmp_path, loom={"context": 256, "reserve_tokens": 32}) as api:
        path = await api.session()
        turns = [await api.ask(path, f"{number} " + "word " * 12, max_tokens=8) for number in range(2)]
        answer = await api.client.post(f"{path}/turns", json={"text": "word " * 24, "max_tokens": 100})
        await api.do("PATCH", path, {"policy": "fifo"})
        made = await api.ask(path, "word " * 24, max_tokens=60)
        usage = await api.do("GET", f"{path}/usage")
        ledger = await api.do("GET", f"{path}/ledger")
    error = answer.json()["error"]
    assert (error["code"], error["n_ctx"]) == ("context_length_exceeded", 256)
    assert "maximum context length is 256 tokens" in error["message"]
    assert made["left"][0] == turns[0]["id"] and made["notices"]
    assert [line["ref"] for line in ledger["data"]] == made["left"]
    assert "turn 1" in names(usage)


async def test_a_compression_says_what_it_would_do_does_it_and_is_undone(tmp_path: Path) -> None:
    async with serving(tmp_path, loom={"compression": {"preserve_recent": 1, "min_gain": 0.0}}) as api:
        path = await api.session()
        for number in range(4):
            await api.ask(path, f"{number} " + "word " * 40)
        estimate = await api.do("POST", f"{path}/compress", {"strategy": "truncate", "dry_run": True})
        before = await api.do("GET", f"{path}/usage")
        done = await api.do("POST", f"{path}/compress", {"strategy": "truncate"})
        after = await api.do("GET", f"{path}/usage")
        undone = await api.do("POST", f"{path}/undo")
        summary = await api.do("POST", f"{path}/compress", {"strategy": "summarize"})
    assert (estimate["is_dry_run"], done["is_dry_run"]) == (True, False)
    assert estimate["num_tokens_after"] == done["num_tokens_after"] == after["used"] < before["used"]
    assert undone["usage"]["used"] == before["used"] and undone["undone"].startswith("compress")
    assert summary["summary"] and summary["num_turns"] == 3


async def test_a_failing_turn_leaves_the_session_as_it_was_and_says_nothing_of_why(tmp_path: Path) -> None:
    engine = PacedEngine()
    async with serving(tmp_path, engine=engine) as api:
        path = await api.session()
        await api.ask(path, "One?")
        before = [await api.do("GET", f"{path}{end}") for end in ("/messages", "/prompt")]
        decode = engine.decode
        engine.decode = _broken  # type: ignore[method-assign,assignment]
        answer = await api.client.post(f"{path}/turns", json={"text": "Two?", **GREEDY})
        engine.decode = decode  # type: ignore[method-assign]
        after = [await api.do("GET", f"{path}{end}") for end in ("/messages", "/prompt")]
        again = await api.ask(path, "Two?")
    assert answer.status_code == 500 and "/home/someone" not in answer.text
    assert after == before and again["number"] == 2


# -- while it answers ----------------------------------------------------------------------------------------------


async def test_nobody_edits_a_session_that_answers_but_everyone_may_look(tmp_path: Path) -> None:
    engine = PacedEngine()
    async with serving(tmp_path, engine=engine) as api:
        await api.chunk(SECRET, "secret")
        path, other = await api.session(), await api.session()
        engine.pace = threading.Semaphore(0)
        asked = asyncio.create_task(api.ask(path, "One?", max_tokens=100))
        await asyncio.to_thread(engine.stepped.acquire)
        busy = [
            await api.refused("POST", f"{path}{end}", body)
            for end, body in (
                ("/activate", {"chunks": ["secret"]}), ("/turns", {"text": "Two?"}), ("/undo", None),
                ("/clear", {}), ("/compress", {}), ("/fork", {}), ("/snapshots", {}),
            )
        ]  # fmt: skip
        kept = await api.refused("DELETE", path)
        looked = await api.do("GET", f"{path}/history")
        editing = asyncio.create_task(api.do("POST", f"{other}/activate", {"chunks": ["secret"]}))
        while not editing.done():
            engine.pace.release()  # between two steps the device is anyone's
            await asyncio.wait({editing}, timeout=0.5)
        elsewhere = await editing
        assert not asked.done()
        engine.pace.release(1000)
        turn = await asked
        await api.do("POST", f"{path}/activate", {"chunks": ["secret"]})
    assert set(busy) == {(409, "session_busy")} == {kept}
    assert looked["data"] == [] and names(elsewhere) == ["secret"] and turn["number"] == 1


async def test_the_session_is_free_as_soon_as_its_reply_has_come(tmp_path: Path) -> None:
    """Also where what it took is settled a good while after."""
    quota = CountingQuota(settles_after_s=0.2)
    async with serving(tmp_path, quota=quota) as api:
        path = await api.session()
        for number in range(3):
            await api.ask(path, f"{number}?")
        answer = await api.client.post(f"{path}/turns", json={"text": "3?", **GREEDY, "stream": True})
        await api.do("POST", f"{path}/undo")
    assert events_of(answer.text)[-1]["turn"]["number"] == 4


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_turn_is_cancelled_by_another_request(tmp_path: Path, keep: bool, stream: bool) -> None:
    engine = PacedEngine()
    async with serving(tmp_path, engine=engine) as api:
        path = await api.session()
        await api.ask(path, "One?")
        engine.pace = threading.Semaphore(3)
        body = {"text": "Two?", "temperature": 0, "max_tokens": 50, "keep_partial": keep, "stream": stream}
        asked = asyncio.create_task(api.client.post(f"{path}/turns", json=body))
        for _ in range(4):
            await asyncio.to_thread(engine.stepped.acquire)
        [opened] = api.open_sessions._open.values()
        assert isinstance(opened.work, Replies)
        [worker] = opened.work._workers
        await _until(lambda: worker.num_deltas)  # something came, and was taken
        cancelled = await api.do("POST", f"{path}/cancel")
        engine.pace.release(1000)  # a step may have begun already
        answer = await asked
        engine.pace = None
        nothing = await api.do("POST", f"{path}/cancel")
        turns = (await api.do("GET", f"{path}/history"))["data"]
        await api.ask(path, "Three?")
    assert (cancelled["cancelled"], nothing["cancelled"]) == (True, False)
    end = events_of(answer.text)[-1] if stream else answer.json()
    if keep:
        turn = end["turn"] if stream else end
        assert turn["finish_reason"] == "cancelled" and turns[1]["answer"] == turn["text"] != ""
        assert turn["usage"]["completion_tokens"] <= 6
    else:
        assert end["error"]["code"] == "cancelled" and len(turns) == 1
        assert stream or answer.status_code == 409


async def test_a_cancel_of_one_turn_never_ends_the_next(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        path = await api.session()
        for number in range(5):
            turn, _ = await asyncio.gather(
                api.client.post(f"{path}/turns", json={"text": "One?", **GREEDY, "stream": number % 2 == 0}),
                api.do("POST", f"{path}/cancel"),
            )
            assert turn.status_code in (200, 409), turn.text
            await api.ask(path, "Two?")


async def test_a_turn_that_waits_for_its_slot_can_be_cancelled(tmp_path: Path) -> None:
    engine = PacedEngine()
    async with serving(tmp_path, engine=engine, slots=1) as api:
        first, second = await api.session(), await api.session()
        engine.pace = threading.Semaphore(0)
        running = asyncio.create_task(api.ask(first, "One?"))
        await asyncio.to_thread(engine.stepped.acquire)
        waiting = asyncio.create_task(api.refused("POST", f"{second}/turns", {"text": "Two?"}))
        await _until(lambda: api.app.state.service.admission.num_waiting == 1)
        await api.do("POST", f"{second}/cancel")
        assert await waiting == (409, "cancelled")
        engine.pace.release(100)
        assert (await running)["number"] == 1
        assert (await api.ask(second, "Two?"))["number"] == 1


async def test_a_full_queue_refuses_a_turn_as_it_refuses_a_completion(tmp_path: Path) -> None:
    engine = PacedEngine()
    async with serving(tmp_path, engine=engine, slots=1, queue_size=0) as api:
        first, second = await api.session(), await api.session()
        engine.pace = threading.Semaphore(0)
        running = asyncio.create_task(api.ask(first, "One?"))
        await asyncio.to_thread(engine.stepped.acquire)
        refused = await api.refused("POST", f"{second}/turns", {"text": "Two?"})
        engine.pace.release(100)
        await running
        await api.ask(second, "Two?")
    assert refused == (503, "queue_full")


# -- what it takes -------------------------------------------------------------------------------------------------


class CountingQuota:
    """Remembers what was reserved and what was settled."""

    def __init__(self, settles_after_s: float = 0.0) -> None:
        self.reserved: list[int] = []
        self.settled: list[int] = []
        self.num_released = 0
        self._settles_after_s = settles_after_s

    async def reserve(self, caller: Caller, num_tokens: int, request_id: str) -> CountingQuota:
        self.reserved.append(num_tokens)
        return self

    @property
    def headers(self) -> dict[str, str]:
        return {"x-ratelimit-remaining-tokens": "7"}

    async def settle(self, used_tokens: int) -> None:
        await asyncio.sleep(self._settles_after_s)
        self.settled.append(used_tokens)

    async def release(self) -> None:
        self.num_released += 1


async def test_a_turn_is_reserved_before_and_settled_exactly_after(tmp_path: Path) -> None:
    quota = CountingQuota()
    async with serving(tmp_path, quota=quota) as api:
        path = await api.session()
        turns = [await api.ask(path, f"{number}?") for number in range(3)]
        answer = await api.client.post(f"{path}/retry", json={**GREEDY})
        await _until(lambda: len(quota.settled) == 4)
        wrong = await api.refused("POST", f"{path}/turns", {"text": "word " * 3000})
    usages = [turn["usage"] for turn in (*turns, answer.json())]
    assert quota.settled == [usage["total_tokens"] for usage in usages]
    assert quota.reserved == [usage["prompt_tokens"] + GREEDY["max_tokens"] for usage in usages]
    assert answer.headers["x-ratelimit-remaining-tokens"] == "7"
    assert wrong == (400, "context_length_exceeded") and quota.num_released == 0


@pytest.mark.parametrize("policy", ["stop", "fifo", "adaptive"])
async def test_no_turn_takes_more_than_was_reserved(tmp_path: Path, policy: str) -> None:
    quota = CountingQuota()
    async with serving(tmp_path, quota=quota, loom={"context": 256, "reserve_tokens": 32}) as api:
        path = await api.session(policy=policy)
        for number in range(8):
            body = {"text": f"{number} " + "word " * 8, "temperature": 0}
            answer = await api.client.post(f"{path}/turns", json=body)
            assert answer.status_code == 200 or policy == "stop"
        await _until(lambda: len(quota.settled) + quota.num_released == len(quota.reserved))
    assert len(quota.settled) > 2
    assert all(used <= most for used, most in zip(quota.settled, quota.reserved, strict=False))


# -- clients that leave --------------------------------------------------------------------------------------------


@contextmanager
def running(home: Path, engine: PacedEngine, **settings: Any) -> Iterator[tuple[Live, Any]]:
    app, backend = app_of(home, engine, **settings)
    server = Live(app, ServerSettings(**settings), listen("127.0.0.1", 0))
    server.start()
    try:
        yield server, backend
    finally:
        engine.pace = None
        server.stop()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_in_the_middle_leaves_the_session_as_it_was(tmp_path: Path, stream: bool) -> None:
    engine = PacedEngine()
    with running(tmp_path, engine, slots=1) as (server, _):
        session = httpx.post(f"{server.url}{SESSIONS}", json={}).json()["id"]
        path = f"{SESSIONS}/{session}"
        httpx.post(f"{server.url}{path}/turns", json={"text": "One?", **GREEDY}).raise_for_status()
        before = [httpx.get(f"{server.url}{path}{end}").json() for end in ("/messages", "/prompt", "/ledger")]
        num_before = engine.num_decoded_tokens
        engine.pace = pace = threading.Semaphore(2)
        raw = server.send({"text": "Two?", "stream": stream, "temperature": 0, "max_tokens": 200}, f"{path}/turns")
        for _ in range(3):
            assert engine.stepped.acquire(timeout=PATIENCE_S)
        if stream:
            read_until(raw, b'"type":"delta"')
        raw.close()
        service = server.app.state.service
        assert _becomes(lambda: service.lifecycle.num_running == 1)
        _let_go(pace, lambda: service.lifecycle.num_running == 0)
        num_steps = engine.num_decoded_tokens - num_before
        engine.pace = None
        after = [httpx.get(f"{server.url}{path}{end}").json() for end in ("/messages", "/prompt", "/ledger")]
        again = httpx.post(f"{server.url}{path}/turns", json={"text": "Two?", **GREEDY}, timeout=PATIENCE_S).json()
    assert after == before
    assert again["number"] == 2
    assert num_steps < 100  # of the 200 that were asked for


def test_a_drained_server_ends_its_turns_and_keeps_its_sessions(tmp_path: Path) -> None:
    engine = PacedEngine()
    with running(tmp_path, engine, drain_timeout_s=0) as (server, _):
        session = httpx.post(f"{server.url}{SESSIONS}", json={"name": "one"}).json()["id"]
        path = f"{SESSIONS}/{session}"
        httpx.post(f"{server.url}{path}/turns", json={"text": "One?", **GREEDY}).raise_for_status()
        engine.pace = threading.Semaphore(1)
        raw = server.send({"text": "Two?", "stream": True, "temperature": 0, "max_tokens": 200}, f"{path}/turns")
        read_until(raw, b'"type":"delta"')
        server.server.stop()
        assert _becomes(lambda: server.app.state.service.lifecycle.phase.value == "draining")
        _let_go(engine.pace, server.ended.is_set)
        raw.close()
    fresh = PacedEngine()
    with running(tmp_path, fresh) as (server, _):
        turns = httpx.get(f"{server.url}{path}/history").json()["data"]
    assert [turn["user"] for turn in turns] == ["One?"]


def _let_go(pace: threading.Semaphore, is_over: Any) -> None:
    """Step by step, so that a cancelled reply has its chance after each."""
    until = time.monotonic() + PATIENCE_S
    while not is_over():
        assert time.monotonic() < until
        pace.release()
        pause = time.monotonic() + 0.25
        while not is_over() and time.monotonic() < pause:
            time.sleep(0.002)


def _becomes(what: Any) -> bool:
    until = time.monotonic() + PATIENCE_S
    while not what():
        if time.monotonic() > until:
            return False
        time.sleep(0.002)
    return True


async def _until(what: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not what():
            await asyncio.sleep(0.002)


def _broken(*_: object) -> Any:
    raise RuntimeError("a secret of the engine: /home/someone")

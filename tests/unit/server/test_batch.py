"""Batches: every line answered once, as over HTTP, shared beginnings computed once, whatever kills the process."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kvloom.errors import ModelNotFoundError, UsageError
from kvloom.server import batch as batch_module
from kvloom.server.backend import Backend
from kvloom.server.batch import BatchSummary, answer_all, check_models
from kvloom.server.batch_files import BatchOutput, read_batch
from kvloom.server.errors import unavailable
from kvloom.server.fleet import Fleet
from tests.unit.server.fleets import Openings, served, settings_for
from tests.unit.server.scripted import MODEL, Script, ScriptedBackend, ScriptedLease

ROOT = Path(__file__).parents[3]
PATIENCE_S = 60.0


def line(custom_id: str, text: str = "Hi", url: str = "/v1/chat/completions", **fields: Any) -> dict[str, Any]:
    prompt: dict[str, Any] = {"prompt": text}
    if url.endswith("chat/completions"):
        prompt = {"messages": [{"role": "user", "content": text}]}
    body = {"model": MODEL, **prompt, "max_tokens": 8, **fields}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def written(path: Path, lines: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")
    return path


def run(
    folder: Path, lines: Sequence[dict[str, Any]], backend: Backend, slots: int = 4
) -> tuple[BatchSummary, dict[str, dict[str, Any]]]:
    source, target = written(folder / "in.jsonl", lines), folder / "out.jsonl"
    found = read_batch(source)
    told: list[tuple[int, int]] = []
    with BatchOutput(target, [one.custom_id for one in found]) as output:
        summary = asyncio.run(
            answer_all(backend, settings_for(slots=slots), source, found, output, lambda *done: told.append(done))
        )
    assert told[-1] == (len(lines), len(lines))
    return summary, read_output(target)


def read_output(path: Path) -> dict[str, dict[str, Any]]:
    records = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    ids = [record["custom_id"] for record in records]
    assert len(ids) == len(set(ids)), "a line stands there twice"
    return dict(zip(ids, records, strict=True))


def test_every_line_is_answered_in_the_shape_of_a_batch(tmp_path: Path) -> None:
    lines = [line("chat"), line("text", url="/v1/completions"), line("reply", url="/v1/responses")]
    lines[2]["body"] = {"model": MODEL, "input": "Hi"}
    summary, found = run(tmp_path, lines, ScriptedBackend())
    assert set(found) == {"chat", "text", "reply"}
    for record in found.values():
        assert set(record) == {"id", "custom_id", "response", "error"}
        assert record["error"] is None
        assert record["response"]["status_code"] == 200
        assert record["response"]["request_id"]
    assert found["chat"]["response"]["body"]["choices"][0]["message"]["content"] == "Hello there."
    assert found["text"]["response"]["body"]["choices"][0]["text"] == "Hello there."
    assert (summary.num_requests, summary.num_done, summary.num_failed) == (3, 3, 0)
    assert summary.completion_tokens == 9
    assert summary.prompt_tokens > 0


def test_a_line_that_is_refused_has_the_servers_own_error_and_the_others_go_on(tmp_path: Path) -> None:
    lines = [line("bad", temperature=-1), line("long", "w " * 1000), line("good")]
    summary, found = run(tmp_path, lines, ScriptedBackend())
    assert found["bad"]["response"]["status_code"] == 400
    assert found["bad"]["response"]["body"]["error"]["param"] == "temperature"
    assert found["long"]["response"]["body"]["error"]["code"] == "context_length_exceeded"
    assert found["good"]["response"]["status_code"] == 200
    assert (summary.num_done, summary.num_failed) == (3, 2)


def test_what_stands_in_the_output_is_not_asked_again(tmp_path: Path) -> None:
    backend = ScriptedBackend()
    run(tmp_path, [line("a"), line("b")], backend)
    before = (tmp_path / "out.jsonl").read_text()
    summary, found = run(tmp_path, [line("a"), line("b"), line("c")], backend)
    assert (summary.num_done_before, summary.num_done) == (2, 1)
    assert len(backend.requests) == 3
    assert (tmp_path / "out.jsonl").read_text().startswith(before)
    assert set(found) == {"a", "b", "c"}


def test_a_batch_that_is_done_loads_nothing(tmp_path: Path) -> None:
    run(tmp_path, [line("a")], ScriptedBackend())

    async def explode() -> None:
        raise AssertionError("started")

    backend = ScriptedBackend()
    backend.loading = explode
    summary, _ = run(tmp_path, [line("a")], backend)
    assert (summary.num_done_before, summary.num_done) == (1, 0)


class BusyBackend(ScriptedBackend):
    """Has no room for the first so many."""

    def __init__(self, num_refusals: int, code: str = "model_no_room") -> None:
        super().__init__()
        self.num_refusals = num_refusals
        self.code = code

    async def acquire(self, model: str, tenant: str) -> ScriptedLease:
        if self.num_refusals:
            self.num_refusals -= 1
            raise unavailable("not now", self.code)
        return await super().acquire(model, tenant)


def test_a_busy_server_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "FIRST_NAP_S", 0.0)
    summary, found = run(tmp_path, [line("a"), line("b")], BusyBackend(3))
    assert (summary.num_done, summary.num_failed) == (2, 0)
    assert all(record["response"]["status_code"] == 200 for record in found.values())


def test_a_model_that_cannot_be_loaded_ends_the_batch_and_writes_no_line(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="not now; run the batch again"):
        run(tmp_path, [line("a"), line("b")], BusyBackend(1000, "model_unavailable"))
    assert (tmp_path / "out.jsonl").read_text() == ""
    summary, _ = run(tmp_path, [line("a"), line("b")], ScriptedBackend())
    assert summary.num_done == 2


def test_a_backend_that_cannot_start_ends_the_batch_with_its_reason(tmp_path: Path) -> None:
    async def explode() -> None:
        raise ModelNotFoundError("no such file")

    backend = ScriptedBackend()
    backend.loading = explode
    with pytest.raises(ModelNotFoundError, match="no such file"):
        run(tmp_path, [line("a")], backend)


def test_an_unknown_model_is_told_by_line_before_anything_is_loaded(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", [line("a"), line("b", model="gpt-5"), line("c", model="gpt-5")])
    with pytest.raises(UsageError) as caught:
        check_models(read_batch(source), ScriptedBackend(), source)
    assert f"{source}, line 2: there is no model 'gpt-5'" in str(caught.value)
    assert "known: alias, scripted" in str(caught.value)
    assert "line 3" not in str(caught.value)


def test_as_many_run_at_once_as_there_are_slots_and_those_that_begin_alike_wait_for_one(tmp_path: Path) -> None:
    pace = threading.Semaphore(0)
    backend = ScriptedBackend(Script(pace=pace), window=100_000)
    shared = "once upon a time " * 200
    lines = [line(f"{i}", shared + str(i)) for i in range(6)]
    runner = threading.Thread(target=run, args=(tmp_path, lines, backend, 3), daemon=True)
    runner.start()
    assert backend.started.acquire(timeout=PATIENCE_S)
    assert not backend.started.acquire(timeout=0.3)  # the others wait for the first
    pace.release(3)
    for _ in range(3):
        assert backend.started.acquire(timeout=PATIENCE_S)
    pace.release(100)
    runner.join(PATIENCE_S)
    assert not runner.is_alive()
    assert backend.most_running == 3


def test_a_beginning_that_all_prompts_share_is_computed_once_however_many_run_together(tmp_path: Path) -> None:
    registry, settings = served(tmp_path, "a", context=4096), settings_for(slots=4)
    fleet = Fleet(registry, settings, tmp_path / "home", open_model=Openings(tmp_path / "home"))
    shared = "the harbour has two piers and " * 50  # 1,500 tokens, of one byte each
    lines = [line(f"{i}", shared + f"question {i}", "/v1/completions", model="a") for i in range(9)]
    summary, found = run(tmp_path, lines, fleet, slots=4)
    assert summary.num_failed == 0
    bodies = [record["response"]["body"] for record in found.values()]
    computed = sorted(body["kvloom"]["computed"] for body in bodies)
    assert computed[-1] >= 1500
    assert all(count < 300 for count in computed[:-1])  # the last block only
    assert summary.cached_tokens == sum(body["usage"]["prompt_tokens_details"]["cached_tokens"] for body in bodies)


def test_a_batch_that_is_killed_again_and_again_answers_every_line_once(tmp_path: Path) -> None:
    lines = [line(f"id-{i}", f"question {i} " * 8, model="ab"[i % 2], max_tokens=6) for i in range(60)]
    source, target = written(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "tests.unit.server.batch_child", str(tmp_path), str(source), str(target)]
    draw = random.Random(3)
    kept: list[str] = []
    for round_ in range(2):
        wanted = len(kept) + draw.randrange(5, 15)
        held = [*command, str(wanted + 10)]
        child = subprocess.Popen(held, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        until = time.monotonic() + PATIENCE_S
        while child.poll() is None and time.monotonic() < until:
            if target.exists() and target.read_bytes().count(b"\n") >= wanted:
                break
            time.sleep(0.002)
        assert child.poll() is None, (round_, child.communicate()[1].decode())
        child.kill()
        child.communicate()
        whole = target.read_bytes().rpartition(b"\n")[0].decode().splitlines()
        assert whole[: len(kept)] == kept, "a finished line was lost or changed"
        kept = whole
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S * 2, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(len(kept)), str(len(lines) - len(kept))]
    found = read_output(target)
    assert set(found) == {one["custom_id"] for one in lines}
    assert all(record["response"]["status_code"] == 200 for record in found.values())

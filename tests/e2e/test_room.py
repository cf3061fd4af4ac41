"""Room and overflow on a real model: a real hog, a restore, a resize, a compression, an endless conversation."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import kvloom
from kvloom.config import load_settings
from kvloom.session.loom import Loom

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
NOTES = "The harbour of Anstruther has two piers. The east pier was built in 1866.\n"


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVLOOM_THREADS", "1")
        yield


@pytest.fixture
def loom(_one_thread: None, smollm2_path: Path, tmp_path: Path) -> Iterator[Loom]:
    home = tmp_path / "home"
    settings = load_settings(
        {"model": str(smollm2_path), "context": 1024, "reserve_tokens": 128, "overflow": {"policy": "adaptive"}},
        home=home,
    )
    with kvloom.open(settings=settings, home=home) as opened:
        yield opened


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is the kernel's")
def test_a_real_hog_drives_the_guard_to_refuse_and_back_and_nothing_is_killed(
    smollm2_path: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "tests.e2e.room_child", str(smollm2_path), str(tmp_path / "home")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["levels"][-1] == "critical", found
    assert {"soft", "hard"} & set(found["levels"]), found
    assert "MiB are used" in found["refusal"]
    history, cells, _ = found["history_cells_window"]
    assert (history, cells) == (0, 0), "no turn was added, and the cells were given back"
    assert found["is_same_reply"], found
    assert len(found["notices"]) == len(set(found["notices"]))


def test_a_restore_and_a_resize_change_no_reply(loom: Loom) -> None:
    chat = loom.session(system="Answer from the notes.", fidelity="exact")
    chat.activate(loom.load_text(NOTES * 8, name="notes").id)
    want = chat.generate("When was the east pier built?", max_tokens=12, temperature=0.0).text
    chat.undo()
    logits = chat.next_logits("When was the east pier built?")
    taken = chat.snapshot()
    chat.clear()
    chat.generate("Say hello.", max_tokens=4, temperature=0.0)
    chat.restore(taken.id)
    np.testing.assert_array_equal(chat.next_logits("When was the east pier built?"), logits)
    began = time.process_time()  # the model computes in here
    chat.resize(2048)
    chat.warm()
    chat.resize(1024)
    chat.warm()
    took = time.process_time() - began
    assert chat.generate("When was the east pier built?", max_tokens=12, temperature=0.0).text == want
    assert took < 5, f"{took:.2f} s; `kvloom bench room` measures it"


def test_a_long_conversation_is_summed_up_and_goes_on(loom: Loom) -> None:
    chat = loom.session(system="Answer briefly.")
    for number in range(22):
        chat.generate(
            f"Please remember: the code of door {number} is {4711 + number * 37}.", max_tokens=24, temperature=0.0
        )
        chat.wait_for_compression(120)
        assert chat.usage().used <= 1024
    summaries = [turn for turn in chat.history() if turn.replaces]
    assert len(summaries) == 1
    assert summaries[0].answer.strip()
    asked = {f"Please remember: the code of door {number} is {4711 + number * 37}." for number in range(22)}
    assert asked <= {turn.user for turn in chat.history()} | {line.text for line in chat.ledger()}
    reply = chat.generate("And now?", max_tokens=4, temperature=0.0)
    assert reply.usage.computed_tokens < reply.usage.prompt_tokens / 2, reply.usage

"""Turns of sessions and requests in one small pool: who finds too few cells waits for another to end."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kvloom.engine.fake import FakeEngine
from kvloom.errors import CancelledError, EngineMemoryError, KvloomError, SessionClosedError
from kvloom.session.loom import Loom
from kvloom.session.session import Session
from kvloom.session.values import Progress
from tests.unit.session.crowd import Crowd, alone, one
from tests.unit.session.fakes import Endless, engine_of, fake_loom
from tests.unit.session.test_concurrency import chat, complete, ended, started, until


def small_loom(home: Path, **values: object) -> Loom:
    """Cells for one long reply at once."""
    return fake_loom(home, Endless(num_cells=2048), context=1800, **values)


def is_in_line(loom: Loom) -> bool:
    return bool(loom.device.line._places) and bool(loom.device.lock._waiters)


def test_a_turn_waits_for_the_request_that_has_the_cells(tmp_path: Path) -> None:
    with small_loom(tmp_path / "home") as loom:
        session, told = loom.session(), list[Progress]()
        stream = loom.complete(chat("first", 1500))
        next(stream)
        asking = started(lambda: session.generate("what?", max_tokens=1500, temperature=0.0, progress=told.append))
        until(lambda: is_in_line(loom))
        assert not session.manifest.turns
        for _ in stream:
            pass
        assert ended(asking)
        assert len(session.manifest.turns) == 1
        assert [(one.task, one.total) for one in told if one.task.startswith("waiting")] == [("waiting for cells", 1)]


def test_a_request_waits_for_the_turn_that_has_the_cells_and_a_turn_for_a_turn(tmp_path: Path) -> None:
    with small_loom(tmp_path / "home") as loom:
        first, second = loom.session(), loom.session()
        stream = first.stream("what?", max_tokens=1500, temperature=0.0)
        next(stream)
        others = [
            started(lambda: complete(loom, chat("beside", 1500))),
            started(lambda: second.generate("and?", max_tokens=1500, temperature=0.0)),
        ]
        until(lambda: len(loom.device.line._places) == 2)
        for _ in stream:
            pass
        assert ended(*others)
        assert len(first.manifest.turns) == len(second.manifest.turns) == 1


@pytest.mark.parametrize("end", [Session.cancel, Session.close])
def test_a_turn_that_waits_is_cancelled_at_once(tmp_path: Path, end: Callable[[Session], None]) -> None:
    with small_loom(tmp_path / "home") as loom:
        session, errors = loom.session(), list[KvloomError]()

        def ask() -> None:
            try:
                session.generate("what?", max_tokens=1500)
            except KvloomError as error:
                errors.append(error)

        stream = loom.complete(chat("first", 1500))
        next(stream)
        asking = started(ask)
        until(lambda: is_in_line(loom))
        end(session)
        assert ended(asking)
        assert isinstance(errors[0], CancelledError | SessionClosedError)
        assert not loom.device.line._places
        stream.close()
        list(stream)
        if end is Session.cancel:
            assert session.generate("what?", max_tokens=20).finish_reason == "length"


def impatient(seconds: float) -> dict[str, object]:
    return {"server": {"queue_timeout_s": seconds}}


def test_a_turn_waits_no_longer_than_a_request_for_its_slot(tmp_path: Path) -> None:
    """Here it would wait for ever: the thread that waits is the one that does not read the other reply."""
    with small_loom(tmp_path / "home", **impatient(0.3)) as loom:
        session, other = loom.session(), loom.session()
        unread = session.stream("what?", max_tokens=1500)
        next(unread)
        began = time.monotonic()
        with pytest.raises(EngineMemoryError, match=r"within 0\.3 s, 1 replies are under way"):
            other.generate("and?", max_tokens=1500)
        with pytest.raises(EngineMemoryError, match=r"queue_timeout_s"):
            complete(loom, chat("beside", 1500))
        assert 0.6 <= time.monotonic() - began < 20
        unread.close()
        assert other.generate("and?", max_tokens=30).finish_reason == "length"


def test_what_all_cells_together_are_too_few_for_is_refused_at_once(tmp_path: Path) -> None:
    with small_loom(tmp_path / "home") as loom:
        session = loom.session()
        session.generate("what?", max_tokens=10)
        with loom.device.lock:
            engine_of(loom).resize(256)  # as if memory had shrunk behind the books
        with pytest.raises(EngineMemoryError, match=r"cells|free"):
            session.generate("what?", max_tokens=1500)


def test_a_compression_waits_for_the_request_that_has_the_cells(tmp_path: Path) -> None:
    with small_loom(tmp_path / "home", compression={"preserve_recent": 64, "min_gain": 0.0}) as loom:
        session = loom.session()
        for number in range(4):
            session.generate(f"question {number} " * 8, max_tokens=30)
        stream = loom.complete(chat("first", 1600))
        next(stream)
        asking = started(lambda: session.compress("summarize"))
        until(lambda: is_in_line(loom) or not asking.is_alive())
        assert asking.is_alive()
        for _ in stream:
            pass
        assert ended(asking)
        assert any(slot.is_summary for slot in session.manifest.turns)


def test_sessions_and_requests_that_wait_for_each_other_get_the_replies_of_the_lonely(tmp_path: Path) -> None:
    """No two wait for each other, nothing is lost, and nobody's reply is another's."""
    engine = FakeEngine(num_cells=1664, max_sequences=12)
    crowd, end, said = Crowd(), time.monotonic() + 4.0, dict[str, list[str]]()
    with fake_loom(tmp_path / "home", engine, context=1536) as loom:
        chunk = loom.load_text("a text that all of them read\n" * 8, name="note.txt").id

        def talk(name: str) -> None:
            draw, replies = random.Random(name), said.setdefault(name, [])
            try:
                session = loom.session(name=name)
                session.activate(chunk)
                while not crowd.errors and (not replies or (time.monotonic() < end and len(replies) < 3)):
                    text = f"{name} asks {len(replies)}"
                    max_tokens = 100 + 40 * (len(name) % 3)
                    if draw.random() < 0.3:
                        stream = session.stream(text, max_tokens=max_tokens, temperature=0.0)
                        next(stream, None)
                        stream.close()
                    replies.append(session.generate(text, max_tokens=max_tokens, temperature=0.0).text)
            except Exception as error:  # noqa: BLE001 - the edge of a thread: whatever it is, the test tells it
                crowd.errors.append(repr(error))

        def client(number: int) -> None:
            draw = random.Random(number)
            while time.monotonic() < end and not crowd.errors:
                try:
                    one(loom, draw, crowd)
                except Exception as error:  # noqa: BLE001 - the same
                    crowd.errors.append(repr(error))

        threads = [started(lambda number=number: client(number)) for number in range(4)]  # type: ignore[misc]
        threads += [started(lambda name=name: talk(name)) for name in ("a", "bb", "ccc", "dd")]  # type: ignore[misc]
        assert ended(*threads), "two of them wait for each other"
        assert not crowd.errors
        assert not loom.device.num_busy()
        assert not loom.device.line._places
        assert sum(map(len, said.values())) >= 4
    with fake_loom(tmp_path / "quiet", context=1536) as quiet:
        quiet.load_text("a text that all of them read\n" * 8, name="note.txt")
        for request, replies in crowd.replies.items():
            assert replies == {alone(quiet, int(request))}
        for name, texts in said.items():
            session = quiet.session(name=name)
            session.activate(chunk)
            for place, text in enumerate(texts):
                length = 100 + 40 * (len(name) % 3)
                assert session.generate(f"{name} asks {place}", max_tokens=length, temperature=0.0).text == text

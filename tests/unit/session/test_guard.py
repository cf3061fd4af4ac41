"""What is done when memory runs low, driven by readings; the real hog is in tests/e2e."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kvloom.errors import EngineMemoryError, MemoryPressureError
from kvloom.memory.guard import Level
from kvloom.memory.reading import MemoryKind, MemoryPicture, MemoryReading
from kvloom.session.loom import Loom
from kvloom.session.session import Session
from kvloom.session.values import GuardNotice
from kvloom.types import TierName
from tests.unit.session.fakes import fake_loom, held_tokens

TOTAL = 1_000_000_000


def at(share: float) -> MemoryPicture:
    used = int(TOTAL * share)
    return MemoryPicture((MemoryReading("RAM", MemoryKind.RAM, TOTAL, used, TOTAL - used, "test"),))


@pytest.fixture
def loom(tmp_path: Path) -> Iterator[Loom]:
    with fake_loom(tmp_path / "home", context=4096, context_min=512) as opened:
        yield opened


def filled(loom: Loom) -> Session:
    chat = loom.session()
    chat.activate(loom.load_text("a note about whales", name="note").id)
    for number in range(6):
        chat.generate(f"turn number {number}", max_tokens=6, temperature=0.0)
    return chat


def look(loom: Loom, share: float) -> None:
    loom.guard.on_picture(at(share))
    loom.guard.wait(60)


def test_soft_moves_cold_entries_to_disk_and_says_so_once(loom: Loom) -> None:
    chat = filled(loom)
    told: list[GuardNotice] = []
    loom.guard.acted.subscribe(told.append)
    want = chat.next_logits("And?")
    for share in (0.5, 0.81, 0.82, 0.79, 0.81):
        look(loom, share)
    assert [(notice.before, notice.after) for notice in told] == [("normal", "soft")]
    ram = next(tier for tier in loom.status().tiers if tier.tier is TierName.RAM)
    assert ram.used_bytes == 0
    np.testing.assert_array_equal(chat.next_logits("And?"), want)
    reply = chat.generate("And?", max_tokens=2, temperature=0.0)
    assert any("81%" in notice for notice in reply.notices)
    assert not chat.generate("And?", max_tokens=2, temperature=0.0).notices


def test_a_pinned_chunk_stays_in_ram(loom: Loom) -> None:
    chat = filled(loom)
    chat.pin("note")
    look(loom, 0.85)
    assert next(tier for tier in loom.status().tiers if tier.tier is TierName.RAM).used_bytes > 0


def test_hard_shrinks_the_window_and_undo_takes_it_back(loom: Loom) -> None:
    chat = filled(loom)
    cells = loom.engine.num_cells
    look(loom, 0.92)
    assert chat.window == 2048
    assert loom.engine.num_cells < cells
    chat.warm()
    assert held_tokens(loom, chat) == chat.tokens()
    look(loom, 0.5)
    chat.undo()
    assert chat.window == 4096


def test_hard_lets_older_turns_leave_where_the_conversation_would_not_fit(tmp_path: Path) -> None:
    with fake_loom(tmp_path / "home", context=1024, context_min=128) as loom:
        chat = loom.session()
        for number in range(14):
            chat.generate(f"turn number {number}", max_tokens=6, temperature=0.0)
        before = {turn.user for turn in chat.history()}
        look(loom, 0.92)
        assert chat.window < 1024
        assert len(chat.history()) < 14
        assert before == {turn.user for turn in chat.history()} | {line.text for line in chat.ledger()}


def test_critical_refuses_new_work_takes_a_snapshot_and_releases_the_cells(loom: Loom) -> None:
    chat = filled(loom)
    want, tokens = chat.next_logits("And?"), chat.tokens()
    look(loom, 0.97)
    assert loom.engine.num_cells == 0
    with pytest.raises(MemoryPressureError, match="925 of 954 MiB"):
        chat.generate("And?")
    assert chat.tokens() == tokens
    assert [snapshot.reason for snapshot in chat.snapshots()] == ["memory is critically short"]
    look(loom, 0.92)
    assert loom.guard.level is Level.CRITICAL, "within the hysteresis"
    look(loom, 0.5)
    np.testing.assert_array_equal(chat.next_logits("And?"), want)


def test_a_reply_under_way_is_let_to_its_end(loom: Loom) -> None:
    chat = filled(loom)
    want = chat.generate("tell me", max_tokens=30, temperature=0.0).text
    chat.undo()
    stream = chat.stream("tell me", max_tokens=30, temperature=0.0)
    next(stream)
    look(loom, 0.97)
    for _ in stream:
        pass
    loom.guard.wait(60)
    assert stream.reply.text == want
    with pytest.raises(MemoryPressureError):
        chat.generate("And?")
    look(loom, 0.97)
    assert loom.engine.num_cells == 0, "released once the reply has ended"
    assert len(loom.guard.notices) == 2
    look(loom, 0.97)
    assert len(loom.guard.notices) == 2
    look(loom, 0.5)
    assert chat.generate("And?", max_tokens=2, temperature=0.0).text


def test_memory_that_rises_on_while_a_reply_runs_holds_up_neither_the_monitor_nor_the_reply(loom: Loom) -> None:
    chat = filled(loom)
    stream = chat.stream("tell me", max_tokens=30, temperature=0.0)
    next(stream)
    for share in (0.92, 0.97):  # to shrink the window, the first waits for the reply's end
        monitor = threading.Thread(target=loom.guard.on_picture, args=(at(share),), daemon=True)
        monitor.start()
        monitor.join(10)
        assert not monitor.is_alive()
    reader = threading.Thread(target=lambda: [None for _ in stream], daemon=True)
    reader.start()
    reader.join(20)
    assert not reader.is_alive()
    loom.guard.wait(20)
    assert [notice.after for notice in loom.guard.notices] == ["hard", "critical"]
    assert chat.window == 2048
    assert loom.engine.num_cells == 0


def asked(session: Session) -> tuple[str, ...]:
    """The notices of a short reply."""
    return session.generate("And?", max_tokens=2, temperature=0.0).notices


def test_a_notice_on_the_machine_reaches_each_tenant_once(loom: Loom) -> None:
    tenants = [loom, loom.tenant("one"), loom.tenant("two")]
    sessions = [tenant.session() for tenant in tenants]
    look(loom, 0.82)
    later = loom.tenant("three").session()
    for session in sessions:
        assert sum("82%" in notice for notice in asked(session)) == 1
        assert asked(session) == ()
    assert asked(later) == (), "it was not here when it happened"
    look(loom, 0.97)
    look(loom, 0.5)
    for session in (*sessions, later):
        told = asked(session)
        assert [("new work is refused" in one, "accepted again" in one) for one in told] == [
            (True, False),
            (False, True),
        ]


def test_what_was_done_to_a_conversation_is_told_to_its_tenant_alone(loom: Loom) -> None:
    one, two = loom.tenant("one"), loom.tenant("two")
    mine, other, theirs = one.session(name="mine"), one.session(name="other"), two.session()
    theirs.resize(3000)
    idle = loom.tenant("idle").session()
    idle.resize(512)  # as small as the guard makes any
    look(loom, 0.92)
    assert (mine.window, theirs.window, idle.window) == (2048, 1500, 512)
    [told] = asked(mine)
    assert "the window of session mine went from 4096 to 2048 tokens" in told
    assert "the window of session other went from 4096 to 2048 tokens" in told
    assert asked(other) == ()
    [told] = asked(theirs)
    assert "the window went from 3000 to 1500 tokens" in told
    assert "4096" not in told
    [told] = asked(idle)
    assert "the window went" not in told
    for text in (notice.text for notice in loom.guard.notices):
        assert "the window" not in text
    assert [len(loom.guard.notices_of(tenant)) for tenant in (loom, one, two)] == [1, 1, 1]


def test_what_fails_is_told_in_full_to_the_loom_itself_only(loom: Loom, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, own = loom.tenant("one").session(), loom.session()

    def fail() -> int:
        raise OSError(28, "No space left on device", "/home/two/secret")

    monkeypatch.setattr(loom.store, "cool", fail)
    look(loom, 0.82)
    [told] = asked(theirs)
    assert "not everything could be done" in told and "secret" not in told
    [told] = asked(own)
    assert "secret" in told


def test_a_tenant_that_was_closed_is_told_nothing_and_kept_by_nothing(loom: Loom) -> None:
    gone = loom.tenant("one")
    gone.close()
    look(loom, 0.82)
    assert loom.guard.notices_of(gone) == () == loom.guard.take_notices(gone)


def test_can_allocate_and_safe_limit_follow_the_readings(loom: Loom) -> None:
    assert loom.guard.can_allocate(10**9), "nothing is known yet"
    assert loom.guard.safe_limit() is None
    look(loom, 0.7)
    limit = loom.guard.safe_limit()
    assert limit is not None
    assert limit == pytest.approx(0.1 * TOTAL / loom.engine.layout.token_bytes, rel=0.01)
    assert loom.guard.can_allocate(limit)
    assert not loom.guard.can_allocate(limit + 2)


def test_a_window_that_memory_cannot_hold_is_refused_before_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_loom(tmp_path / "home", context=1024) as loom:
        chat = filled(loom)
        monkeypatch.setattr(loom.pool, "_spare_bytes", lambda: 1000)
        with pytest.raises(EngineMemoryError, match="MiB more"):
            chat.resize(8192)
        assert chat.window == 1024


def test_a_probe_that_lies_or_fails_changes_nothing(loom: Loom) -> None:
    look(loom, 0.5)
    loom.guard.on_picture(MemoryPicture())
    for total, used in ((0, 0), (10, 20)):
        lie = MemoryReading("RAM", MemoryKind.RAM, total, used, total - used, "liar")
        loom.guard.on_picture(MemoryPicture((lie,)))
    assert loom.guard.level is Level.NORMAL

"""What leaves a window, what comes back, and what is never lost: policies, ledger, snapshots, compression, resize."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kvloom.context.policies.base import policy_names
from kvloom.engine.fake import FakeEngine
from kvloom.errors import (
    CompressionError,
    ContextOverflowError,
    EngineMemoryError,
    SnapshotError,
    UnknownSnapshotError,
    UsageError,
)
from kvloom.session.loom import Loom
from kvloom.session.pool import num_cells
from kvloom.session.session import Session
from kvloom.session.values import CompressionResult, Overflow, Threshold
from kvloom.types import Fidelity
from tests.unit.session.fakes import engine_of, fake_loom, fresh_logits, held_tokens

WINDOW = 512
DROPPING = [name for name in policy_names() if name not in ("stop", "clear")]


@pytest.fixture
def loom(tmp_path: Path) -> Iterator[Loom]:
    with fake_loom(tmp_path / "home", context=WINDOW, reserve_tokens=64) as opened:
        yield opened


def ask(chat: Session, text: str = "What is it?", max_tokens: int = 6) -> str:
    return chat.generate(text, max_tokens=max_tokens, temperature=0.0).text


def fill(chat: Session, num_turns: int, text: str = "turn number {}, and some more words") -> None:
    for number in range(num_turns):
        ask(chat, text.format(number))


XYLOPHONE = "the code of the red door is xylophone"


def long_after(loom: Loom, text: str) -> Session:
    """An adaptive chat in which this was said, and has left the window since."""
    chat = loom.session()
    chat.policy = "adaptive"
    ask(chat, text)
    fill(chat, 14)
    return chat


def given(chat: Session) -> set[str]:
    """Every question that is in the prompt or in the ledger."""
    return {turn.user for turn in chat.history()} | {line.text for line in chat.ledger()}


# -- policies -------------------------------------------------------------------------------------------------------


def test_stop_refuses_with_the_numbers_and_leaves_everything(loom: Loom) -> None:
    chat = loom.session()
    with pytest.raises(ContextOverflowError, match=r"512 tokens.*in use") as refused:
        fill(chat, 40)
    turns = len(chat.history())
    assert turns > 3
    assert refused.value.num_needed_tokens > WINDOW
    assert chat.ledger() == []


@pytest.mark.parametrize("name", ["clear", *DROPPING])
@pytest.mark.parametrize("mode", list(Fidelity))
def test_a_conversation_goes_on_for_ever_and_every_question_is_in_prompt_or_ledger(
    loom: Loom, name: str, mode: Fidelity
) -> None:
    chat = loom.session(fidelity=mode)
    chat.policy = name
    for number in range(18):
        reply = chat.generate(f"turn number {number}, and some more words", max_tokens=6, temperature=0.0)
        usage = chat.usage()
        assert usage.used <= usage.capacity
        assert len(reply.left) == 0 or any(name in notice for notice in reply.notices)
    assert len(chat.ledger()) > 5
    assert {f"turn number {number}, and some more words" for number in range(18)} <= given(chat)
    assert held_tokens(loom, chat) == chat.tokens()
    if mode is Fidelity.EXACT:
        question = chat._asking.question("And?", chat.manifest).tokens
        fresh = fresh_logits(engine_of(loom), [*chat.tokens(), *question])
        room = chat.usage().free > len(question) + 64
        assert not room or np.array_equal(chat.next_logits("And?"), fresh)


def test_fifo_drops_the_oldest_and_keep_first_the_middle(loom: Loom) -> None:
    kept = {}
    for name in ("fifo", "keep_first"):
        chat = loom.session()
        chat.policy = name
        fill(chat, 14)
        kept[name] = [turn.user for turn in chat.history()]
    assert "turn number 0, and some more words" not in kept["fifo"]
    assert kept["keep_first"][0] == "turn number 0, and some more words"
    assert kept["fifo"][-1] == kept["keep_first"][-1] == "turn number 13, and some more words"


def test_a_pinned_turn_never_leaves(loom: Loom) -> None:
    for name in DROPPING:
        chat = loom.session()
        ask(chat, "remember: the word is xylophone")
        chat.pin("1")
        chat.policy = name
        fill(chat, 14)
        assert chat.history()[0].user == "remember: the word is xylophone", name


def test_adaptive_brings_back_the_turn_that_the_question_is_about(loom: Loom) -> None:
    chat = long_after(loom, XYLOPHONE)
    assert XYLOPHONE not in [turn.user for turn in chat.history()]
    reply = chat.generate("what is the code of the red door?", max_tokens=6, temperature=0.0)
    users = [turn.user for turn in chat.history()]
    assert XYLOPHONE in users
    assert users[-1] == "what is the code of the red door?"
    assert len(reply.came_back) == 1


@pytest.mark.parametrize(
    "form",
    [
        "what is the locker code of {}?",
        "please tell me the locker code of {}.",
        "I forgot the locker code of {}, can you repeat it to me",
        "give me the code of {}",
    ],
)
def test_what_was_told_comes_back_however_often_the_same_was_asked_of_others(loom: Loom, form: str) -> None:
    chat = loom.session()
    chat.policy = "adaptive"
    names = ["anna", "boris", "clara", "david", "elena", "farid", "greta", "henry"]
    for number, name in enumerate(names):
        ask(chat, f"remember that the locker code of {name} is {4711 + number}")
        ask(chat, "it rained all day in the mountains")
    for name in names[:6] * 2:  # asked of once more, the earlier reply is not what was told
        ask(chat, form.format(name))
        assert f"the locker code of {name} is 47" in chat.prompt()


def test_of_many_turns_alike_those_that_are_meant_come_back(loom: Loom) -> None:
    chat = loom.session()
    chat.policy = "adaptive"
    names = [
        f"{first}{last}" for first in ("an", "bo", "cy", "di", "el") for last in ("na", "ris", "mo", "ta", "vy", "xo")
    ]
    for number, name in enumerate(names):
        ask(chat, f"the access code of {name} is {4711 + number}")
        fill(chat, 3)
    reply = chat.generate(f"what is the access code of {names[0]}?", max_tokens=6, temperature=0.0)
    there = [turn.user for turn in chat.history() if "access code" in turn.user]
    assert "the access code of anna is 4711" in there
    assert len(reply.came_back) == 1


def test_what_comes_back_stands_before_its_question_and_what_was_said_later_on_the_matter(loom: Loom) -> None:
    chat = long_after(loom, XYLOPHONE)
    ask(chat, "what is the code of the red door?")
    users = [turn.user for turn in chat.history()]
    assert users[-2] == XYLOPHONE
    chat.undo()  # the turn
    chat.undo()  # what came back for it
    ask(chat, "the code of the red door is trombone")
    ask(chat, "and now to something else")
    ask(chat, "what is the code of the red door?")
    users = [turn.user for turn in chat.history()]
    assert users.index(XYLOPHONE) < users.index("the code of the red door is trombone")
    assert users[-2:] == ["and now to something else", "what is the code of the red door?"]


def test_what_comes_back_does_not_stand_between_a_follow_up_and_what_it_follows(loom: Loom) -> None:
    chat = long_after(loom, "the carpenter built it")
    ask(chat, "the harbour of Valparaiso lies in the south")
    ask(chat, "and who built it?")
    users = [turn.user for turn in chat.history()]
    assert users[-3:] == ["the carpenter built it", "the harbour of Valparaiso lies in the south", "and who built it?"]


def test_nothing_comes_back_that_means_less_than_what_still_stands(loom: Loom) -> None:
    chat = long_after(loom, XYLOPHONE)
    ask(chat, "the code of the green garden gate is trombone")
    reply = chat.generate("what is the code of the green garden gate?", max_tokens=6, temperature=0.0)
    assert reply.came_back == ()


def test_what_came_back_for_one_question_is_put_in_order_for_another(loom: Loom) -> None:
    chat = loom.session()
    chat.policy = "adaptive"
    old, new = "the red door has xylophone as its code, the blue door kazoo", "the red door has trombone as its code"
    ask(chat, old)
    fill(chat, 14)
    ask(chat, new)
    fill(chat, 1)
    ask(chat, "what about kazoo and the blue door")
    users = [turn.user for turn in chat.history()]
    assert users.index(old) > users.index(new), "no other has to do with it"
    ask(chat, "which code has the red door?")
    users = [turn.user for turn in chat.history()]
    assert users.index(old) < users.index(new)


def test_what_came_back_is_put_in_order_where_nothing_has_to_leave(tmp_path: Path) -> None:
    with fake_loom(tmp_path / "home", context=4096) as loom:
        chat = loom.session()
        chat.policy = "adaptive"
        old, new = "the red door has xylophone as its code, the blue kazoo", "the red door has trombone as its code"
        ask(chat, old)
        fact = chat.manifest.turns[0]
        ask(chat, new)
        fill(chat, 14)
        chat._desk.commit("policy", chat.manifest.without({fact.ref}))
        ask(chat, "what about kazoo and xylophone")
        users = [turn.user for turn in chat.history()]
        assert users.index(old) > users.index(new), "no other has to do with it"
        reply = chat.generate("which code has the red door?", max_tokens=6, temperature=0.0)
        users = [turn.user for turn in chat.history()]
        assert users.index(old) < users.index(new)
        assert (reply.left, reply.came_back) == ((), ())
        assert any("were put in order" in notice for notice in reply.notices)
        chat.undo()
        chat.undo()
        users = [turn.user for turn in chat.history()]
        assert users.index(old) > users.index(new)


def test_an_undone_question_is_not_what_is_tried_again(loom: Loom) -> None:
    chat = long_after(loom, XYLOPHONE)
    newest = chat.history()[-1].user
    ask(chat, "what is the code of the red door?")
    chat.undo()  # the turn; what came back for it stands last
    assert chat.history()[-1].user == XYLOPHONE
    chat.retry(max_tokens=6, temperature=0.0)
    users = [turn.user for turn in chat.history()]
    assert users[-1] == newest
    assert users.count(newest) == 1


def test_what_came_back_is_as_old_as_it_is(loom: Loom) -> None:
    chat = long_after(loom, XYLOPHONE)
    ask(chat, "what is the code of the red door?")
    assert XYLOPHONE in [turn.user for turn in chat.history()]
    for policy in ("fifo", "sliding_window", "adaptive"):
        fork = chat.fork()
        fork.policy = policy
        fill(fork, 3)
        users = [turn.user for turn in fork.history()]
        assert XYLOPHONE not in users, policy
        assert "what is the code of the red door?" in users, policy


def test_who_asks_again_is_not_kept_from_the_answer_by_the_question_that_stands(loom: Loom) -> None:
    chat = long_after(loom, f"{XYLOPHONE}, and that of all the others is not known to anybody at all")
    question = "remind me please: what was the code of the red door again?"
    ask(chat, question)
    fact = next(turn for turn in chat.manifest.turns if "xylophone" in chat._desk.history.turn(turn.ref).user)
    chat._desk.commit("policy", chat.manifest.without({fact.ref}))
    reply = chat.generate(question, max_tokens=6, temperature=0.0)
    assert fact.ref in reply.came_back


def test_a_turn_comes_back_again_after_a_restore_has_taken_it_out(loom: Loom) -> None:
    chat = loom.session()
    chat.policy = "adaptive"
    ask(chat, "the harbour of Valparaiso lies in the south")
    fill(chat, 20)
    before = chat.snapshot("before")
    for _ in range(2):
        ask(chat, "what about the harbour of Valparaiso?")
        assert any("Valparaiso lies" in turn.user for turn in chat.history())
        chat.restore(before.id)
        assert not any("Valparaiso lies" in turn.user for turn in chat.history())


def test_what_was_cleared_does_not_come_back_by_itself(loom: Loom) -> None:
    chat = loom.session()
    chat.policy = "adaptive"
    ask(chat, XYLOPHONE)
    chat.clear(turns=[1])
    fill(chat, 14)
    ask(chat, "what is the code of the red door?")
    assert XYLOPHONE not in [turn.user for turn in chat.history()]
    assert XYLOPHONE in [line.text for line in chat.ledger()]


def test_a_question_that_alone_is_too_large_is_refused_by_every_policy(loom: Loom) -> None:
    for name in policy_names():
        chat = loom.session()
        chat.policy = name
        fill(chat, 3)
        before = chat.tokens()
        with pytest.raises(ContextOverflowError):
            ask(chat, "x" * 600)
        assert chat.tokens() == before, name


def test_an_unknown_policy_is_refused_with_the_known_ones(loom: Loom) -> None:
    chat = loom.session()
    with pytest.raises(UsageError, match="adaptive"):
        chat.policy = "magic"


def test_undo_takes_back_the_turn_and_then_what_made_room_for_it(loom: Loom) -> None:
    chat = loom.session()
    chat.policy = "fifo"
    states = []
    while not chat.ledger():
        states.append(chat.tokens())
        ask(chat, f"turn number {len(states)}, and some more words")
    chat.undo()
    assert chat.undo() == "policy fifo"
    assert chat.tokens() == states[-1]


def test_a_cancelled_or_failing_turn_drops_nothing(loom: Loom) -> None:
    chat = loom.session()
    chat.policy = "fifo"
    fill(chat, 11)
    before, ledger = chat.tokens(), [line.ref for line in chat.ledger()]
    stream = chat.stream("one more turn with quite some words in it " * 4, max_tokens=60, temperature=0.0)
    next(stream)
    stream.close()
    assert chat.tokens() == before
    assert [line.ref for line in chat.ledger()] == ledger


# -- ledger ---------------------------------------------------------------------------------------------------------


def test_the_ledger_says_why_and_recall_brings_back(loom: Loom) -> None:
    chat = loom.session()
    note = loom.load_text("a note about whales", name="note")
    chat.activate(note.id)
    fill(chat, 3)
    chat.clear(turns=[1])
    chat.remove(note.id)
    lines = {line.text: line for line in chat.ledger()}
    assert lines["turn number 0, and some more words"].reason.startswith("clear turns")
    assert lines["note"].reason.startswith("remove")
    chat.recall(lines["turn number 0, and some more words"].ref[:8], "note")
    assert chat.ledger() == []
    assert [turn.user for turn in chat.history()] == [f"turn number {i}, and some more words" for i in range(3)]
    chat.warm()
    assert held_tokens(loom, chat) == chat.tokens()
    with pytest.raises(UsageError, match="no line"):
        chat.recall("deadbeef")


def test_what_undo_took_back_is_in_the_ledger_too(loom: Loom) -> None:
    chat = loom.session()
    ask(chat, "this will be undone")
    chat.undo()
    (line,) = chat.ledger()
    assert (line.text, line.is_undone) == ("this will be undone", True)


# -- snapshots ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", list(Fidelity))
def test_a_restore_gives_the_very_same_next_reply_and_undo_takes_it_back(loom: Loom, mode: Fidelity) -> None:
    chat = loom.session(fidelity=mode)
    fill(chat, 3)
    want = chat.next_logits("And?")
    taken = chat.snapshot("here")
    fill(chat, 2)
    chat.clear()
    ask(chat, "something else")
    other = chat.tokens()
    chat.restore(taken.id)
    np.testing.assert_array_equal(chat.next_logits("And?"), want)
    chat.undo()
    assert chat.tokens() == other
    assert chat.restore("here").id == taken.id
    assert [s.title for s in chat.snapshots() if not s.is_auto] == ["here"]


def test_a_destructive_step_is_preceded_by_a_snapshot_of_its_own(loom: Loom) -> None:
    chat = loom.session()
    fill(chat, 2)
    chat.clear()
    (automatic,) = chat.snapshots()
    assert (automatic.is_auto, automatic.reason, automatic.num_turns) == (True, "before clear", 2)
    assert next(message.content for message in chat.snapshot_messages(automatic.id)).startswith("turn number 0")


def test_only_the_newest_automatic_snapshots_stay_and_those_of_a_person_all(tmp_path: Path) -> None:
    with fake_loom(tmp_path / "home", context=4096, snapshots={"max_count": 2}) as loom:
        chat = loom.session()
        mine = chat.snapshot("mine")
        for number in range(70):
            ask(chat, f"turn {number}", max_tokens=2)
            chat.clear(turns=[1])
        automatic = [s for s in chat.snapshots() if s.is_auto]
        assert 2 <= len(automatic) < 40, "those that undo can reach stay"
        assert mine.id in [s.id for s in chat.snapshots()]


def test_a_fork_goes_on_alone_and_shares_the_kv(loom: Loom) -> None:
    chat = loom.session()
    fill(chat, 3)
    taken = chat.snapshot()
    want = chat.next_logits("And?")
    fill(chat, 1)
    fork = chat.fork(taken.id, name="other")
    assert fork.id != chat.id
    warmed = fork.warm()
    assert warmed.computed_tokens == 0
    np.testing.assert_array_equal(fork.next_logits("And?"), want)
    ask(fork, "only here")
    assert len(chat.history()) == 4
    assert fork.undo() == "turn"
    fork.undo()
    assert len(fork.history()) == 2


def test_unknown_ambiguous_and_missing_snapshots_are_named(loom: Loom) -> None:
    chat = loom.session()
    with pytest.raises(SnapshotError, match="no snapshot yet"):
        chat.restore()
    with pytest.raises(UnknownSnapshotError, match="it has none"):
        chat.restore("nothing")
    taken = chat.snapshot("a")
    assert chat.delete_snapshot(taken.id).title == "a"
    with pytest.raises(UnknownSnapshotError):
        chat.restore(taken.id)


def test_a_damaged_snapshot_is_refused_and_the_conversation_stays_whole(loom: Loom) -> None:
    chat = loom.session()
    fill(chat, 2)
    taken = chat.snapshot()
    loom._database.execute("UPDATE snapshots SET meta = replace(meta, 'num_turns', 'num_burns')")
    before = chat.tokens()
    with pytest.raises(SnapshotError, match="damaged"):
        chat.restore(taken.id)
    assert chat.tokens() == before
    assert chat.snapshots() == []
    assert "damaged" in chat.snapshot_faults()[0]
    assert chat.delete_snapshot(taken.id).id == taken.id
    assert chat.snapshot_faults() == ()


# -- compression ----------------------------------------------------------------------------------------------------


def test_truncate_leaves_the_newest_quarter_and_undo_brings_all_back(loom: Loom) -> None:
    chat = loom.session()
    fill(chat, 8)
    before = chat.tokens()
    estimate = chat.compress("truncate", dry_run=True)
    assert chat.tokens() == before
    result = chat.compress("truncate")
    assert isinstance(result, CompressionResult)
    assert result.num_tokens_after == estimate.num_tokens_after == chat.usage().used
    assert 1 <= len(chat.history()) < 8
    assert len(chat.ledger()) == result.num_turns
    chat.undo()
    assert chat.tokens() == before


@pytest.mark.parametrize("mode", list(Fidelity))
def test_a_summary_stands_for_all_that_it_replaces_and_the_next_reply_does_not_stall(
    loom: Loom, mode: Fidelity
) -> None:
    chat = loom.session(fidelity=mode)
    fill(chat, 8)
    refs = {turn.id for turn in chat.history()}
    result = chat.compress("hybrid")
    assert isinstance(result, CompressionResult)
    summary, *rest = chat.history()
    assert set(summary.replaces) == refs - {turn.id for turn in rest}
    assert summary.answer == result.summary != ""
    assert result.num_tokens_after < result.num_tokens_before
    reply = chat.generate("And?", max_tokens=2, temperature=0.0)
    question = reply.usage.prompt_tokens - chat.manifest.num_tokens + reply.usage.completion_tokens
    assert reply.usage.computed_tokens <= reply.usage.prompt_tokens // 4, (reply.usage, question)


def test_a_summary_takes_over_the_one_before_it(loom: Loom) -> None:
    chat = loom.session()
    fill(chat, 8)
    chat.compress()
    first = chat.history()[0]
    fill(chat, 4, "another turn {}, and some more words")
    chat.compress()
    second = chat.history()[0]
    assert set(first.replaces) < set(second.replaces)
    assert first.id not in [turn.id for turn in chat.history()]
    assert sum(bool(turn.replaces) for turn in chat.history()) == 1


def test_nothing_to_compress_is_said_with_the_numbers(loom: Loom) -> None:
    chat = loom.session()
    with pytest.raises(CompressionError, match="nothing to compress"):
        chat.compress()
    with pytest.raises(UsageError, match="hybrid"):
        chat.compress("magic")


def test_a_full_window_is_compressed_in_the_background_while_the_conversation_goes_on(tmp_path: Path) -> None:
    with fake_loom(tmp_path / "home", context=WINDOW, reserve_tokens=64, overflow={"policy": "adaptive"}) as loom:
        chat = loom.session()
        for number in range(60):
            ask(chat, f"turn number {number}, and some more words")
            assert chat.usage().used <= WINDOW
            chat.wait_for_compression(10)
        assert any(turn.replaces for turn in chat.history())
        assert {f"turn number {number}, and some more words" for number in range(60)} <= given(chat)
        assert chat._compression.last_error == ""


# -- thresholds -----------------------------------------------------------------------------------------------------


def test_a_threshold_tells_once_a_crossing_and_an_overflow_before_it_is_refused(loom: Loom) -> None:
    chat = loom.session()
    crossed: list[Threshold] = []
    overflows: list[Overflow] = []
    end = chat.on_threshold(0.5, crossed.append)
    chat.on_before_overflow(overflows.append)
    with pytest.raises(ContextOverflowError):
        fill(chat, 40)
    assert len(crossed) == 1
    assert crossed[0].used >= 0.5 * crossed[0].limit
    assert [event.policy for event in overflows] == ["stop"]
    chat.clear()
    fill(chat, 1)
    end()
    with pytest.raises(ContextOverflowError):
        fill(chat, 40)
    assert len(crossed) == 1
    with pytest.raises(UsageError):
        chat.on_threshold(1.5, print)


# -- resize ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", list(Fidelity))
def test_up_and_down_again_changes_no_reply(loom: Loom, mode: Fidelity) -> None:
    chat = loom.session(fidelity=mode)
    fill(chat, 4)
    want = chat.next_logits("And?")
    assert chat.resize(4096) == 4096
    assert loom.engine.num_cells > 4096
    np.testing.assert_array_equal(chat.next_logits("And?"), want)
    assert chat.resize(WINDOW) == WINDOW
    assert loom.engine.num_cells == num_cells(WINDOW)
    np.testing.assert_array_equal(chat.next_logits("And?"), want)


def test_a_size_below_what_is_used_or_beyond_the_model_is_refused_with_the_numbers(loom: Loom) -> None:
    chat = loom.session()
    fill(chat, 6)
    before = chat.tokens()
    with pytest.raises(UsageError, match="in use"):
        chat.resize(100)
    with pytest.raises(UsageError, match="32768"):
        chat.resize(100_000)
    assert (chat.tokens(), chat.window) == (before, WINDOW)


@pytest.mark.parametrize("num_turns", [0, 1, 6])
def test_the_least_size_that_a_refusal_names_is_accepted_and_no_smaller_one_is(loom: Loom, num_turns: int) -> None:
    chat = loom.session()
    fill(chat, num_turns)
    with pytest.raises(UsageError, match="in use" if num_turns == 6 else "short question") as refused:
        chat.resize(1)
    named = re.search(r"give (\d+) or more", str(refused.value))
    assert named is not None
    least = int(named[1])
    with pytest.raises(UsageError, match=f"give {least} or more"):
        chat.resize(least - 1)
    assert chat.resize(least) == least


def test_a_window_without_room_for_one_short_turn_is_refused_by_the_numbers_of_the_prompt(tmp_path: Path) -> None:
    for reserve_tokens in (0, 64, 1024):
        home = tmp_path / str(reserve_tokens)
        with fake_loom(home, context=WINDOW, reserve_tokens=reserve_tokens) as loom:
            chat = loom.session(system="Be kind.")
            head, frame = chat.usage().used, len(chat._asking.question("", chat.manifest).tokens)
            with pytest.raises(UsageError, match=f"prompt takes {head}, .* {frame}, a short question 32") as refused:
                chat.resize(64)
            least = int(str(refused.value).split("give ")[1].split()[0])
            assert chat.resize(least) == least
            usage = chat.usage()
            assert usage.free - usage.reserve >= frame + 32
            assert usage.free >= frame + 32 + 64
            assert ask(chat, "x" * 32, max_tokens=64) is not None


def test_a_longer_system_prompt_asks_for_a_larger_window(loom: Loom) -> None:
    chat = loom.session(system="Be kind. " * 20)
    with pytest.raises(UsageError, match="too small to talk in"):
        chat.resize(256)


def test_a_size_that_memory_does_not_have_leaves_the_old_one(loom: Loom) -> None:
    chat = loom.session()
    fill(chat, 4)
    want = chat.next_logits("And?")
    loom.engine.max_cells = 2000  # type: ignore[attr-defined]
    with pytest.raises(EngineMemoryError, match="cannot be had"):
        chat.resize(4096)
    assert chat.window == WINDOW
    np.testing.assert_array_equal(chat.next_logits("And?"), want)


def test_undo_takes_a_resize_back(loom: Loom) -> None:
    chat = loom.session()
    fill(chat, 2)
    chat.resize(2048)
    chat.undo()
    assert chat.window == WINDOW


def test_a_reply_under_way_goes_on_through_a_resize_of_another_session(loom: Loom) -> None:
    quiet = loom.session()
    want = ask(quiet, "tell me a story", 40)
    chat, other = loom.session(), loom.session()
    stream = chat.stream("tell me a story", max_tokens=40, temperature=0.0)
    next(stream)
    other.resize(4096)
    for _ in stream:
        pass
    assert stream.reply.text == want


def test_a_size_of_its_own_is_there_again_when_the_session_is_resumed(tmp_path: Path) -> None:
    with fake_loom(tmp_path / "home", context=WINDOW) as first:
        chat = first.session()
        session = chat.id
        chat.resize(2048)
    with fake_loom(tmp_path / "home", context=WINDOW) as second:
        assert second.session(id=session).window == 2048
        assert second.session().window == WINDOW


def test_a_window_beyond_the_trained_length_works_where_it_was_opened_so(tmp_path: Path) -> None:
    engine = FakeEngine(num_cells=2048)
    engine.train_context = 256
    with fake_loom(tmp_path / "home", engine, context=WINDOW) as loom:
        chat = loom.session()
        fill(chat, 4)
        assert chat.usage().used > 200
        with pytest.raises(UsageError, match="trained for"):
            chat.resize(1024)


@pytest.mark.parametrize(("asked", "most"), [(0, 0), (100_000, 256)])
def test_recent_turns_that_stay_may_be_none_and_never_fill_the_window(tmp_path: Path, asked: int, most: int) -> None:
    settings = {"preserve_recent": asked, "min_gain": 0.0, "strategy": "truncate"}
    with fake_loom(tmp_path / "home", context=WINDOW, reserve_tokens=64, compression=settings) as loom:
        chat = loom.session()
        fill(chat, 6)
        assert chat.compress().num_turns > 0
        stayed = [slot for slot in chat.manifest.turns if not slot.is_summary]
        assert len(stayed) == 1 or sum(slot.num_tokens for slot in stayed) <= most


def test_a_purged_text_is_no_longer_known_to_the_index_of_any_session(loom: Loom) -> None:
    chat = loom.session()
    chat.policy = "adaptive"
    secret = loom.load_text("the secret word is xylophone " * 6, name="secret")
    chat.activate(secret.id)
    fill(chat, 14)
    assert "xylophone" not in [turn.user for turn in chat.history()]
    assert secret.id in chat._budget._index.scores("xylophone"), "a full window weighs chunks, too"
    loom.purge("secret")
    assert not chat._budget._index.scores("xylophone")

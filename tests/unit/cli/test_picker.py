"""The picker of snapshots: what it shows, how it narrows, which keys do what. Keys go through prompt_toolkit's own."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pyte
import pytest
from prompt_toolkit.application.current import create_app_session
from prompt_toolkit.data_structures import Size
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from prompt_toolkit.output.vt100 import Vt100_Output

from kvloom.cli.picker import PREVIEW_CHARACTERS, PREVIEW_MESSAGES, Choice, pick_snapshot, picker, row
from kvloom.errors import SnapshotError
from kvloom.session.values import Message, Snapshot
from tests.unit.cli.snapshots import ALL, ROPES, TIDES, WHALES, messages_of, snapshot

UP, DOWN, PAGE_DOWN, ENTER, ESCAPE, CTRL_C, BACKSPACE = "\x1b[A", "\x1b[B", "\x1b[6~", "\r", "\x1b", "\x03", "\x7f"


def choice(snapshots: Sequence[Snapshot] = ALL) -> Choice:
    return Choice(snapshots, messages_of)


def pick(keys: str) -> Snapshot | None:
    with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
        keyboard.send_text(keys)
        return pick_snapshot(ALL, messages_of)


@pytest.mark.parametrize(
    ("keys", "chosen"),
    [
        (ENTER, WHALES),
        (DOWN + ENTER, TIDES),
        (DOWN * 9 + ENTER, ROPES),
        (PAGE_DOWN + UP + ENTER, TIDES),
        ("knots" + ENTER, ROPES),
        ("nosuch" + ENTER + BACKSPACE * 6 + "tides" + ENTER, TIDES),
        (ESCAPE, None),
        (DOWN + CTRL_C, None),
    ],
)
def test_keys_choose_or_leave(keys: str, chosen: Snapshot | None) -> None:
    assert pick(keys) == chosen


def test_the_chosen_row_is_on_the_screen_however_many_there_are() -> None:
    many = [snapshot(f"{number:012x}", f"title {number}") for number in range(60)]
    screen = pyte.Screen(100, 24)

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    output = Vt100_Output(shown, lambda: Size(24, 100), term="xterm")
    with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=output):
        choice_ = Choice(many, messages_of)
        application = picker(choice_)
        seen: list[str] = []

        def look(_application: object) -> None:
            if choice_.index == 45 and not seen:
                pyte.Stream(screen).feed(shown.getvalue())
                seen[:] = screen.display
                keyboard.send_text(ENTER)

        application.after_render += look
        keyboard.send_text(DOWN * 45)
        assert application.run() == many[45]
    [here] = [line for line in seen if line.startswith(">")]
    assert "title 45" in here
    assert any("question in" in line for line in seen)


def test_the_filter_keeps_what_holds_every_word_whatever_its_case() -> None:
    one = choice()
    one.filter("THE before")
    assert list(one.visible) == [TIDES]
    one.filter("cccc")
    assert list(one.visible) == [ROPES]
    one.filter("")
    assert list(one.visible) == list(ALL)


def test_the_cursor_stays_with_its_snapshot_while_the_list_narrows() -> None:
    one = choice()
    one.move(2)
    one.filter("o")
    assert one.selected == ROPES
    one.filter("tides")
    assert one.selected == TIDES
    one.filter("tidesx")
    assert list(one.visible) == []
    one.move(1)
    assert "Backspace" in one.preview()


def test_a_row_shows_age_turns_tokens_size_and_what_restoring_costs() -> None:
    assert row(WHALES).split("  ") != row(TIDES).split("  ")
    shown = row(WHALES)
    for part in ("2 h ago", "3 turns", "1,234 tokens", "5.0 MiB", "0.250 s", "all about whales"):
        assert part in shown
    assert "?" in row(TIDES)


def test_a_title_cannot_steer_the_terminal_or_break_the_row() -> None:
    assert "\x1b" not in row(snapshot("d" * 12, "\x1b[2J\nnext"))
    assert "\n" not in row(snapshot("d" * 12, "two\nlines"))


def test_the_preview_is_the_last_messages_cut_and_read_once() -> None:
    asked: list[str] = []

    def read(name: str) -> list[Message]:
        asked.append(name)
        return [Message("user", f"{number} " + "x" * 2000, number) for number in range(20)]

    one = Choice(ALL, read)
    shown = one.preview()
    assert shown.startswith(f"user: {20 - PREVIEW_MESSAGES} ")
    assert len(shown) < PREVIEW_MESSAGES * (PREVIEW_CHARACTERS + 20)
    one.preview()
    assert asked == [WHALES.id]


def test_a_snapshot_that_cannot_be_read_says_so_in_its_preview() -> None:
    def read(_name: str) -> list[Message]:
        raise SnapshotError("it is damaged")

    assert "it is damaged" in Choice(ALL, read).preview()


def test_an_interrupt_from_outside_leaves_as_a_key_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("prompt_toolkit.application.Application.run", interrupted)
    with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
        assert pick_snapshot(ALL, messages_of) is None

"""Lets a person choose a snapshot in a terminal: filter as you type, a row each, the last messages below.

Knows keys and what a snapshot shows; the session is known by the function that reads its messages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prompt_toolkit.application import Application
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.data_structures import Point
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.key_binding.key_processor import KeyPressEvent
from prompt_toolkit.layout import BufferControl, FormattedTextControl, HSplit, Layout, VSplit, Window
from prompt_toolkit.layout.dimension import Dimension

from kvloom.cli import amounts
from kvloom.cli.kept_view import cost, made
from kvloom.errors import KvloomError
from kvloom.session.values import Message, Snapshot

HELP = "Which snapshot? Type to filter, ↑ ↓ to move, Enter restores, Esc leaves."

ESCAPE_WAIT_S = 0.05
"""A lone Esc and the first byte of an arrow key look alike for so long; the default of half a second feels stuck."""

MAX_ROWS = 12
"""Of the list: the preview below keeps at least as much of a screen of 24 lines."""
PAGE_ROWS = 10

PREVIEW_MESSAGES = 6
"""The last of them: three turns tell a conversation apart."""
PREVIEW_CHARACTERS = 600
"""Of one message."""

ReadMessages = Callable[[str], Sequence[Message]]


class Choice:
    """What can be chosen, what is typed to narrow it, and where the cursor is. Knows no terminal."""

    def __init__(self, snapshots: Sequence[Snapshot], read_messages: ReadMessages) -> None:
        self._all = tuple(snapshots)
        self._read = read_messages
        self._previews: dict[str, str] = {}
        self.visible = self._all
        self.index = 0

    @property
    def selected(self) -> Snapshot | None:
        return self.visible[self.index] if self.visible else None

    def filter(self, text: str) -> None:
        """Keeps those that hold every word; the cursor stays with its snapshot where that is still there."""
        before, words = self.selected, text.casefold().split()
        self.visible = tuple(one for one in self._all if all(word in searched(one) for word in words))
        self.index = self.visible.index(before) if before in self.visible else 0

    def move(self, rows: int) -> None:
        self.index = max(0, min(len(self.visible) - 1, self.index + rows))

    def rows(self) -> list[str]:
        return [row(snapshot) for snapshot in self.visible]

    def preview(self) -> str:
        """The last messages of the selected snapshot."""
        snapshot = self.selected
        if snapshot is None:
            return "no snapshot holds these words; Backspace takes some back"
        if snapshot.id not in self._previews:
            self._previews[snapshot.id] = self._previewed(snapshot)
        return self._previews[snapshot.id]

    def _previewed(self, snapshot: Snapshot) -> str:
        try:
            messages = self._read(snapshot.id)
        except KvloomError as error:
            return amounts.printable(f"it cannot be read: {error}")
        shown = [f"{message.role}: {_cut(message.content)}" for message in messages[-PREVIEW_MESSAGES:]]
        return amounts.printable("\n".join(shown)) or "it holds no message"


def searched(snapshot: Snapshot) -> str:
    """What the filter looks at."""
    return " ".join((snapshot.id, snapshot.title, made(snapshot), snapshot.summary, snapshot.model)).casefold()


def row(snapshot: Snapshot) -> str:
    """Age, turns, tokens, size, cost to restore, title."""
    cells = (
        f"{amounts.age(snapshot.created):>10}",
        f"{snapshot.num_turns:>4} turn{'s' if snapshot.num_turns != 1 else ' '}",
        f"{amounts.tokens(snapshot.num_tokens):>8} tokens",
        f"{amounts.size(snapshot.kv_bytes):>10}",
        f"restore {cost(snapshot.restore_s):>8}",
        " ".join(amounts.printable(snapshot.title or snapshot.id).split()),
    )
    why = f" ({made(snapshot)})" if snapshot.is_auto else ""
    return "  ".join(cells) + why


def _cut(text: str) -> str:
    return text if len(text) <= PREVIEW_CHARACTERS else text[: PREVIEW_CHARACTERS - 1] + "…"


def pick_snapshot(snapshots: Sequence[Snapshot], read_messages: ReadMessages) -> Snapshot | None:
    """Takes the screen until one is chosen; None where the person leaves, by a key or by an interrupt from outside."""
    try:
        return picker(Choice(snapshots, read_messages)).run()
    except (KeyboardInterrupt, EOFError):  # nothing is chosen before Enter, so nothing is lost
        return None


def picker(choice: Choice) -> Application[Snapshot | None]:
    """The screen over a choice. `run()` gives the chosen snapshot, or None."""
    typed = Buffer(multiline=False, on_text_changed=lambda buffer: choice.filter(buffer.text))
    rows = FormattedTextControl(
        lambda: _rows(choice), show_cursor=False, get_cursor_position=lambda: Point(0, choice.index)
    )
    height = Dimension(min=1, max=MAX_ROWS)
    body = HSplit(
        [
            Window(FormattedTextControl(HELP), height=1, style="bold"),
            VSplit(
                [Window(FormattedTextControl("Filter: "), width=8), Window(BufferControl(typed), height=1)], height=1
            ),
            Window(rows, height=height, dont_extend_height=True),
            Window(height=1, char="─"),
            Window(FormattedTextControl(choice.preview), wrap_lines=True),
        ]
    )
    application: Application[Snapshot | None] = Application(
        layout=Layout(body, focused_element=typed),
        key_bindings=_keys(choice),
        full_screen=True,
        erase_when_done=True,
    )
    application.ttimeoutlen = ESCAPE_WAIT_S
    return application


def _rows(choice: Choice) -> StyleAndTextTuples:
    shown: StyleAndTextTuples = []
    for number, text in enumerate(choice.rows()):
        is_here = number == choice.index
        # The mark too: without colours nothing else shows where the cursor is.
        shown.append(("", "\n" if number else ""))
        shown.append(("reverse" if is_here else "", f"{'>' if is_here else ' '} {text}"))
    return shown


def _keys(choice: Choice) -> KeyBindings:
    keys = KeyBindings()
    for names, rows in (
        (("up", "c-p"), -1), (("down", "c-n"), 1), (("pageup",), -PAGE_ROWS), (("pagedown",), PAGE_ROWS),
    ):  # fmt: skip
        for name in names:
            keys.add(name)(lambda _event, rows=rows: choice.move(rows))

    @keys.add("enter")
    def _enter(event: KeyPressEvent) -> None:
        if choice.selected is not None:
            event.app.exit(result=choice.selected)

    # Eager: otherwise Esc would wait for a second key that makes Alt of it.
    @keys.add("escape", eager=True)
    @keys.add("c-c")
    @keys.add("c-d")
    def _leave(event: KeyPressEvent) -> None:
        event.app.exit(result=None)

    return keys

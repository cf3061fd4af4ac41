"""A stored session as a chat of one command: what `kvloom context …` works on. Knows chats, no command."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from kvloom.cli.chat import DEFAULT_POLICY, Chat, open_for_chat
from kvloom.cli.resume import resume
from kvloom.cli.screen import TextScreen
from kvloom.cli.standing import WindowOrigin
from kvloom.errors import EngineMemoryError, UsageError

if TYPE_CHECKING:
    from kvloom.cli.options import Options
    from kvloom.session.loom import Loom
    from kvloom.session.values import ProgressCallback

GROUP = "kvloom context"


class StoredChat(Chat):
    """A session that is opened for one command, with the window that it had last where no other is asked for.

    `words`: the options that name it, for hints.
    """

    words = ""

    def how(self, command: str) -> str:
        """The command of the command line that does what this slash command does."""
        verb = command.removeprefix("/context").removeprefix("/").strip()
        # What `recall` brings back here, a chat can switch on, too.
        verb = verb.replace("activate ", "recall ", 1) if verb.startswith("activate ") else verb
        return f"{GROUP} {verb}{self.words}"

    def warm(self) -> None:
        """Nothing: what was placed would go with the process."""


def last_window(options: Options, ref: str | None) -> int:
    """The window that somebody asked for when the session was open last; 0 where nobody did, or another is asked for
    now."""
    from kvloom.session.home import HomeSessions, has_sessions

    where = options.paths.home
    if options.context is not None or not has_sessions(where):
        return 0
    with HomeSessions(where) as home:
        return home.window_of(ref)


def open_as_last(options: Options, ref: str | None, opens: Callable[[Options], Loom]) -> tuple[Loom, bool]:
    """A loom with the window that the session had last, and whether it is that; the default one where memory, or the
    model, does not have it any more."""
    window = last_window(options, ref)
    if window:
        with suppress(EngineMemoryError, UsageError):
            return opens(replace(options, context=window)), True
    return opens(options), False


def open_stored(options: Options, progress: ProgressCallback) -> Loom:
    """What the home holds, with the policy of conversations; the model is loaded only where the home does not know
    it."""
    loom = options.open_stored(progress)
    loom.policy = loom.settings.overflow.policy or DEFAULT_POLICY
    return loom


@contextmanager
def stored_chat(options: Options, ref: str | None, *, needs_model: bool = True) -> Iterator[StoredChat]:
    """The session of that name or id, or the one used last. Without its model where that is not needed; what needs it
    after all raises ModelNeededError then. Raises UnknownSessionError."""
    output = options.output
    with output.progress() as progress:
        opens = open_for_chat if needs_model else open_stored
        loom, is_as_last = open_as_last(options, ref, lambda chosen: opens(chosen, progress))
    with loom:
        chat = StoredChat(options, loom, resume(loom, ref), TextScreen(output, echoes=False))
        chat.window_origin = WindowOrigin.LAST if is_as_last else None
        chat.words = f" --session {shlex.quote(ref)}" if ref else ""
        if options.is_interactive:
            from kvloom.cli.picker import pick_snapshot

            chat.pick = pick_snapshot
        # Whatever session the command ends in is closed with the loom.
        yield chat

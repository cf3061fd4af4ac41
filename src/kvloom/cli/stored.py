"""A stored session as a chat of one command: what `kvloom context …` works on. Knows chats, no command."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kvloom.cli.chat import Chat, open_for_chat
from kvloom.cli.resume import resume
from kvloom.cli.screen import TextScreen

if TYPE_CHECKING:
    from kvloom.cli.options import Options

GROUP = "kvloom context"


class StoredChat(Chat):
    """A session that is opened for one command. `words`: the options that name it, for hints."""

    words = ""

    def how(self, command: str) -> str:
        """The command of the command line that does what this slash command does."""
        verb = command.removeprefix("/context").removeprefix("/").strip()
        # What `recall` brings back here, a chat can switch on, too.
        verb = verb.replace("activate ", "recall ", 1) if verb.startswith("activate ") else verb
        return f"{GROUP} {verb}{self.words}"

    def warm(self) -> None:
        """Nothing: what was placed would go with the process."""


@contextmanager
def stored_chat(options: Options, ref: str | None) -> Iterator[StoredChat]:
    """The session of that name or id, or the one used last. Raises UnknownSessionError."""
    output = options.output
    with output.progress() as progress:
        loom = open_for_chat(options, progress)
    with loom:
        chat = StoredChat(options, loom, resume(loom, ref), TextScreen(output, echoes=False))
        chat.words = f" --session {shlex.quote(ref)}" if ref else ""
        if options.is_interactive:
            from kvloom.cli.picker import pick_snapshot

            chat.pick = pick_snapshot
        # Whatever session the command ends in is closed with the loom.
        yield chat

"""`kvloom chat`: opens a loom and a session, and hands them to the terminal or to a script. Knows no slash command."""

from __future__ import annotations

import io
import re
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from kvloom.cli.options import TALK, Options, takes

if TYPE_CHECKING:
    from kvloom.cli.screen import Screen
    from kvloom.session.loom import Loom
    from kvloom.session.session import Session

ID_PATTERN = re.compile(r"[0-9a-f]{6,}")
"""What can only be meant as a session's id: a new session is not started under it."""


@takes(TALK)
def chat(
    options: Options,
    continue_: Annotated[bool, typer.Option("--continue", help="Resume the latest session, with its KV.")] = False,
    session: Annotated[
        str | None,
        typer.Option("--session", metavar="NAME", help="Resume this session (name or id), or start it by this name."),
    ] = None,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="System prompt.")] = None,
) -> None:
    """Chat, with files as chunks that switch on and off.

    /help inside lists the commands.

    With standard input that is no terminal it runs a script line by line: exit code 0, or 1 at the first line that
    fails. With --json every line gives one JSON line.
    """
    from kvloom.cli import slash  # noqa: F401 - fills the registry
    from kvloom.cli.chat import Chat, open_for_chat, run_script
    from kvloom.cli.screen import JsonScreen, TextScreen
    from kvloom.errors import UsageError

    if continue_ and session:
        raise UsageError("--continue resumes the latest session and --session a named one; give one of them")
    is_terminal = options.is_interactive
    screen: Screen = JsonScreen() if options.json else TextScreen(options.output, echoes=not is_terminal)
    with screen.progress() as progress:
        loom = open_for_chat(options, progress)
    talk: Chat | None = None
    try:
        opened = open_session(options, loom, session, continue_, system)
        talk = Chat(options, loom, opened, screen)
        if is_terminal:
            from kvloom.cli.terminal import run_terminal

            code = run_terminal(talk, loom.home)
        else:
            if isinstance(sys.stdin, io.TextIOWrapper):
                # What is no UTF-8 is told with the line it stands in, after those before it.
                sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
            code = run_script(talk, iter(sys.stdin))
    finally:
        if talk is not None:
            talk.close()
        else:
            loom.close()
    if code:
        raise typer.Exit(code)


def open_session(options: Options, loom: Loom, name: str | None, latest: bool, system: str | None) -> Session:
    """The session that the options ask for: resumed, or new (with a name where one was given)."""
    from kvloom.cli.resume import resume
    from kvloom.errors import UnknownSessionError

    found: Session | None = None
    if latest:
        found = resume(loom, None)
    elif name is not None:
        try:
            found = resume(loom, name)
        except UnknownSessionError:
            if ID_PATTERN.fullmatch(name):
                raise
            fresh = new_session(options, loom, system)
            fresh.rename(name)
            return fresh
    if found is None:
        return new_session(options, loom, system)
    if system is not None:
        found.set_system(system)
    if options.fidelity is not None:
        found.set_fidelity(options.fidelity)
    return found


def new_session(options: Options, loom: Loom, system: str | None) -> Session:
    """A session with this system prompt, or with that of the settings, so that /system shows what the model sees.

    Raises UsageError where a window was asked for that has no room for a turn behind it.
    """
    from kvloom.session.least_window import check_window

    text = loom.settings.system if system is None else system
    if options.context is not None:
        check_window(loom, options.context, text)
    return loom.session(system=text)


def register(app: typer.Typer) -> None:
    app.command("chat")(chat)

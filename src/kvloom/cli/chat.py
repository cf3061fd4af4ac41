"""A chat: runs questions and slash commands on an open session. Knows no key, no prompt line, no command's inside."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Final, Protocol

from kvloom.cli.line import Line, Question, read_script
from kvloom.cli.registry import Arguments, Result, find_command
from kvloom.cli.screen import Screen
from kvloom.errors import CancelledError, KvloomError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvloom.cli.options import Options
    from kvloom.cli.standing import WindowOrigin
    from kvloom.session.loom import Loom
    from kvloom.session.reply import ReplyStream
    from kvloom.session.session import Session
    from kvloom.session.values import Message, ProgressCallback, Snapshot

    Pick = Callable[[Sequence[Snapshot], Callable[[str], Sequence[Message]]], Snapshot | None]

DEFAULT_POLICY: Final = "adaptive"
"""A conversation goes on where its window is full, unless the settings or an option say otherwise."""

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells count it."""


class Chat:
    """The loom, the session that is talked to, and where it is shown. Commands may replace loom and session."""

    def __init__(self, options: Options, loom: Loom, session: Session, screen: Screen) -> None:
        self.options = options
        self.loom = loom
        self.session = session
        self.screen = screen
        self.is_done = False
        self.window_origin: WindowOrigin | None = None
        """Where the window of a session that has none of its own comes from, where it is not the loom's to tell."""
        self.pick: Pick | None = None
        """Lets a person choose a snapshot; None where nobody is there to choose."""
        self.confirm: Callable[[str], bool] | None = None
        """Asks a person something; None where nobody is there to answer."""

    def how(self, command: str) -> str:
        """A slash command as a person gives it here."""
        return command

    def run(self, line: Line) -> Result:
        """Carries a line out. Raises KvloomError where that fails; the context is then as it was."""
        if isinstance(line, Question):
            return self.ask(line.text)
        command = find_command(line.name)
        return command.run(self, Arguments(line.words, line.rest, command.usage))

    def ask(self, text: str) -> Result:
        """Asks the model and shows the reply as it comes."""
        with self.screen.progress() as progress:
            return self.show_reply(self.session.stream(text, progress=progress), progress.clear)

    def show_reply(self, stream: ReplyStream, on_first: Callable[[], None] | None = None) -> Result:
        """Shows a reply to its end. Ctrl-C cancels it: what came is shown, the context is as before."""
        reply = None
        try:
            with cancel_on_interrupt(self.session), stream:
                for delta in stream:
                    if on_first is not None:
                        on_first()
                    self.screen.delta(delta)
            reply = stream.reply
        finally:
            self.screen.reply_ended(reply)
        return Result(reply)

    def warm(self) -> None:
        """Computes and places what the context wants now, with a progress bar."""
        with self.working() as progress:
            self.session.warm(progress)

    @contextmanager
    def working(self) -> Iterator[ProgressCallback]:
        """While inside, progress is shown, and Ctrl-C cancels the session's work."""
        with self.screen.progress() as progress, cancel_on_interrupt(self.session):
            yield progress

    def close(self) -> None:
        self.session.close()
        self.loom.close()

    def replace_session(self, session: Session) -> None:
        """Talks to another session of the same loom."""
        self.session.close()
        self.session = session


def open_for_chat(options: Options, progress: ProgressCallback | None, model: str | None = None) -> Loom:
    """The loom that the options name, with the policy of conversations."""
    loom = options.open_loom(progress, model)
    loom.policy = loom.settings.overflow.policy or DEFAULT_POLICY
    return loom


class Cancellable(Protocol):
    """What can be told to stop, from a signal handler: a session, a `Stop`."""

    def cancel(self) -> None: ...


class Stop:
    """Whether Ctrl-C came, for work that asks from time to time."""

    def __init__(self) -> None:
        self._is_cancelled = False

    def cancel(self) -> None:
        self._is_cancelled = True

    def is_cancelled(self) -> bool:
        return self._is_cancelled

    def check(self, what: str) -> None:
        """Raises CancelledError where it came; `what` is said of it."""
        if self._is_cancelled:
            raise CancelledError(what)


@contextmanager
def cancel_on_interrupt(session: Cancellable) -> Iterator[None]:
    """While inside, the first Ctrl-C cancels the session's work; a second one interrupts the program."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGINT)

    def cancel(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, previous)
        session.cancel()

    signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def run_script(chat: Chat, lines: Iterator[str]) -> int:
    """Runs a script line by line. The exit code: 0, or 1 at the first line that fails, 130 where it was interrupted."""
    for unit in read_script(lines):
        chat.screen.echo(unit.shown)
        try:
            result = chat.run(unit.parse())
        except CancelledError as exc:
            chat.screen.failed(unit.shown, exc)
            return EXIT_INTERRUPTED
        except KvloomError as exc:
            chat.screen.failed(unit.shown, exc)
            return EXIT_FAILED
        chat.screen.result(unit.shown, result)
        if result.failures:
            return EXIT_FAILED
        if chat.is_done:
            break
    return 0

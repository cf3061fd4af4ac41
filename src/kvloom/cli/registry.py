"""The registry of slash commands: a command is one decorated function. Knows no command itself and no session."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvloom.errors import KvloomError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kvloom.cli.chat import Chat


@dataclass(frozen=True)
class Suggestion:
    """One completion of the word under the cursor."""

    text: str
    help: str = ""
    is_path: bool = False


@dataclass(frozen=True)
class Result:
    """What a command did. `data` goes out as JSON, `view` to a person (None: everything was shown already).

    `failures`: what went wrong for some of several arguments while the others were carried out.
    """

    data: object
    view: RenderableType | None = None
    failures: tuple[KvloomError, ...] = ()


@dataclass(frozen=True)
class Arguments:
    """A command's words, with the command's usage for messages."""

    words: tuple[str, ...]
    rest: str
    usage: str

    def wrong(self, why: str) -> UsageError:
        return UsageError(f"{why}; usage: {self.usage}")

    def none(self) -> None:
        """Raises UsageError where words were given."""
        if self.words:
            raise self.wrong(f"takes no argument, got {len(self.words)}")

    def one(self, what: str) -> str:
        """The only word."""
        if len(self.words) != 1:
            raise self.wrong(f"takes one {what}, got {len(self.words)}")
        return self.words[0]

    def some(self, what: str) -> tuple[str, ...]:
        """One word or more."""
        if not self.words:
            raise self.wrong(f"takes at least one {what}")
        return self.words

    def behind(self, num_words: int = 1) -> Arguments:
        """What stands behind the first words: the arguments of a subcommand."""
        return Arguments(self.words[num_words:], self.rest, self.usage)

    def at_most_one(self, what: str) -> str:
        """The only word, or an empty string."""
        if len(self.words) > 1:
            raise self.wrong(f"takes one {what} at most, got {len(self.words)}")
        return self.words[0] if self.words else ""


Run = Callable[["Chat", Arguments], Result]
Complete = Callable[["Chat", Sequence[str]], Iterable[Suggestion]]
"""Gets the words before the one under the cursor; the caller filters by what is typed of it."""


def nothing(_chat: Chat, _before: Sequence[str]) -> Iterable[Suggestion]:
    """Completes nothing."""
    return ()


@dataclass(frozen=True)
class SlashCommand:
    """A slash command. `usage` starts with its slash and name; `group` orders the help."""

    name: str
    usage: str
    help: str
    group: str
    run: Run
    complete: Complete


COMMANDS: dict[str, SlashCommand] = {}
"""Every command by name, in the order of the help. Filled when `kvloom.cli.slash` is imported."""


def slash(usage: str, about: str, *, group: str, complete: Complete = nothing) -> Callable[[Run], Run]:
    """Registers the decorated function under the name that `usage` starts with (`/load FILE…`)."""

    def register(run: Run) -> Run:
        name = usage.split(maxsplit=1)[0].removeprefix("/")
        if name in COMMANDS:
            raise ValueError(f"/{name} is registered twice")
        COMMANDS[name] = SlashCommand(name, usage, about, group, run, complete)
        return run

    return register


def find_command(name: str) -> SlashCommand:
    """The command of that name. Raises UsageError with the nearest names."""
    command = COMMANDS.get(name)
    if command is not None:
        return command
    raise UsageError(
        f"there is no command /{name}{did_you_mean(name, COMMANDS, '/')}; "
        "/help lists them all, and // starts a question that begins with a slash"
    )


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """` (did you mean …?)`, or nothing where no known word is near."""
    names = sorted(known)
    near = [name for name in names if len(word) > 1 and name.startswith(word)]
    near += [name for name in difflib.get_close_matches(word, names, n=3, cutoff=0.6) if name not in near]
    return f" (did you mean {' or '.join(prefix + name for name in near[:3])}?)" if near else ""


def known(word: str, choices: Sequence[str], what: str) -> str:
    """The word, where it is one of the choices. Raises UsageError with the nearest and with all of them."""
    if word in choices:
        return word
    raise UsageError(f"there is no {what} {word!r}{did_you_mean(word, choices)}; choose one of {', '.join(choices)}")


def choose(word: str, choices: Sequence[str], args: Arguments) -> str:
    """A subcommand's name. Raises UsageError with the nearest names."""
    if word in choices:
        return word
    raise args.wrong(f"{word!r} is not one of {', '.join(choices)}{did_you_mean(word, choices)}")

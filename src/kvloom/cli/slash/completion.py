"""What completes a word of a slash command: chunks, files, sessions, profiles, fixed words. Knows no command."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from kvloom.cli import amounts
from kvloom.cli.kept_view import SHORT_REF_DIGITS
from kvloom.cli.registry import COMMANDS, Complete, Suggestion

if TYPE_CHECKING:
    from kvloom.cli.chat import Chat

MAX_CHUNKS = 500
"""Chunks offered at most: more would fill no menu, and reading them would make typing wait."""


def words(*choices: str) -> Complete:
    """Fixed words, for the first argument."""

    def complete(_chat: Chat, before: Sequence[str]) -> Iterable[Suggestion]:
        return [] if before else [Suggestion(choice) for choice in choices]

    return complete


def files(_chat: Chat, _before: Sequence[str]) -> Iterable[Suggestion]:
    """File paths; the terminal fills them in from what is typed."""
    return [Suggestion("", is_path=True)]


def chunks(chat: Chat, before: Sequence[str]) -> Iterable[Suggestion]:
    """Names and short ids of every known chunk that is not named yet."""
    found = []
    for chunk in chat.loom.chunks()[:MAX_CHUNKS]:
        short = amounts.short_id(chunk.id)
        if chunk.name not in before and short not in before:
            found += [Suggestion(chunk.name, short), Suggestion(short, chunk.name)]
    return found


def context_chunks(chat: Chat, before: Sequence[str]) -> Iterable[Suggestion]:
    """Names and short ids of the chunks in this context."""
    found = {}
    for segment in chat.session.usage().segments:
        if segment.kind == "chunk":
            state = "on" if segment.is_active else "off"
            short = amounts.short_id(segment.ref)
            found[segment.name] = Suggestion(segment.name, f"{short} {state}")
            found[short] = Suggestion(short, f"{segment.name} {state}")
    return [suggestion for text, suggestion in found.items() if text not in before]


def context_chunks_and_libraries(chat: Chat, before: Sequence[str]) -> Iterable[Suggestion]:
    """What can be switched off in this context: its chunks, and the libraries that are attached to it."""
    libraries = [Suggestion(name, "library") for name in chat.session.libraries if name not in before]
    return [*context_chunks(chat, before), *libraries]


def one_context_chunk(chat: Chat, before: Sequence[str]) -> Iterable[Suggestion]:
    return [] if before else context_chunks(chat, before)


def one_chunk(chat: Chat, before: Sequence[str]) -> Iterable[Suggestion]:
    return [] if before else chunks(chat, before)


def turns(chat: Chat) -> list[Suggestion]:
    """The numbers of the turns, the newest first."""
    return [Suggestion(str(turn.number), turn.user) for turn in reversed(chat.session.history())]


def one_context_part(chat: Chat, before: Sequence[str]) -> Iterable[Suggestion]:
    """A chunk of this context, or a turn's number."""
    return [] if before else [*context_chunks(chat, before), *turns(chat)]


def snapshots(chat: Chat) -> list[Suggestion]:
    return [
        Suggestion(
            snapshot.id,
            f"{amounts.age(snapshot.created)}, {amounts.tokens(snapshot.num_tokens)} tokens: {snapshot.title}",
        )
        for snapshot in chat.session.snapshots()
    ]


def ledger(chat: Chat, before: Sequence[str]) -> Iterable[Suggestion]:
    """What can be recalled, the newest first."""
    found = [Suggestion(line.ref[:SHORT_REF_DIGITS], line.text) for line in reversed(chat.session.ledger())]
    return [suggestion for suggestion in found if suggestion.text not in before]


def sessions(chat: Chat) -> list[Suggestion]:
    return [Suggestion(info.name or info.id, f"{info.num_turns} turns") for info in chat.loom.sessions()]


def profiles(chat: Chat) -> list[Suggestion]:
    return [Suggestion(profile.name) for profile in chat.loom.profiles()]


def commands(_chat: Chat, before: Sequence[str]) -> Iterable[Suggestion]:
    return [] if before else [Suggestion(command.name, command.help) for command in COMMANDS.values()]

"""The chat in a terminal: prompt line, history, completion, keys. Knows what a chat is, no command's inside."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter, ThreadedCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.shortcuts import confirm
from prompt_toolkit.styles import Style

from kvloom.cli import amounts
from kvloom.cli.chat import EXIT_INTERRUPTED, Chat
from kvloom.cli.line import FENCE, Line, Question, opens_fence, parse_line, read_fenced, unfence
from kvloom.cli.picker import pick_snapshot
from kvloom.cli.registry import COMMANDS
from kvloom.cli.screen import PROMPT
from kvloom.errors import CancelledError, KvloomError

if TYPE_CHECKING:
    from kvloom.cli.registry import Suggestion

HISTORY_FILE = "chat_history"

MORE_PROMPT = "… "

CALM = "normal"
"""The guard's level that is not worth a word."""

STOPPED = "stopped: the context is as it was before"


def run_terminal(chat: Chat, home: Path) -> int:
    """Reads and runs lines until /quit or Ctrl-D. The exit code: 0, or 130 where Ctrl-C came twice in a reply."""
    prompt: PromptSession[str] = PromptSession(
        history=open_history(home),
        completer=ThreadedCompleter(ChatCompleter(chat)),
        complete_while_typing=False,
        bottom_toolbar=lambda: _toolbar(chat),
        style=None if not os.environ.get("NO_COLOR") else _no_color(),
    )
    chat.pick = pick_snapshot
    chat.confirm = confirm
    chat.screen.say(_greeting(chat))
    while not chat.is_done:
        try:
            text = prompt.prompt(PROMPT)
        except KeyboardInterrupt:
            chat.screen.say("Ctrl-D or /quit leaves")
            continue
        except EOFError:
            return 0
        if not text.strip():
            continue
        try:
            _run(chat, prompt, text)
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
    return 0


def _run(chat: Chat, prompt: PromptSession[str], text: str) -> None:
    try:
        result = chat.run(_read_line(prompt, text))
    except CancelledError:
        chat.screen.say(STOPPED)
    except EOFError:
        chat.screen.say(f"left {FENCE} without asking")
    except Exception as exc:  # noqa: BLE001 - the CLI edge: a fault in one line does not end the chat
        chat.screen.failed(text, exc)
    else:
        chat.screen.result(text, result)


def _read_line(prompt: PromptSession[str], text: str) -> Line:
    if not text.strip().startswith(FENCE):
        return parse_line(text)
    if not opens_fence(text):
        return Question(unfence(text))
    return Question(read_fenced(text, lambda: prompt.prompt(MORE_PROMPT)))


def open_history(home: Path) -> History:
    """Lines of earlier chats, in a file that only its owner may read; in memory where the home cannot be written."""
    path = home / HISTORY_FILE
    with suppress(OSError):
        path.touch(mode=0o600, exist_ok=True)
        return FileHistory(str(path))
    return InMemoryHistory()


def _greeting(chat: Chat) -> str:
    status, turns = chat.loom.status(), len(chat.session.history())
    name = chat.session.name or chat.session.id
    resumed = f", {turns} turns" if turns else ""
    sizing = chat.loom.sizing
    warning = f"! {sizing.warning}\n" if sizing is not None and sizing.warning else ""
    return (
        f"{warning}"
        f"{status.model} · window {amounts.tokens(chat.session.window)} tokens · {chat.session.fidelity.value} · "
        f"session {name}{resumed}\n/load FILE adds a file, /help lists the commands, Ctrl-D leaves"
    )


def _toolbar(chat: Chat) -> str:
    """Read when the line is drawn; a session that is just being replaced shows nothing."""
    with suppress(KvloomError):
        usage = chat.session.usage()
        chunks = {s.ref for s in usage.segments if s.kind == "chunk" and s.is_active}
        used = f"{amounts.tokens(usage.used, is_estimate=usage.is_estimate)} / {amounts.tokens(usage.capacity)} tokens"
        busy = " · summing up old turns" if chat.session.is_compressing else ""
        level = chat.loom.guard.level.value
        busy += "" if level == CALM else f" · memory {level}"
        name = chat.session.name or chat.session.id
        return amounts.printable(f" {name} · {used} · {len(chunks)} chunks on · {usage.fidelity.value}{busy}")
    return ""


def _no_color() -> Style:
    return Style.from_dict({"bottom-toolbar": "noreverse"})


class ChatCompleter(Completer):
    """Completes command names, and the words behind a name as that command says."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor.lstrip()
        if not text.startswith("/") or text.startswith("//"):
            return
        name, blank, rest = text[1:].partition(" ")
        if not blank:
            for command in COMMANDS.values():
                if command.name.startswith(name):
                    yield Completion(command.name, start_position=-len(name), display_meta=command.help)
            return
        found = COMMANDS.get(name)
        if found is None:
            return
        word = "" if rest.endswith(" ") else rest.rpartition(" ")[2]
        before = rest[: len(rest) - len(word)].split()
        # Completing runs beside the chat: a loom that is being reopened completes nothing, it never disturbs.
        with suppress(KvloomError):
            for suggestion in found.complete(self._chat, before):
                yield from self._completions(suggestion, word, complete_event)

    def _completions(self, suggestion: Suggestion, word: str, event: CompleteEvent) -> Iterable[Completion]:
        if suggestion.is_path:
            yield from self._paths.get_completions(Document(word), event)
            return
        if suggestion.text.startswith(word):
            text = f'"{suggestion.text}"' if " " in suggestion.text else suggestion.text
            yield Completion(text, start_position=-len(word), display=suggestion.text, display_meta=suggestion.help)

"""Slash commands on the session's settings and on the chat itself. Knows the façade only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from kvloom.cli.chat import open_for_chat
from kvloom.cli.commands.models import list_models
from kvloom.cli.panels import fidelity_text
from kvloom.cli.registry import COMMANDS, Arguments, Result, SlashCommand, Suggestion, choose, find_command, slash
from kvloom.cli.slash import completion
from kvloom.errors import KvloomError
from kvloom.types import Fidelity

if TYPE_CHECKING:
    from kvloom.cli.chat import Chat
    from kvloom.session.loom import Loom

GROUP = "Settings"

MODES = tuple(mode.value for mode in Fidelity)


@slash(
    "/fidelity [MODE]",
    "Show or set which stored KV may be placed: exact, blend or splice.",
    group=GROUP,
    complete=completion.words(*MODES),
)
def fidelity(chat: Chat, args: Arguments) -> Result:
    mode = args.at_most_one("mode")
    if mode:
        chat.session.set_fidelity(Fidelity(choose(mode, MODES, args)))
    current = chat.session.fidelity
    return Result({"fidelity": current}, fidelity_text(current))


@slash("/system [TEXT]", "Show or set the system prompt of this session.", group=GROUP)
def system(chat: Chat, args: Arguments) -> Result:
    if args.rest:
        chat.session.set_system(args.rest)
    return Result({"system": chat.session.system}, chat.session.system or "(no system prompt)")


def _complete_model(chat: Chat, before: Sequence[str]) -> Iterable[Suggestion]:
    if before:
        return []
    found = list_models(chat.options.paths)
    return [Suggestion(model.name, model.holder) for model in found if model.path is not None]


@slash(
    "/model [NAME]",
    "Show the model, or open another: chunks come along, the conversation stays with its model.",
    group=GROUP,
    complete=_complete_model,
)
def model(chat: Chat, args: Arguments) -> Result:
    name = args.at_most_one("model")
    if name:
        return _switch_model(chat, name)
    status = chat.loom.status()
    data = {
        "model": status.model,
        "path": status.model_path,
        "fingerprint": status.fingerprint,
        "kv_type": status.kv_type,
        "window": status.window,
        "train_context": status.train_context,
    }
    view = (
        f"{status.model} ({status.model_path}), KV {status.kv_type}, window {status.window:,} tokens, "
        f"trained for {status.train_context:,}"
    )
    return Result(data, view)


def _switch_model(chat: Chat, name: str) -> Result:
    """Closes the loom before the other opens: two models at once may not fit. A failure brings the old one back."""
    left, system_text = chat.session, chat.session.system
    session_id, session_name, old_model = left.id, left.name or left.id, chat.loom.status().model
    active = [s.ref for s in chat.session.usage().segments if s.kind == "chunk" and s.is_active]
    mode = chat.session.fidelity
    old_path = chat.loom.status().model_path
    chat.close()
    try:
        chat.loom = _open(chat, name)
    except KvloomError:
        chat.loom = _open(chat, old_path)
        chat.session = chat.loom.session(id=session_id)
        raise
    chat.session = chat.loom.session(system=system_text, fidelity=mode)
    refs = tuple(dict.fromkeys(active))
    if refs:
        chat.session.activate(*refs)
    status = chat.loom.status()
    lines = [
        f"opened {status.model}: window {status.window:,} tokens, KV {status.kv_type}; a new session was started",
        f"KV belongs to a model: {len(refs)} chunks came along by content, what {status.model} has not stored of "
        "them is computed with the next question",
        f"the conversation stays in session {session_name} under {old_model}: /model {old_model}, then "
        f"/session switch {session_id}",
    ]
    data = {"model": status.model, "session": chat.session.id, "left_session": session_id, "chunks": refs}
    return Result(data, "\n".join(lines))


def _open(chat: Chat, name: str) -> Loom:
    with chat.screen.progress() as progress:
        return open_for_chat(chat.options, progress, name)


@slash("/help [COMMAND]", "List the commands, or tell about one.", group="Chat", complete=completion.commands)
def help_(_chat: Chat, args: Arguments) -> Result:
    name = args.at_most_one("command").removeprefix("/")
    if name:
        command = find_command(name)
        return Result(_described(command), f"{command.usage}\n  {command.help}")
    return Result([_described(command) for command in COMMANDS.values()], _help_view())


def _described(command: SlashCommand) -> dict[str, str]:
    return {"name": command.name, "usage": command.usage, "help": command.help, "group": command.group}


def _help_view() -> RenderableType:
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False, show_edge=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    groups = dict.fromkeys(command.group for command in COMMANDS.values())
    for group in groups:
        table.add_row(Text(group, style="bold"), "")
        for command in COMMANDS.values():
            if command.group == group:
                table.add_row(command.usage, command.help)
    table.add_row(Text("Elsewhere", style="bold"), "")
    table.add_row("ID", "6 or more hex digits that begin a chunk's id, or its name")
    table.add_row('"""', "starts and ends a question of many lines")
    table.add_row("//…", "asks a question that begins with a slash")
    return table


@slash("/quit", "Leave; everything is stored. Ctrl-D does the same.", group="Chat")
def quit_(chat: Chat, args: Arguments) -> Result:
    args.none()
    chat.is_done = True
    return Result({"session": chat.session.id})

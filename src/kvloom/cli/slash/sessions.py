"""Slash commands on sessions and profiles. Knows the façade only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kvloom.cli import amounts
from kvloom.cli.context_verbs import here
from kvloom.cli.panels import profiles_table, sessions_table
from kvloom.cli.registry import Arguments, Result, Suggestion, choose, slash
from kvloom.cli.resume import find_session, read_export, resume, write_export
from kvloom.cli.slash import completion
from kvloom.errors import SessionBusyError

if TYPE_CHECKING:
    from kvloom.cli.chat import Chat

GROUP = "Sessions"

SESSION_VERBS = ("list", "new", "switch", "rename", "delete", "export", "import")
PROFILE_VERBS = ("save", "use", "list", "delete")


def _complete_session(chat: Chat, before: Sequence[str]) -> Iterable[Suggestion]:
    if not before:
        return [Suggestion(verb) for verb in SESSION_VERBS]
    if len(before) == 1 and before[0] in ("switch", "delete"):
        return completion.sessions(chat)
    if len(before) == 1 and before[0] in ("import", "export"):
        return [Suggestion("", is_path=True)]
    return []


@slash(
    "/session list | new [NAME] | switch ID | rename NAME | delete ID | export FILE | import FILE",
    "List the sessions of this home, start, resume, name or delete one; write this one to a file, read one.",
    group=GROUP,
    complete=_complete_session,
)
def session(chat: Chat, args: Arguments) -> Result:
    verbs: dict[str, Callable[[Chat, Arguments], Result]] = {
        "list": _list, "new": _new, "switch": _switch, "rename": _rename, "delete": _delete,
        "export": _export, "import": _import,
    }  # fmt: skip
    verb = choose(args.words[0], SESSION_VERBS, args) if args.words else "list"
    return verbs[verb](chat, args.behind())


def _list(chat: Chat, args: Arguments) -> Result:
    args.none()
    found = chat.loom.sessions()
    return Result({"current": chat.session.id, "sessions": found}, sessions_table(found, chat.session.id))


def _new(chat: Chat, args: Arguments) -> Result:
    name = args.at_most_one("name")
    chat.replace_session(chat.loom.session(system=chat.session.system, fidelity=chat.session.fidelity))
    if name:
        chat.session.rename(name)
    return here(chat, "new session")


def _switch(chat: Chat, args: Arguments) -> Result:
    info = find_session(chat.loom, args.one("session"))
    if info.id != chat.session.id:
        chat.replace_session(resume(chat.loom, info.id))
    return here(chat, "session")


def _rename(chat: Chat, args: Arguments) -> Result:
    name = args.one("name")
    chat.session.rename(name)
    return Result({"id": chat.session.id, "name": name}, f"this session is now called {name}")


def _delete(chat: Chat, args: Arguments) -> Result:
    info = find_session(chat.loom, args.one("session"))
    if info.id == chat.session.id:
        raise SessionBusyError("this is the session you are in; /session switch or /session new first")
    chat.loom.delete_session(info.id)
    return Result({"id": info.id, "name": info.name}, f"deleted session {info.name or info.id}; its chunks stay")


def _export(chat: Chat, args: Arguments) -> Result:
    path = Path(args.one("file")).expanduser()
    size = write_export(chat.loom, chat.session.id, path)
    return Result({"file": path, "bytes": size}, f"wrote this session to {path} ({amounts.size(size)})")


def _import(chat: Chat, args: Arguments) -> Result:
    info = read_export(chat.loom, Path(args.one("file")).expanduser())
    name = info.name or info.id
    return Result(info, f"imported session {name}: {info.num_turns} turns; /session switch {info.id} opens it")


def _complete_profile(chat: Chat, before: Sequence[str]) -> Iterable[Suggestion]:
    if not before:
        return [Suggestion(verb) for verb in PROFILE_VERBS]
    return completion.profiles(chat) if len(before) == 1 and before[0] != "list" else []


@slash(
    "/profile save NAME [SOURCE…] | use NAME [SLOT=VALUE…] | list | delete NAME",
    "Keep this context's chunks (or paths, globs, {slots}), system prompt and fidelity under a name; use them.",
    group=GROUP,
    complete=_complete_profile,
)
def profile(chat: Chat, args: Arguments) -> Result:
    verb = choose(args.words[0], PROFILE_VERBS, args) if args.words else "list"
    rest = args.behind()
    if verb == "list":
        rest.none()
        found = chat.loom.profiles()
        return Result({"profiles": found}, profiles_table(found))
    if verb == "use":
        return _use_profile(chat, rest)
    if verb == "save":
        return _save_profile(chat, rest)
    name = rest.one("name")
    chat.loom.delete_profile(name)
    return Result({"name": name}, f"deleted profile {name}")


def _save_profile(chat: Chat, args: Arguments) -> Result:
    name, *sources = args.some("name")
    saved = chat.loom.save_profile(name, chat.session, sources or None)
    slots = "".join(f" {slot}=…" for slot in saved.slots)
    view = f"saved profile {name} ({len(saved.sources)} sources); /profile use {name}{slots} brings it into any session"
    return Result({"name": name, "sources": saved.sources, "slots": saved.slots}, view)


def _use_profile(chat: Chat, args: Arguments) -> Result:
    name = args.some("name")[0]
    slots = {}
    for word in args.words[1:]:
        slot, equals, value = word.partition("=")
        if not equals or not slot:
            raise args.wrong(f"a slot is given as SLOT=VALUE, got {word!r}")
        slots[slot] = value
    chunks = chat.loom.use_profile(name, chat.session, slots)
    chat.warm()
    names = ", ".join(chunk.name for chunk in chunks) or "no chunk"
    return Result({"name": name, "chunks": chunks}, f"profile {name}: {names}")

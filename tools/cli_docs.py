"""Writes docs/cli.md from the program's own help, or with --check says whether it is still the same.

Knows the assembled commands and the registry of slash commands, no command's inside.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

TARGET = Path(__file__).resolve().parent.parent / "docs" / "cli.md"

HELP_COLUMNS = "100"
"""Width of the help in the page; fixed, or the page would change with the terminal."""

INTRODUCTION = """\
# Command line

Written by `tools/cli_docs.py` from the program's own help; not edited by hand.

Every command takes `--json`: one JSON document on standard output and nothing else there. Progress and notes go to
standard error. `NO_COLOR` is respected. Exit codes: 0, 1 where something failed, 2 for wrong usage, 130 after Ctrl-C.
An error with `--json` is `{"error": {"type", "message"}}` on standard error. An unexpected error shows its traceback
where `KVLOOM_DEBUG=1` is set.
"""

CHAT_INTRODUCTION = """\
## In a chat

A line that starts with `/` is a command, `//` starts a question that begins with a slash, and `\"\"\"` opens and closes
a question of many lines. `ID` is 6 or more hex digits that begin a chunk's id, or its name. Tab completes commands,
chunks, files, sessions and profiles. Ctrl-C stops a reply (the context is then as it was before the question), Ctrl-D
leaves. With standard input that is no terminal the chat runs it as a script, line by line, up to the first line that
fails; with `--json` every line gives one JSON line, `{"line", "ok", "result"}`.
"""


def help_pages() -> Iterator[tuple[str, str]]:
    """Every command's path and help text, groups before their commands."""
    import contextlib
    import io

    from kvloom.cli.main import app, run

    def page(path: list[str]) -> tuple[str, str]:
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            run([*path, "--help"])
        return " ".join(["kvloom", *path]), text.getvalue().strip()

    yield page([])
    for command in app.registered_commands:
        yield page([str(command.name)])
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield page([str(group.name)])
        for command in group.typer_instance.registered_commands:
            yield page([str(group.name), str(command.name)])


def slash_section() -> str:
    """The slash commands as tables, a group each."""
    from kvloom.cli import slash
    from kvloom.cli.registry import COMMANDS

    assert slash.__all__
    lines = [CHAT_INTRODUCTION]
    for group in dict.fromkeys(command.group for command in COMMANDS.values()):
        lines += [f"### {group}", "", "| command | what it does |", "|---|---|"]
        for command in COMMANDS.values():
            if command.group == group:
                usage = command.usage.replace("|", "\\|")
                lines.append(f"| `{usage}` | {command.help} |")
        lines.append("")
    return "\n".join(lines)


def render() -> str:
    os.environ["COLUMNS"] = HELP_COLUMNS
    os.environ["NO_COLOR"] = "1"
    parts = [INTRODUCTION]
    for path, text in help_pages():
        parts.append(f"## {path}\n\n```text\n{text}\n```\n")
    return "\n".join([*parts, slash_section()]).rstrip() + "\n"


def main() -> int:
    fresh = render()
    if "--check" not in sys.argv[1:]:
        TARGET.parent.mkdir(exist_ok=True)
        TARGET.write_text(fresh, encoding="utf-8")
        return 0
    stored = TARGET.read_text(encoding="utf-8") if TARGET.exists() else ""
    if stored == fresh:
        return 0
    shown = difflib.unified_diff(
        stored.splitlines(), fresh.splitlines(), "docs/cli.md", "the program's help", lineterm=""
    )
    print("\n".join(shown))
    print("docs/cli.md is not what the program says; write it again: python tools/cli_docs.py")
    return 1


if __name__ == "__main__":
    sys.exit(main())

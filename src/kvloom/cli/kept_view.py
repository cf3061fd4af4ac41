"""What is kept of a session beside its context, for people: snapshots, their messages, the ledger.

Values in, views out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from kvloom.cli import amounts
from kvloom.cli.panels import TIER_STYLES, tier_text
from kvloom.session.values import LedgerLine, Message, Snapshot

SHORT_REF_DIGITS = 8
"""Digits of a turn's id that are shown: a session has thousands of turns, not billions."""

MAX_TEXT_CHARACTERS = 36
"""Of a turn's question in the ledger: the row stays a line on 120 columns."""


def snapshots_table(snapshots: Sequence[Snapshot]) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in ("id", "title", "made"):
        table.add_column(title)
    for title in ("age", "turns", "chunks", "tokens", "KV", "restore"):
        table.add_column(title, justify="right")
    for snapshot in snapshots:
        table.add_row(
            snapshot.id,
            Text(amounts.printable(snapshot.title)),
            made(snapshot),
            amounts.age(snapshot.created),
            str(snapshot.num_turns),
            str(snapshot.num_chunks),
            amounts.tokens(snapshot.num_tokens),
            amounts.size(snapshot.kv_bytes),
            cost(snapshot.restore_s),
        )
    return table


def made(snapshot: Snapshot) -> str:
    """Who made it, and when it was kvloom: why."""
    return amounts.printable(snapshot.reason) or "by itself" if snapshot.is_auto else "by hand"


def cost(restore_s: float | None) -> str:
    """Seconds to bring something back; "–" where all of it is on the device, "?" where nothing was measured yet."""
    return "?" if restore_s is None else amounts.seconds(restore_s) if restore_s else "–"


def messages_text(messages: Sequence[Message]) -> str:
    """A conversation as text."""
    return amounts.printable("\n".join(f"{_mark(message)}{message.content}" for message in messages))


def _mark(message: Message) -> str:
    return {"system": "[system] ", "user": f"\n[{message.turn}] > "}.get(message.role, "")


def ledger_table(lines: Sequence[LedgerLine], how: Callable[[str], str]) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in ("id", "what", "it says"):
        table.add_column(title)
    table.add_column("tokens", justify="right")
    table.add_column("left with")
    table.add_column("KV")
    table.add_column("restore", justify="right")
    table.add_column("brings it back", overflow="fold")
    for line in lines:
        text = line.text if len(line.text) <= MAX_TEXT_CHARACTERS else line.text[: MAX_TEXT_CHARACTERS - 1] + "…"
        table.add_row(
            line.ref[:SHORT_REF_DIGITS],
            "summary" if line.is_summary else line.kind,
            Text(amounts.printable(text)),
            amounts.tokens(line.num_tokens),
            Text(amounts.printable(line.reason)),
            Text(tier_text(line.tier), style=TIER_STYLES[line.tier]),
            cost(line.restore_s),
            Text(how(brings_back(line))),
        )
    return table


def brings_back(line: LedgerLine) -> str:
    """The slash command that does it."""
    if line.kind == "turn":
        return f"/recall {line.ref[:SHORT_REF_DIGITS]}"
    return f"/activate {amounts.short_id(line.ref)}"

"""How sources of a reply, and what an update of a library did, are shown. Knows the façade's values only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvloom.cli import amounts

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kvloom.session.libraries import Updated
    from kvloom.session.values import Source

MAX_SKIPPED = 10
"""Files that were passed over, told one by one; of more only their number is."""


def place(source: Source) -> str:
    """`book.md:120-180`: where a passage stands now, whatever name its chunk was given first."""
    return f"{source.document}:{source.first_line}-{source.last_line}"


def sources_line(sources: Sequence[Source]) -> str:
    return "sources: " + ", ".join(f"{place(source)} ({amounts.short_id(source.chunk)})" for source in sources)


def explanation(sources: Sequence[Source]) -> RenderableType:
    """What was chosen, why, and what it cost."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from kvloom.cli.panels import tier_text

    if not sources:
        return "no passage was chosen"
    table = Table(box=box.SIMPLE, pad_edge=False, show_edge=False)
    for title in ("passage", "score", "coverage", "because of", "tokens", "KV was", "cost"):
        table.add_column(title, justify="right" if title in ("score", "coverage", "tokens", "cost") else "left")
    for source in sources:
        cost = "" if source.restore_s is None else amounts.seconds(source.restore_s)
        table.add_row(
            Text(amounts.printable(place(source))),
            f"{source.score:.2f}",
            f"{source.coverage:.0%}",
            Text(amounts.printable(" ".join(source.words))),
            amounts.tokens(source.num_tokens),
            tier_text(source.tier),
            cost,
        )
    return table


def updated_lines(name: str, updated: Updated) -> list[str]:
    """What was read for a library, and what was not, and why; nothing where all was known."""
    lines = []
    moved = (
        (updated.num_added, "added"), (updated.num_changed, "changed"), (updated.num_removed, "gone"),
    )  # fmt: skip
    said = ", ".join(f"{count} {word}" for count, word in moved if count)
    if said:
        lines.append(f"{name}: {said}, {updated.num_passages_added} passages indexed")
    lines += [f"{document}: {note}" for document, note in updated.notes]
    lines += [f"passed over: {skipped.name} {skipped.why}" for skipped in updated.skipped[:MAX_SKIPPED]]
    if len(updated.skipped) > MAX_SKIPPED:
        lines.append(f"… and {len(updated.skipped) - MAX_SKIPPED} more that were passed over")
    if not updated.is_complete:
        lines.append(f"{name} is not complete: adding the same files again goes on from here")
    return lines

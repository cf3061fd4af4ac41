"""The numbers beside the context view, for people: window and trend, ledger, engine, tiers. Values in, views out."""

from __future__ import annotations

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from kvloom.cli import amounts
from kvloom.cli.context_stats import ContextStats, TierShare
from kvloom.cli.context_view import used_tokens
from kvloom.cli.panels import NO_BYTES, tier_text
from kvloom.session.values import ContextUsage, LoomStatus


def stats_view(usage: ContextUsage, status: LoomStatus, stats: ContextStats) -> RenderableType:
    """Numbers beside the map: the window and its trend, the ledger, the engine, every tier, and what was refused."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    grid.add_row(
        "Used",
        f"{used_tokens(usage)} of {amounts.tokens(usage.capacity)} tokens "
        f"({amounts.share(usage.used, usage.capacity)}), "
        f"free {amounts.tokens(usage.free, is_estimate=usage.is_estimate)}, "
        f"of it reserve {amounts.tokens(min(usage.reserve, usage.free))}, "
        f"holes {amounts.tokens(usage.num_hole_tokens)}",
    )
    grid.add_row("Turns", turns_text(stats))
    shares = (_share_text(share, is_estimate=usage.is_estimate) for share in stats.tiers)
    grid.add_row("It lies", " · ".join(shares) or "nowhere: it is empty")
    outside = amounts.tokens(stats.num_ledger_tokens, is_estimate=usage.is_estimate)
    grid.add_row(
        "Ledger",
        f"{outside} tokens in {stats.num_ledger_lines} lines are not in the prompt; "
        f"{stats.compression_ratio:.0%} of what was given is",
    )
    _add_engine(grid, status)
    return grid


def _share_text(share: TierShare, *, is_estimate: bool) -> str:
    held = "" if share.tier in NO_BYTES else f" ({amounts.size(share.kv_bytes)})"
    return f"{tier_text(share.tier)} {amounts.tokens(share.num_tokens, is_estimate=is_estimate)} tokens{held}"


def turns_text(stats: ContextStats) -> str:
    """How many, how long, and how many more of them fit."""
    said = [str(stats.num_turns)]
    if stats.tokens_per_turn is not None:
        said.append(f"{stats.tokens_per_turn:,.0f} tokens each of late")
    if stats.trend_tokens is not None:
        said.append(f"trend {stats.trend_tokens:+,.1f} a turn")
    if stats.turns_left is not None:
        said.append(f"about {stats.turns_left:,} more until the window is full")
    return ", ".join(said)


def _add_engine(grid: Table, status: LoomStatus) -> None:
    grid.add_row("Model", Text(amounts.printable(f"{status.model} ({status.model_path})")))
    grid.add_row("Fingerprint", amounts.short_id(status.fingerprint))
    trained = f"{amounts.tokens(status.train_context)} tokens" if status.train_context else "not known"
    grid.add_row("Trained for", trained)
    if status.kv_type:
        grid.add_row("Cells", f"{amounts.tokens(status.used_cells)} / {amounts.tokens(status.num_cells)}")
    for tier in status.tiers:
        limit = f" of {amounts.size(tier.budget_bytes)}" if tier.budget_bytes is not None else ""
        entries = f"{amounts.tokens(tier.num_entries)} entries, {amounts.size(tier.used_bytes)}{limit}"
        grid.add_row(f"Tier {tier.tier.value}", entries)
    moves = "yes" if status.can_rotate else f"no: {status.why_not}" if status.why_not else "no"
    grid.add_row("KV can move", Text(moves))
    faults = ", ".join(f"{reason} {count}" for reason, count in sorted(status.faults.items())) or "none"
    grid.add_row("Refused entries", faults)
    grid.add_row("Home", Text(amounts.printable(status.home)))

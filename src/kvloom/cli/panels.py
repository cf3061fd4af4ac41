"""Lists and lines for people: a reply's usage, chunks, sessions, profiles. Builds them from the façade's values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kvloom.cli import amounts
from kvloom.session.values import ChunkDetail, ChunkStatus, SessionInfo
from kvloom.types import Fidelity, TierName, Usage

TIER_STYLES = {
    TierName.DEVICE: "green",
    TierName.RAM: "yellow",
    TierName.DISK: "blue",
    TierName.REMOTE: "blue",
    TierName.NONE: "red",
    TierName.UNKNOWN: "dim",
}

NO_BYTES = (TierName.NONE, TierName.UNKNOWN)
"""Tiers in which there is nothing of ours to be counted in bytes."""


def tier_text(tier: TierName) -> str:
    """A tier as the views name it."""
    return {TierName.NONE: "to compute", TierName.UNKNOWN: "at the endpoint"}.get(tier, tier.value)


def usage_line(usage: Usage) -> str:
    """One line about a reply: where its prompt came from, and how fast it was."""
    is_rough = usage.is_estimate
    loaded = f"{amounts.tokens(usage.loaded_tokens)} loaded"
    if usage.rotated_tokens:
        loaded += f" ({amounts.tokens(usage.rotated_tokens)} rotated)"
    computed = f"{amounts.tokens(usage.computed_tokens, is_estimate=is_rough)} computed"
    if usage.recomputed_tokens:
        computed += f" (and {amounts.tokens(usage.recomputed_tokens)} again in place)"
    parts = [
        f"prompt {amounts.tokens(usage.prompt_tokens, is_estimate=is_rough)} = "
        f"{amounts.tokens(usage.reused_tokens)} reused + {loaded} + {computed}",
        f"first token {amounts.seconds(usage.ttft_s)}",
        f"{amounts.tokens(usage.completion_tokens, is_estimate=is_rough)} tokens{_rate(usage)}",
        usage.fidelity.value,
    ]
    if usage.dropped_tokens:
        parts.insert(1, f"{amounts.tokens(usage.dropped_tokens)} dropped")
    return " · ".join(parts)


def _rate(usage: Usage) -> str:
    decode_s = usage.total_s - usage.ttft_s
    if usage.completion_tokens < 2 or decode_s <= 0:
        return ""
    return f" at {(usage.completion_tokens - 1) / decode_s:.1f}/s"


def chunks_table(chunks: Sequence[ChunkStatus]) -> RenderableType:
    if not chunks:
        return "no chunks yet: `kvloom chunks add FILE` or /load FILE in a chat"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("id")
    table.add_column("name")
    for title in ("tokens", "size", "KV"):
        table.add_column(title, justify="right")
    table.add_column("tier")
    table.add_column("flags")
    for chunk in chunks:
        marks = [word for word, on in (("stale", chunk.is_stale), ("erased", chunk.is_erased)) if on]
        table.add_row(
            amounts.short_id(chunk.id),
            Text(amounts.printable(chunk.name)),
            amounts.tokens(chunk.num_tokens, is_estimate=chunk.is_estimate),
            amounts.size(chunk.size_bytes),
            amounts.size(chunk.kv_bytes) if chunk.kv_bytes else "–",
            Text(tier_text(chunk.tier), style=TIER_STYLES[chunk.tier]),
            " ".join(marks),
        )
    return table


def chunk_view(detail: ChunkDetail) -> RenderableType:
    """Everything about one chunk: parts with their cells and token ids, places, metadata."""
    status = detail.status
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    grid.add_row("Id", status.id)
    grid.add_row("Name", Text(amounts.printable(status.name)))
    grid.add_row("Source", Text(amounts.printable(status.source or "–")))
    num_tokens = amounts.tokens(status.num_tokens, is_estimate=status.is_estimate)
    grid.add_row("Size", f"{amounts.size(status.size_bytes)}, {num_tokens} tokens")
    held = "" if status.tier in NO_BYTES else f", {amounts.size(status.kv_bytes)}"
    grid.add_row("KV", f"{tier_text(status.tier)}{held}")
    grid.add_row("References", f"{detail.num_references} session{'' if detail.num_references == 1 else 's'}")
    flags_ = [word for word, on in (("stale", status.is_stale), ("erased", status.is_erased)) if on]
    if flags_:
        grid.add_row("Flags", " ".join(flags_))
    for key, value in sorted(detail.metadata.items()):
        grid.add_row("Metadata", Text(amounts.printable(f"{key} = {value}")))
    for place in detail.places:
        where = amounts.positions(place.start, place.stop) if place.is_active else "off"
        pinned = ", pinned" if place.is_pinned else ""
        grid.add_row("In session", Text(amounts.printable(f"{place.session_name or place.session}: {where}{pinned}")))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title, justify in (("part", "right"), ("entry", "left"), ("tokens", "right"), ("tier", "left")):
        table.add_column(title, justify="right" if justify == "right" else "left")
    table.add_column("KV", justify="right")
    table.add_column("cells", justify="right")
    table.add_column("first token ids")
    for part in detail.parts:
        first = " ".join(str(token) for token in part.token_ids[:8]) + (" …" if len(part.token_ids) > 8 else "")
        table.add_row(
            str(part.part),
            amounts.short_id(part.entry),
            amounts.tokens(part.num_tokens, is_estimate=status.is_estimate),
            tier_text(part.tier),
            amounts.size(part.kv_bytes),
            amounts.tokens(part.num_cells),
            first,
        )
    return Group(grid, table)


def sessions_table(sessions: Sequence[SessionInfo], current: str = "") -> RenderableType:
    if not sessions:
        return "no sessions yet: `kvloom chat` starts one"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in ("", "id", "name", "model"):
        table.add_column(title)
    for title in ("turns", "chunks", "tokens", "updated"):
        table.add_column(title, justify="right")
    for info in sessions:
        table.add_row(
            "*" if info.id == current else "",
            info.id,
            Text(amounts.printable(info.name)),
            Text(amounts.printable(info.model)),
            str(info.num_turns),
            str(info.num_chunks),
            amounts.tokens(info.num_tokens),
            amounts.age(info.updated) + (" (open)" if info.is_open else ""),
        )
    return table


class StoredProfile(Protocol):
    """What the façade hands out as a profile."""

    @property
    def name(self) -> str: ...
    @property
    def sources(self) -> tuple[str, ...]: ...
    @property
    def system(self) -> str: ...
    @property
    def settings(self) -> Mapping[str, str]: ...
    @property
    def slots(self) -> tuple[str, ...]: ...


def profiles_table(profiles: Sequence[StoredProfile]) -> RenderableType:
    if not profiles:
        return "no profiles yet: /profile save NAME keeps this context's chunks, system prompt and settings"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in ("name", "chunks", "slots", "settings", "system"):
        table.add_column(title)
    for profile in profiles:
        cells = (
            profile.name,
            "\n".join(profile.sources),
            " ".join(profile.slots),
            " ".join(f"{key}={value}" for key, value in sorted(profile.settings.items())),
            profile.system,
        )
        table.add_row(*(Text(amounts.printable(cell)) for cell in cells))
    return table


def fidelity_text(fidelity: Fidelity) -> str:
    """What a mode means, in one sentence."""
    return {
        Fidelity.EXACT: "exact: only KV computed behind the same context is placed; a change recomputes what follows",
        Fidelity.BLEND: "blend: chunks computed alone are moved into place, and some of their tokens recomputed there",
        Fidelity.SPLICE: "splice: chunks computed alone are moved into place; switching and reordering compute nothing",
    }[fidelity]

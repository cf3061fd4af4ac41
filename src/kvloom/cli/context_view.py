"""The context view: a map of the window, a row for each segment, what needs attention. Reads values, nothing else.

A view costs no context and computes nothing: every number in it was read off `session.usage()` and `loom.status()`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from kvloom.cli import amounts
from kvloom.cli.library_view import attached_line
from kvloom.cli.panels import NO_BYTES, TIER_STYLES, tier_text
from kvloom.cli.standing import AutoCompress, Standing, WindowOrigin
from kvloom.session.values import ContextUsage, LoomStatus, Segment
from kvloom.types import TierName

MAP_CELLS = 64
"""Characters of the bar map: fits 80 columns with its frame."""

MEMORY_TITLES = {"ram": "RAM", "vram": "VRAM", "unified": "Memory"}

ORIGIN_TEXTS = {
    WindowOrigin.OWN: "this session's own (/context size)",
    WindowOrigin.ASKED_FOR: "as asked for",
    WindowOrigin.LAST: "the one that the session was open with last",
    WindowOrigin.DEFAULT: "the default; --context N takes another",
}

FREE, RESERVE = "·", "-"

KIND_STYLES = {"head": "magenta", "chunk": "cyan", "turn": "green"}


@dataclass(frozen=True)
class Row:
    """A line of the context view: one segment, or all parts of a split chunk together.

    `mark` stands for the row in the map. `restore_s` is None where nothing was measured yet, or nobody can tell.
    """

    mark: str
    kind: str
    name: str
    ref: str
    num_tokens: int
    start: int
    stop: int
    num_parts: int
    is_active: bool
    is_pinned: bool
    is_stale: bool
    tier: TierName
    kv_bytes: int
    restore_s: float | None
    traces: tuple[str, ...]
    is_estimate: bool


_COLDNESS = (TierName.DEVICE, TierName.RAM, TierName.DISK, TierName.REMOTE, TierName.NONE, TierName.UNKNOWN)


def context_rows(segments: Sequence[Segment]) -> list[Row]:
    """Rows in the order of the prompt. Parts of a chunk that follow each other are one row, as cold as the coldest."""
    groups: list[list[Segment]] = []
    for segment in segments:
        last = groups[-1][-1] if groups else None
        if last is not None and segment.kind == last.kind == "chunk" and segment.ref == last.ref:
            groups[-1].append(segment)
        else:
            groups.append([segment])
    return [_row(mark, parts) for mark, parts in zip(_marks(groups), groups, strict=True)]


def _marks(groups: Iterable[Sequence[Segment]]) -> list[str]:
    """H for the head, letters from a for chunks, digits from 1 for turns; # when they run out."""
    chunks = iter("abcdefghijklmnopqrstuvwxyz")
    turns = iter("123456789")
    marks = []
    for group in groups:
        kind = group[0].kind
        marks.append("H" if kind == "head" else next(chunks, "#") if kind == "chunk" else next(turns, "+"))
    return marks


def _row(mark: str, parts: Sequence[Segment]) -> Row:
    first = parts[0]
    costs = [part.restore_s for part in parts]
    return Row(
        mark=mark,
        kind=first.kind,
        name=first.name,
        ref=first.ref,
        num_tokens=sum(part.num_tokens for part in parts),
        start=first.start,
        stop=parts[-1].stop,
        num_parts=len(parts),
        is_active=any(part.is_active for part in parts),
        is_pinned=any(part.is_pinned for part in parts),
        is_stale=any(part.is_stale for part in parts),
        tier=max((part.tier for part in parts), key=_COLDNESS.index),
        kv_bytes=sum(part.kv_bytes for part in parts),
        restore_s=None if any(cost is None for cost in costs) else sum(cost or 0.0 for cost in costs),
        traces=tuple(dict.fromkeys(str(trace) for part in parts for trace in part.traces)),
        is_estimate=any(part.is_estimate for part in parts),
    )


def context_view(usage: ContextUsage, status: LoomStatus, standing: Standing, session_name: str) -> RenderableType:
    """The status box, the map, one row per segment, free and reserve apart, and what needs attention."""
    rows = context_rows(usage.segments)
    header = _header(usage, status, session_name)
    _add_standing(header, usage, standing)
    frame = Panel(header, title="Context", title_align="left", expand=False)
    shown: list[RenderableType] = [frame, _map(usage, rows), _rows_table(usage, rows)]
    shown += [Text(f"! {line}", style="yellow") for line in (*attention(usage), *standing.interventions[-1:])]
    return Group(*shown)


def _header(usage: ContextUsage, status: LoomStatus, session_name: str) -> Table:
    header = Table.grid(padding=(0, 2))
    header.add_column(style="dim")
    header.add_column()
    header.add_row("Model", Text(amounts.printable(f"{status.model} · {status.engine}")))
    header.add_row("Session", Text(amounts.printable(f"{session_name} · {usage.fidelity.value}")))
    used = f"{used_tokens(usage)} / {amounts.tokens(usage.capacity)} tokens"
    free = amounts.tokens(usage.free, is_estimate=usage.is_estimate)
    header.add_row(
        "Context",
        f"{used} ({amounts.share(usage.used, usage.capacity)}) · free {free}, "
        f"of it reserve {amounts.tokens(min(usage.reserve, usage.free))}"
        + (f" · holes {amounts.tokens(usage.num_hole_tokens)}" if usage.num_hole_tokens else ""),
    )
    if not status.kv_type:  # an endpoint's model: none of its KV is ours
        header.add_row("KV", "at the endpoint: what it keeps of this context is not known here")
        return header
    header.add_row("Cells", f"{amounts.tokens(status.used_cells)} / {amounts.tokens(status.num_cells)} used")
    tiers = (f"{tier.tier.value} {amounts.size(tier.used_bytes)}" for tier in status.tiers)
    header.add_row("KV", " · ".join((status.kv_type, *tiers)))
    return header


def used_tokens(usage: ContextUsage) -> str:
    """What the context takes, marked where that is an estimate."""
    return amounts.tokens(usage.used, is_estimate=usage.is_estimate)


def _add_standing(header: Table, usage: ContextUsage, standing: Standing) -> None:
    header.add_row("Window", f"{amounts.tokens(usage.capacity)} tokens, {ORIGIN_TEXTS[standing.window_origin]}")
    if standing.window_warning:
        header.add_row("", Text(f"! {standing.window_warning}", style="yellow"))
    for reading in standing.memory:
        used = f"{amounts.size(reading.used_bytes)} / {amounts.size(reading.total_bytes)}"
        share = amounts.share(reading.used_bytes, reading.total_bytes)
        name = f" · {reading.device}" if len(standing.memory) > 1 else ""
        header.add_row(MEMORY_TITLES[reading.kind.value], Text(amounts.printable(f"{used} ({share}){name}")))
    room = standing.safe_limit_tokens
    header.add_row(
        "Guard", standing.guard + ("" if room is None else f" · room for {amounts.tokens(room)} tokens more")
    )
    header.add_row("Snapshots", f"{standing.num_snapshots} to go back to" if standing.num_snapshots else "none")
    header.add_row("Policy", usage.policy)
    header.add_row("Compress", compress_text(standing))
    recall = f"recall {'on' if standing.is_recalling else 'off'}"
    for library in standing.libraries:
        header.add_row("Library", Text(f"{attached_line(library)} · {recall}"))


def compress_text(standing: Standing) -> str:
    """What the automatic compression is about to do."""
    if standing.auto_compress is not AutoCompress.ARMED:
        return str(standing.auto_compress.value)
    at = f"{standing.compress_threshold:.0%} ({amounts.tokens(standing.compress_at_tokens)} tokens)"
    return f"by itself at {at}, {standing.compress_strategy}"


def _map(usage: ContextUsage, rows: Sequence[Row]) -> Text:
    """One line in proportion to the window: what is used in the order of the prompt, holes, free, reserve."""
    active = [row for row in rows if row.is_active]
    lengths = [(row.mark, KIND_STYLES.get(row.kind, ""), row.num_tokens) for row in active]
    reserve = min(usage.reserve, usage.free)
    lengths += [(FREE, "dim", usage.free - reserve), (RESERVE, "dim", reserve)]
    bar = Text("[")
    for (mark, style, _), cells in zip(lengths, _apportion([n for _, _, n in lengths], MAP_CELLS), strict=True):
        bar.append(mark * cells, style=style)
    bar.append("]")
    bar.append(f"  {FREE} free  {RESERVE} reserve", style="dim")
    return bar


def _apportion(parts: Sequence[int], cells: int) -> list[int]:
    """`cells` shared in proportion to `parts`; a part that is not 0 gets one cell at least while there are enough."""
    total = sum(parts)
    if total <= 0:
        return [0 for _ in parts]
    least = 1 if sum(1 for part in parts if part) <= cells else 0
    shares = [max(least, part * cells // total) if part else 0 for part in parts]
    while sum(shares) != cells:
        step = 1 if sum(shares) < cells else -1
        floor = least if step < 0 else -1
        open_ = [i for i, part in enumerate(parts) if part and shares[i] > floor]
        # The part whose share is furthest from what is due to it moves.
        best = max(open_, key=lambda i: step * (parts[i] * cells / total - shares[i]))
        shares[best] += step
    return shares


def _rows_table(usage: ContextUsage, rows: Sequence[Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title, justify in (("", "left"), ("segment", "left"), ("id", "left"), ("tokens", "right")):
        table.add_column(title, justify="right" if justify == "right" else "left")
    table.add_column("positions", justify="right")
    table.add_column("state")
    table.add_column("KV", justify="right")
    table.add_column("restore", justify="right")
    table.add_column("flags")
    for row in rows:
        style = "" if row.is_active else "dim"
        table.add_row(
            Text(row.mark, style=KIND_STYLES.get(row.kind, "")),
            Text(amounts.printable(row.name or row.kind)),
            amounts.short_id(row.ref) if row.kind == "chunk" else "",
            amounts.tokens(row.num_tokens, is_estimate=row.is_estimate),
            amounts.positions(row.start, row.stop) if row.is_active else "–",
            Text(tier_text(row.tier), style=TIER_STYLES[row.tier]),
            amounts.size(row.kv_bytes) if row.tier not in NO_BYTES else "–",
            "–" if row.tier is TierName.DEVICE else "?" if row.restore_s is None else amounts.seconds(row.restore_s),
            flags(row),
            style=style,
        )
    table.add_section()
    table.add_row("", "used", "", used_tokens(usage), "", "", "", "", "")
    reserve = min(usage.reserve, usage.free)
    free = amounts.tokens(usage.free - reserve, is_estimate=usage.is_estimate)
    table.add_row(FREE, "free", "", free, "", "", "", "", "", style="dim")
    table.add_row(RESERVE, "reserve for the reply", "", amounts.tokens(reserve), "", "", "", "", "", style="dim")
    return table


def flags(row: Row) -> str:
    words = ["on" if row.is_active else "off"] if row.kind == "chunk" else []
    words += ["pinned"] if row.is_pinned else []
    words += ["stale"] if row.is_stale else []
    words += ["trace"] if row.traces else []
    words += [f"{row.num_parts} parts"] if row.num_parts > 1 else []
    return " ".join(words)


def attention(usage: ContextUsage) -> list[str]:
    """What a person should know about this context, with the command that helps."""
    lines = []
    stale = [segment.name for segment in usage.segments if segment.is_stale]
    if stale:
        lines.append(f"changed on disk since it was loaded: {', '.join(dict.fromkeys(stale))}; /reload takes it in")
    lines += trace_notes(usage)
    if usage.is_estimate:
        lines.append("numbers of tokens with ~ are estimates: the endpoint counts none before it computes them")
    return lines


def trace_notes(usage: ContextUsage) -> list[str]:
    """One line where turns carry the trace of chunks that are off now."""
    names = chunk_names(usage.segments)
    turns = [row.name or row.ref for row in context_rows(usage.segments) if row.kind == "turn" and row.traces]
    if not turns:
        return []
    traces = dict.fromkeys(trace for segment in usage.segments for trace in segment.traces)
    chunks = ", ".join(names.get(str(trace), amounts.short_id(trace)) for trace in traces)
    subject, verb = ("1 turn was", "carries") if len(turns) == 1 else (f"{len(turns)} turns were", "carry")
    clears = "clears it" if len(turns) == 1 else "clears them"
    return [f"{subject} made while {chunks} was on and still {verb} its trace; /recompute {clears}"]


def chunk_names(segments: Iterable[Segment]) -> Mapping[str, str]:
    return {segment.ref: segment.name for segment in segments if segment.kind == "chunk"}

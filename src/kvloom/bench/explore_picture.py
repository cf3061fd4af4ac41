"""The picture of `bench explore`: one panel for each part that was run. Knows rows as JSON values only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]

PANEL_IN, HEIGHT_IN = 5.0, 4.2
"""Inches of a panel's width and height."""
MAX_COLUMNS = 3
FIRST, SECOND, FAINT = "#0072b2", "#e69f00", "#bbbbbb"
"""Told apart by colour-blind readers, too."""
MARKERS = "osD^v"


def draw(figure: Figure, rows: Rows) -> None:
    """Raises KeyError for a row without its part's values, ValueError where no row belongs to a part."""
    parts = {name: [row for row in rows if row["part"] == name] for name in PANELS}
    shown = {name: of_part for name, of_part in parts.items() if of_part}
    if not shown:
        raise ValueError("no row of a known part")
    num_panels = sum(PANELS[name][0] for name in shown)
    num_columns = min(MAX_COLUMNS, num_panels)
    num_rows = -(-num_panels // num_columns)
    panels = iter(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    for name, of_part in shown.items():
        number, paint = PANELS[name]
        paint([next(panels) for _ in range(number)], of_part)
    for unused in panels:
        unused.set_axis_off()
    figure.set_size_inches(PANEL_IN * num_columns, HEIGHT_IN * num_rows)


def _context(panels: Sequence[Axes], rows: Rows) -> None:
    memory, speed = panels
    windows = [row["window"] for row in rows]
    memory.plot(windows, [row["forecast_mib"] for row in rows], "o-", color=FIRST, label="forecast")
    memory.plot(windows, [row["measured_mib"] for row in rows], "s--", color=SECOND, label="measured")
    memory.set_ylabel("MiB")
    filled = [row for row in rows if row["prefill_ms_per_token"] is not None]
    for name, colour, style in (("prefill", FIRST, "o-"), ("decode", SECOND, "s--")):
        points = [row for row in filled if row[f"{name}_ms_per_token"] is not None]
        values = [row[f"{name}_ms_per_token"] for row in points]
        speed.plot([row["window"] for row in points], values, style, color=colour, label=name)
    speed.set_ylabel("ms per token")
    for axes in panels:
        axes.set_xscale("log", base=2)
        axes.set_xticks(windows, [str(window) for window in windows], rotation=30, fontsize=8)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("window, tokens")
        axes.legend(fontsize=8)


def _strategies(panels: Sequence[Axes], rows: Rows) -> None:
    axes = panels[0]
    places = range(len(rows))
    axes.barh(places, [row["facts"] for row in rows], color=FAINT)
    bars = axes.barh(places, [row["right"] for row in rows], color=FIRST)
    axes.bar_label(bars, [f"{row['right']}, {row['ours_s']:.0f} s" for row in rows], fontsize=8, padding=3)
    axes.set_yticks(places, [row["strategy"] for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("planted facts answered")


def _windows(panels: Sequence[Axes], rows: Rows) -> None:
    found, times = panels
    for number, window in enumerate(dict.fromkeys(row["window"] for row in rows)):
        of_size = [row for row in rows if row["window"] == window]
        overlaps = [100 * row["overlap"] for row in of_size]
        style = f"{MARKERS[number % len(MARKERS)]}-"
        found.plot(overlaps, [100 * row["found"] / row["facts"] for row in of_size], style, label=f"{window} tokens")
        times.plot(overlaps, [row["ours_s"] for row in of_size], style, label=f"{window} tokens")
    found.set_ylim(0, 105)
    found.set_ylabel("facts found, %")
    times.set_ylim(0, 1.1 * max(row["ours_s"] for row in rows))
    times.set_ylabel("seconds")
    for axes in panels:
        axes.set_xlabel("overlap, %")
        axes.legend(fontsize=8)


def _depth(panels: Sequence[Axes], rows: Rows) -> None:
    right, beside = panels[0], panels[0].twinx()
    depths = [row["depth"] for row in rows]
    right.plot(depths, [100 * row["right"] / row["questions"] for row in rows], "o-", color=FIRST, label="right")
    right.plot(depths, [100 * row["in_sight"] / row["questions"] for row in rows], "^:", color=FAINT, label="in sight")
    right.set_ylim(0, 105)
    right.set_ylabel("questions, %")
    beside.plot(depths, [row["ours_s"] for row in rows], "s--", color=SECOND, label="seconds")
    beside.set_ylim(0, 1.1 * max(row["ours_s"] for row in rows))
    beside.set_ylabel("seconds per question")
    right.set_xticks(depths)
    right.set_xlabel("passages given")
    right.legend(fontsize=8, loc="lower right")
    beside.legend(fontsize=8, loc="lower left")


PANELS: Mapping[str, tuple[int, Callable[[Sequence[Axes], Rows], None]]] = {
    "context": (2, _context),
    "strategies": (1, _strategies),
    "windows": (2, _windows),
    "depth": (1, _depth),
}
"""How many panels a part has, and what paints them."""

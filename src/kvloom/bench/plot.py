"""Draws a benchmark's report as one SVG or PNG picture. Needs no display; knows reports as JSON values only.

matplotlib is an extra (`bench`) and is imported when something is drawn, not before.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvloom.bench import explore_picture
from kvloom.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".svg", ".png")
COLOURS = {"splice": "#0072b2", "blend": "#e69f00", "exact": "#009e73", "": "#777777"}
"""By fidelity; told apart by colour-blind readers, too."""
TARGET = "target, at least"
UNNAMED = "_"
"""matplotlib leaves such labels out of its legend."""
PEER_COLOUR, TARGET_COLOUR = "#bbbbbb", "#d00000"
HEIGHT_IN, PANEL_IN, BAR_IN = 4.8, 6.0, 0.34
"""Inches of a picture's height, of a curve's width, and of what one bar takes of the width."""
DPI = 130

Document = Mapping[str, Any]
Rows = Sequence[Mapping[str, Any]]


def require_plot(file: Path) -> None:
    """Raises UsageError where no picture could be written to `file`: to be asked before a long run."""
    if file.suffix.lower() not in FORMATS:
        raise UsageError(f"a plot is written as {' or '.join(FORMATS)}, and {file.name!r} ends in neither")
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError(
            "plots are drawn with matplotlib, which is not installed; `make bench` installs it, or pip install "
            "'kvloom[bench]'"
        )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise UsageError(f"the folder of the plot, {file.parent}, cannot be made: {exc.strerror}") from exc


def read_report(file: Path) -> Document:
    """A report as `kvloom bench … --json` printed it. Raises UsageError where it is none."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as exc:
        raise UsageError(f"{file} cannot be read: {exc.strerror}") from exc
    except ValueError as exc:
        raise UsageError(f"{file} holds no JSON document: {exc}") from exc
    if not isinstance(document, dict) or not isinstance(document.get("rows"), list) or "bench" not in document:
        raise UsageError(f"{file} is no report of kvloom bench: it has no bench and rows")
    return document


def plot(document: Document, file: Path) -> None:
    """Draw the report into `file`. Raises UsageError for a bench without a picture and for rows that lack a value."""
    require_plot(file)
    import matplotlib as mpl
    from matplotlib.figure import Figure

    draw = PICTURES.get(document["bench"])
    if draw is None:
        raise UsageError(f"there is no picture for bench {document['bench']!r}; there is one for {', '.join(PICTURES)}")
    # Text stays text: it can be searched and read aloud. The salt makes equal reports equal files.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "kvloom"}):
        figure = Figure(layout="constrained", dpi=DPI)
        try:
            if not document["rows"]:
                raise ValueError("there are no rows")
            draw(figure, document["rows"])
        except (KeyError, TypeError, ValueError, IndexError) as exc:
            raise UsageError(f"the report of bench {document['bench']} lacks what its picture shows: {exc!r}") from exc
        figure.suptitle(_title(document), fontsize=10)
        metadata = {"Date": None} if file.suffix.lower() == ".svg" else None
        try:
            figure.savefig(file, metadata=metadata)
        except OSError as exc:
            raise UsageError(f"the plot could not be written to {file}: {exc.strerror}") from exc


def _title(document: Document) -> str:
    setup = document.get("setup") or {}
    parts = [f"kvloom bench {document['bench']}", setup.get("model_name"), setup.get("cpu"), setup.get("date")]
    if setup.get("is_quick"):
        parts.append("--quick: proves nothing")
    return " · ".join(str(part) for part in parts if part)


# -- pictures -----------------------------------------------------------------------------------------------------


def _speedups(figure: Figure, rows: Rows) -> None:
    """Bars of speedup by case (and by peer, where a case has several) and fidelity."""
    # A share may be 0, which a log axis has no place for.
    rows = [row for row in rows if row["speedup"]]
    _bars(figure.subplots(), rows, [_label(row, rows) for row in rows])
    figure.set_size_inches(max(PANEL_IN, 1.5 + BAR_IN * 1.5 * len(rows)), HEIGHT_IN)


def _label(row: Mapping[str, Any], rows: Rows) -> str:
    """The case, and the peer where the case stands beside several of the same fidelity."""
    peers = {other["peer"] for other in rows if (other["case"], other["fidelity"]) == (row["case"], row["fidelity"])}
    return str(row["case"]) if len(peers) <= 1 else f"{row['case']}\n{str(row['peer']).rpartition(', ')[2]}"


def _bars(axes: Axes, rows: Rows, labels: Sequence[str]) -> None:
    """One group of bars for each label, one bar for each fidelity; the log axis begins below the least."""
    if not rows:
        raise ValueError("no row that is measured beside another")
    groups = list(dict.fromkeys(labels))
    fidelities = list(dict.fromkeys(str(row["fidelity"]) for row in rows))
    width = 0.8 / len(fidelities)
    is_named: set[str] = set()
    least = 1.0
    for row, label in zip(rows, labels, strict=True):
        fidelity, speedup = str(row["fidelity"]), float(row["speedup"])
        at = groups.index(label) + (fidelities.index(fidelity) - (len(fidelities) - 1) / 2) * width
        name = fidelity if fidelity not in is_named else ""
        is_named.add(fidelity)
        axes.bar(at, speedup, width * 0.9, color=COLOURS.get(fidelity, PEER_COLOUR), label=name or UNNAMED)
        target = float(row["target"]) if row.get("target") is not None else speedup
        if row.get("target") is not None:
            name = TARGET if TARGET not in is_named else ""
            is_named.add(TARGET)
            axes.hlines(target, at - width / 2, at + width / 2, color=TARGET_COLOUR, label=name or UNNAMED, zorder=3)
        above = (at, max(speedup, target))
        axes.annotate(f"{speedup:.3g}×", above, (0, 2), textcoords="offset points", ha="center", fontsize=7)
        least = min(least, speedup, target)
    axes.set_yscale("log")
    axes.set_ylim(bottom=least / 2)
    axes.yaxis.set_major_formatter("{x:g}×")
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(groups)), groups, rotation=20, ha="right", fontsize=8)
    axes.set_ylabel("times faster")
    if is_named - {""}:
        _legend(axes)


def _legend(axes: Axes) -> None:
    """Above the picture, where it hides nothing."""
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5, frameon=False)


def _fidelity(figure: Figure, rows: Rows) -> None:
    """Mean KL over the share that is recomputed: blend's curve and first-k's, both from splice; the floor as a band."""
    axes = figure.subplots()
    figure.set_size_inches(PANEL_IN * 1.2, HEIGHT_IN)
    by_case = {row["case"]: row for row in rows}
    splice = by_case["splice"]
    curves = (("blend", COLOURS["blend"], "o-"), ("first-k", COLOURS[""], "s--"))
    for name, colour, style in curves:
        points = [splice, *(row for case, row in by_case.items() if case.startswith(f"{name}-"))]
        _errors(axes, sorted(points, key=lambda row: float(row["share"])), name, colour, style)
    _errors(axes, [splice], "splice", COLOURS["splice"], "D")
    if "exact" in by_case and by_case["exact"]["kl_mean"] > 0:
        axes.axhline(by_case["exact"]["kl_mean"], color=COLOURS["exact"], linestyle=":", label="exact")
    floor = by_case.get("re-batching floor")
    if floor is not None:
        # Of few draws: the interval may be a line.
        axes.axhspan(floor["kl_mean_low"], floor["kl_mean_high"], color=PEER_COLOUR, alpha=0.6, label=floor["case"])
        axes.axhline(floor["kl_mean"], color=PEER_COLOUR)
    axes.set_yscale("log")
    axes.set_xlabel("share of the chunks' tokens that is recomputed, %")
    axes.set_ylabel("mean KL to a full prefill, nats (95 %)")
    _legend(axes)


def _errors(axes: Axes, rows: Rows, name: str, colour: str, style: str) -> None:
    """A curve of mean KL with its intervals."""
    means = [row["kl_mean"] for row in rows]
    low = [max(0.0, row["kl_mean"] - row["kl_mean_low"]) for row in rows]
    high = [max(0.0, row["kl_mean_high"] - row["kl_mean"]) for row in rows]
    shares = [100 * row["share"] for row in rows]
    axes.errorbar(shares, means, [low, high], fmt=style, color=colour, label=name, capsize=3)


def _decode(figure: Figure, rows: Rows) -> None:
    """Tokens per second as bars; beside them what the other parts cost beside their measure."""
    speeds, ratios = figure.subplots(1, 2, width_ratios=(1, 2))
    figure.set_size_inches(PANEL_IN * 1.8, HEIGHT_IN)
    timed = [row for row in rows if "ours_tokens_per_s" in row]
    bars = {"kvloom": timed[0]["ours_tokens_per_s"], **{row["peer"]: row["peer_tokens_per_s"] for row in timed}}
    drawn = speeds.bar(range(len(bars)), list(bars.values()), color=[COLOURS["splice"], *[PEER_COLOUR] * len(timed)])
    speeds.bar_label(drawn, fmt="%.1f", fontsize=8)
    speeds.set_xticks(range(len(bars)), list(bars), rotation=20, ha="right", fontsize=8)
    speeds.set_ylabel("tokens per second")
    _bars(ratios, rows, [str(row["case"]) for row in rows])


def _codecs(figure: Figure, rows: Rows) -> None:
    """Sizes, times and KL of each coding."""
    sizes, times, losses = figure.subplots(1, 3)
    figure.set_size_inches(PANEL_IN * 2, HEIGHT_IN)
    places, names = range(len(rows)), [str(row["case"]) for row in rows]
    sizes.bar_label(sizes.bar(places, [row["size_share"] for row in rows], color=COLOURS["splice"]), fmt="%.2f")
    sizes.set_ylabel("size, share of f16")
    for offset, (what, name, colour) in enumerate(
        (
            ("write_s", "write", COLOURS["blend"]),
            ("read_s", "read", COLOURS["splice"]),
            ("peer_s", "compute", "#777777"),
        )
    ):
        values = [row[what] for row in rows]
        times.bar([place + (offset - 1) * 0.27 for place in places], values, 0.25, color=colour, label=name)
    times.set_yscale("log")
    times.set_ylabel("seconds per 1,000 tokens")
    _legend(times)
    lossy = [place for place in places if rows[place]["kl_mean"] > 0]
    bounds = [
        [rows[place]["kl_mean"] - rows[place]["kl_mean_low"] for place in lossy],
        [rows[place]["kl_mean_high"] - rows[place]["kl_mean"] for place in lossy],
    ]
    losses.errorbar(
        lossy, [rows[place]["kl_mean"] for place in lossy], bounds, fmt="o", capsize=4, color=COLOURS["blend"]
    )
    for place in places:
        if place not in lossy:
            losses.annotate("0", (place, 0.02), xycoords=("data", "axes fraction"), ha="center")
    if lossy:
        losses.set_yscale("log")
    losses.set_xlim(-0.5, len(rows) - 0.5)
    losses.set_ylabel("mean KL to the rows as they were, nats (95 %)")
    for axes in (sizes, times, losses):
        axes.set_xticks(list(places), names)


Picture = Callable[["Figure", Rows], None]
PICTURES: Mapping[str, Picture] = {
    "switch": _speedups,
    "restart": _speedups,
    "fidelity": _fidelity,
    "decode": _decode,
    "room": _speedups,
    "snapshots": _speedups,
    "codecs": _codecs,
    "ask": _speedups,
    "retrieval": _speedups,
    "explore": explore_picture.draw,
}

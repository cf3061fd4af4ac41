"""`kvloom memory`: what memory there is, what holds it, and what the guard makes of it. Loads no model.

One reading of every probe; with `--watch` several, from which a trend follows.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from kvloom.cli import amounts
from kvloom.cli.options import JSON_ONLY, Options, takes

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kvloom.memory.guard import Thresholds
    from kvloom.memory.history import History
    from kvloom.memory.reading import MemoryPicture, MemoryReading

MIN_WATCHED = 3
"""Readings that a trend needs."""


@dataclass(frozen=True)
class DeviceRow:
    """One device as it is shown. `trend_bytes_per_s` and `held_bytes` are None where they are not known."""

    device: str
    kind: str
    source: str
    total_bytes: int
    used_bytes: int
    available_bytes: int
    held_bytes: int | None
    trend_bytes_per_s: float | None
    level: str
    safe_limit_bytes: int


@takes(JSON_ONLY)
def memory(
    options: Options,
    watch: Annotated[
        float, typer.Option("--watch", metavar="SECONDS", min=0, help="Watch for so long, and tell the trend.")
    ] = 0.0,
) -> None:
    """Show the memory of this machine.

    Every device with what is used and available, what this process and other model servers hold, and the level that
    the guard sees. A probe that fails says why.
    """
    from kvloom.config import load_settings
    from kvloom.memory.guard import Thresholds

    guard = load_settings().guard
    thresholds = Thresholds(guard.soft, guard.hard, guard.critical, guard.hysteresis)
    picture, history = observe(watch)
    rows = [device_row(reading, thresholds, history) for reading in picture.readings]
    data = {
        "devices": rows,
        "served": picture.served,
        "failures": picture.failures,
        "thresholds": thresholds,
    }
    options.output.emit(data, lambda: memory_view(rows, picture, thresholds))


def observe(watch_s: float) -> tuple[MemoryPicture, History]:
    """The last of the readings within `watch_s` seconds, and all of them."""
    from kvloom.memory.history import History
    from kvloom.memory.probe import make_probes, read_memory

    history = History()
    probes = make_probes()
    try:
        picture = read_memory(probes)
        history.add(time.monotonic(), picture)
        for _ in range(MIN_WATCHED - 1 if watch_s else 0):
            time.sleep(watch_s / (MIN_WATCHED - 1))
            picture = read_memory(probes)
            history.add(time.monotonic(), picture)
        return picture, history
    finally:
        for probe in probes:
            probe.close()


def device_row(reading: MemoryReading, thresholds: Thresholds, history: History) -> DeviceRow:
    from kvloom.memory.guard import Guard

    guard = Guard(thresholds)
    guard.observe(reading.used_bytes, reading.total_bytes)
    return DeviceRow(
        device=reading.device,
        kind=reading.kind.value,
        source=reading.source,
        total_bytes=reading.total_bytes,
        used_bytes=reading.used_bytes,
        available_bytes=reading.available_bytes,
        held_bytes=reading.held_bytes,
        trend_bytes_per_s=history.trend(reading.device),
        level=guard.level.value,
        safe_limit_bytes=guard.safe_limit_bytes() or 0,
    )


def memory_view(rows: list[DeviceRow], picture: MemoryPicture, thresholds: Thresholds) -> RenderableType:
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("device")
    for title in ("total", "used", "available", "held by kvloom", "until soft"):
        table.add_column(title, justify="right")
    for title in ("trend", "guard", "told by"):
        table.add_column(title)
    for row in rows:
        used = f"{amounts.size(row.used_bytes)} ({amounts.share(row.used_bytes, row.total_bytes)})"
        held = "–" if row.held_bytes is None else amounts.size(row.held_bytes)
        sizes = (amounts.size(row.total_bytes), used, amounts.size(row.available_bytes), held)
        level = Text(row.level, style=LEVEL_STYLES.get(row.level, ""))
        table.add_row(
            Text(amounts.printable(row.device)),
            *sizes,
            amounts.size(row.safe_limit_bytes),
            trend_text(row.trend_bytes_per_s),
            level,
            Text(row.source),
        )
    lines = [
        f"{model.server} keeps {amounts.printable(model.name)}: {amounts.size(model.vram_bytes)} on the GPU, "
        f"{amounts.size(model.ram_bytes)} in RAM"
        for model in picture.served
    ]
    lines += [f"not read: {amounts.printable(str(failure))}" for failure in picture.failures]
    lines.append(
        f"guard: soft at {thresholds.soft:.0%}, hard at {thresholds.hard:.0%}, critical at {thresholds.critical:.0%}"
    )
    return Group(table, Text("\n".join(lines)))


LEVEL_STYLES = {"normal": "green", "soft": "yellow", "hard": "red", "critical": "bold red"}


def trend_text(bytes_per_s: float | None) -> str:
    if bytes_per_s is None:
        return "–"
    sign = "-" if bytes_per_s < 0 else "+"
    return f"{sign}{amounts.size(round(abs(bytes_per_s)))}/s"


def register(app: typer.Typer) -> None:
    app.command("memory")(memory)

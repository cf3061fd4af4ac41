"""Rows of a benchmark, their medians, and how they are shown: as a table or as one JSON document.

Knows numbers and this machine, no engine.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import psutil
from rich.console import Console
from rich.table import Table

PLAIN_WIDTH = 190
"""Columns where the output is no terminal: a row stays on one line."""

LIBRARIES = ("llama-cpp-python", "xllamacpp", "numpy", "kvloom")


@dataclass(frozen=True)
class Sample:
    """Several measurements of one thing, in seconds."""

    values: tuple[float, ...]

    @staticmethod
    def of(values: Iterable[float]) -> Sample:
        return Sample(tuple(values))

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def least(self) -> float:
        return min(self.values)

    @property
    def most(self) -> float:
        return max(self.values)


@dataclass(frozen=True)
class Row:
    """One case of a benchmark. `speedup` is how many times faster ours is; `target` is what it should be at least.

    `peer_s` and `speedup` are None where nothing stands beside ours. `extra` holds whatever else was measured.
    """

    case: str
    fidelity: str
    ours_s: float
    peer: str = ""
    peer_s: float | None = None
    speedup: float | None = None
    target: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_met(self) -> bool | None:
        if self.target is None or self.speedup is None:
            return None
        return self.speedup >= self.target

    def document(self) -> dict[str, Any]:
        first = {
            "case": self.case,
            "fidelity": self.fidelity,
            "ours_s": self.ours_s,
            "peer": self.peer,
            "peer_s": self.peer_s,
            "speedup": self.speedup,
            "target": self.target,
            "met": self.is_met,
        }
        return {**first, **self.extra}


def compare(
    case: str,
    fidelity: str,
    ours: Sequence[float],
    peer: tuple[str, Sequence[float]],
    target: float | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Row:
    """A row of two samples by their medians; `peer` is its name and its seconds."""
    mine, theirs = Sample.of(ours), Sample.of(peer[1])
    spread = {
        "n": len(mine.values),
        "ours_min_s": mine.least,
        "ours_max_s": mine.most,
        "peer_n": len(theirs.values),
        "peer_min_s": theirs.least,
        "peer_max_s": theirs.most,
    }
    return Row(
        case,
        fidelity,
        mine.median,
        peer[0],
        theirs.median,
        theirs.median / mine.median,
        target,
        {**spread, **(extra or {})},
    )


@dataclass(frozen=True)
class Report:
    """A whole benchmark: what was measured, on what, and how to do it again."""

    bench: str
    setup: Mapping[str, Any]
    rows: tuple[Row, ...]
    columns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        return {
            "bench": self.bench,
            "setup": dict(self.setup),
            "rows": [row.document() for row in self.rows],
            "notes": list(self.notes),
        }

    def show(self, *, as_json: bool = False, stream: TextIO | None = None) -> None:
        """The report on standard output."""
        out = stream or sys.stdout
        if as_json:
            out.write(json.dumps(self.document(), ensure_ascii=False, indent=2) + "\n")
            out.flush()
            return
        width = None if out.isatty() else int(os.environ.get("COLUMNS") or PLAIN_WIDTH)
        console = Console(file=out, width=width, markup=False, highlight=False)
        console.print(self.table())
        for note in self.notes:
            console.print(note, soft_wrap=True)
        console.print(describe(self.setup), soft_wrap=True)
        console.print(f"again: {self.setup.get('command', '')}", soft_wrap=True)

    def table(self) -> Table:
        """The rows for a person; `columns` names extra values that are shown too. Empty columns are left out."""
        table = Table(title=f"kvloom bench {self.bench}", title_justify="left")
        columns: dict[str, list[str]] = {
            "case": [row.case for row in self.rows],
            "fidelity": [row.fidelity for row in self.rows],
            "ours s": [seconds(row.ours_s) for row in self.rows],
            "peer s": [seconds(row.peer_s) for row in self.rows],
            "speedup": [times(row.speedup) for row in self.rows],
            "target": [target(row) for row in self.rows],
        }
        columns |= {name.replace("_", " "): [shown(row.extra.get(name)) for row in self.rows] for name in self.columns}
        columns["peer"] = [row.peer for row in self.rows]
        kept = {name: cells for name, cells in columns.items() if any(cells)}
        for name in kept:
            is_text = name in ("case", "fidelity", "peer")
            table.add_column(name, justify="left" if is_text else "right", no_wrap=True)
        for cells in zip(*kept.values(), strict=True):
            table.add_row(*cells)
        return table


def target(row: Row) -> str:
    """What the speedup should be at least, and whether it is missed."""
    if row.target is None:
        return ""
    return f"{row.target:.3g}×" + (" missed" if row.is_met is False else "")


def seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if value >= 1 else f"{value:.4f}"


def times(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f}×" if value >= 10 else f"{value:.2f}×"


def shown(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def machine() -> dict[str, Any]:
    """What decides the numbers: processor, cores, memory, libraries, and how busy the machine is now."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": {name: version for name in LIBRARIES if (version := _version(name))},
        "load_average_at_start": load_average(),
        "date": time.strftime("%Y-%m-%d"),
    }


def command(bench: str, options: Mapping[str, object]) -> str:
    """The command line that repeats a run."""
    words = ["kvloom", "bench", bench]
    for name, value in options.items():
        if value is True:
            words.append(f"--{name}")
        elif value is not None and value is not False:
            words += [f"--{name}", str(value)]
    return shlex.join(words)


def describe(setup: Mapping[str, Any]) -> str:
    """The set-up on one line."""
    parts = [
        f"{setup.get('model_name', '')}",
        f"{setup.get('threads', '?')} threads",
        f"KV {setup.get('kv_type', '?')}",
    ]
    parts += [str(setup.get("cpu", "")), f"{setup.get('cores', '?')} cores"]
    parts += [f"{name} {version}" for name, version in dict(setup.get("libraries", {})).items()]
    parts.append(
        f"load average at start {setup.get('load_average_at_start')}, at end {setup.get('load_average_at_end')}"
    )
    return "; ".join(part for part in parts if part)


def load_average() -> float | None:
    """Processes that ran or waited for a core, over the last minute; None where the system does not say."""
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # no Linux: the platform module knows less, but something
    return platform.processor() or platform.machine()

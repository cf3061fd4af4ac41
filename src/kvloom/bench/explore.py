"""`bench explore`: context size, strategies, windows with overlap and retrieval depth, side by side on this machine.

Experiments without targets: what a choice costs and what it keeps. Knows the parts' rows only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from rich.table import Table

from kvloom.bench import explore_context, explore_depth, explore_strategies, explore_windows
from kvloom.bench.explore_values import FULL, QUICK, Size, Stage
from kvloom.bench.report import Report, Row
from kvloom.bench.setting import Request, open_loom, own_home, settings_for, setup_of
from kvloom.errors import UsageError


class Part(NamedTuple):
    """One experiment: what it makes of a stage, its number of steps with a model of so long a context, and the columns
    of its table."""

    rows: Callable[[Stage], list[Row]]
    num_steps: Callable[[Size, int], int]
    columns: tuple[str, ...]
    note: str


PARTS = {
    "context": Part(
        explore_context.rows, explore_context.num_steps, explore_context.COLUMNS,
        "context: windows filled by one question; forecast: weights, KV and buffers before loading; measured: what the "
        "process grew by until the reply, the read part of the model's file in it.",
    ),
    "strategies": Part(
        explore_strategies.rows, explore_strategies.num_steps, explore_strategies.COLUMNS,
        "strategies: each fact in a turn and one of small talk behind it, then asked one by one, every question taken "
        "back; truncate: what was said in those turns, without the replies, as one text that is cut. refused: turns "
        "and questions that did not fit; left out: turns, or tokens of the text.",
    ),
    "windows": Part(
        explore_windows.rows, explore_windows.num_steps, explore_windows.COLUMNS,
        "windows: the same asked of every window of one text; found: facts whose number stands in some reply.",
    ),
    "depth": Part(
        explore_depth.rows, explore_depth.num_steps, explore_depth.COLUMNS,
        "depth: passages of a library given with a question, their KV stored before; in sight: questions whose place "
        "is among them; prefill first time: computing those passages once, at this run's rate.",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Explored(Report):
    """A report whose parts are tables of their own."""

    def table(self) -> Table:
        whole = Table.grid()
        for name, part in PARTS.items():
            rows = tuple(row for row in self.rows if row.extra["part"] == name)
            if rows:
                whole.add_row(Report(f"{self.bench}: {name}", self.setup, rows, columns=part.columns).table())
        return whole


def chosen(cases: str | None) -> list[str]:
    """The parts that are to be run, in their order. Raises UsageError for one that there is not."""
    if cases is None:
        return list(PARTS)
    wanted = [word.strip() for word in cases.split(",") if word.strip()]
    unknown = [word for word in wanted if word not in PARTS]
    if unknown or not wanted:
        raise UsageError(f"there is no case {', '.join(unknown) or repr(cases)}; choose of {', '.join(PARTS)}")
    return [name for name in PARTS if name in wanted]


def run(request: Request, cases: str | None = None) -> Report:
    """Run the chosen parts: on 2 cores about an hour with the default model, half of it the largest windows; `quick`
    takes about a minute."""
    names = chosen(cases)
    size = QUICK if request.quick else FULL
    size = replace(size, repeats=request.repeats or size.repeats)
    rows: list[Row] = []
    with own_home() as home:
        with open_loom(settings_for(request, context=size.facts_window), home) as loom:
            setup = setup_of(loom, {"repeats": size.repeats, "parts": names})
            train_context = loom.engine.train_context
        tell = request.teller("explore", sum(PARTS[name].num_steps(size, train_context) for name in names))
        stage = Stage(request, size, home, tell)
        for name in names:
            tell.say(name)
            rows += PARTS[name].rows(stage)
    setup |= request.closing("explore", cases=cases)
    return Explored("explore", setup, tuple(rows), notes=_notes(names))


def _notes(names: Sequence[str]) -> tuple[str, ...]:
    left_out = [name for name in PARTS if name not in names]
    first = (f"left out of this run: {', '.join(left_out)}.",) if left_out else ()
    return (*first, *(PARTS[name].note for name in names))

"""`kvloom demo`: runs the demo, or one of the demonstrations, in a home of its own. Knows reports, not their steps."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvloom.cli import amounts
from kvloom.cli.demos import DemoName, Stage, find
from kvloom.cli.options import LOOM, Options, takes
from kvloom.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kvloom.cli.demo import DemoReport, DemoRow
    from kvloom.cli.output import ProgressView

MIN_FILES = 2
"""One file cannot be reordered."""

CONTEXT_TOKENS = 8192


@takes(LOOM)
def demo(
    options: Options,
    name: Annotated[
        DemoName | None, typer.Argument(metavar="window|truncate|slide|kv", help="One demonstration, not the demo.")
    ] = None,
    file: Annotated[
        list[Path] | None, typer.Option("--file", "-f", metavar="FILE", help="Use these files; may be repeated.")
    ] = None,
) -> None:
    """Show what kvloom does on real files, measured.

    It loads files as chunks, chats, switches one off and on, reorders, restarts, and shows what was reused and what a
    full prefill costs. It uses a temporary home unless --home is given, and files of Python's standard library unless
    --file is.

    By name, a picture of one thing: window (what is seen of a text when the window is full), truncate (what each cut
    keeps), slide (windows that overlap over a text), kv (what is computed, reused, rotated, switched off).
    """
    if name is not None and file:
        raise UsageError(f"the demonstration {name.value} brings its own text; leave out --file, or the name")
    if name is not None and options.home is not None:
        raise UsageError(f"the demonstration {name.value} uses a temporary home; leave out --home, or the name")
    with contextlib.ExitStack() as stack:
        if options.home is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="kvloom-demo-"))
            options = replace(options, home=Path(folder))
        if name is None:
            _main_job(options, file)
        else:
            _demonstration(options, name)


def _main_job(options: Options, file: list[Path] | None) -> None:
    from kvloom.cli.demo import Demo, sample_files

    files = file or sample_files()
    if len(files) < MIN_FILES:
        raise UsageError(f"the demo reorders files and needs {MIN_FILES} at least, got {len(files)}")
    options = replace(options, context=options.context or CONTEXT_TOKENS)
    with options.output.progress() as progress:
        report = Demo(lambda: options.open_loom(progress), files, _teller(options, progress), progress).run()
    options.output.emit(report, lambda: report_view(report))


def _demonstration(options: Options, name: DemoName) -> None:
    chosen = find(name)
    options = replace(options, context=options.context or chosen.context)
    with options.output.progress() as progress, options.open_loom(progress) as loom:
        report = chosen.run(Stage(loom, _teller(options, progress), progress))
    options.output.emit(report, lambda: chosen.view(report))


def _teller(options: Options, progress: ProgressView) -> Callable[[str], None]:
    output = options.output

    def tell(text: str) -> None:
        progress.clear()
        output.note(text)

    return tell


def report_view(report: DemoReport) -> RenderableType:
    """The table, and in words what it shows."""
    from rich import box
    from rich.console import Group
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("step")
    for title in ("prompt", "reused", "loaded", "rotated", "computed", "first token", "full prefill", "faster"):
        table.add_column(title, justify="right")
    table.add_column("KL", justify="right")
    table.add_column("top-1", justify="right")
    for row in report.rows:
        table.add_row(*_cells(row))
    same = "identical to the bit" if report.is_restart_identical else "its rows lie in other cells now"
    words = [
        f"\n{report.model}, {report.fidelity.value}: {len(report.files)} files, "
        f"{amounts.tokens(report.num_file_tokens)} tokens, their KV computed once in {amounts.seconds(report.load_s)}; "
        f"{amounts.seconds(report.seconds)} in all",
        "prompt = reused (on the device) + loaded (from RAM or disk; rotated: to another place) + computed",
        "full prefill: the exact way to the same first token, measured in this run, and the tokens it computed",
        "KL and top-1: next-token distributions against that prefill, over several questions",
        f"restart: KL of the next token after it against before it {report.restart_kl:.1e} ({same})",
    ]
    return Group(table, "\n".join(words))


def _cells(row: DemoRow) -> list[str]:
    prefill = "–"
    if row.prefill_s is not None:
        prefill = f"{amounts.seconds(row.prefill_s)} ({amounts.tokens(row.prefill_computed_tokens or 0)})"
    counts = (row.prompt_tokens, row.reused_tokens, row.loaded_tokens, row.rotated_tokens, row.computed_tokens)
    return [
        row.step,
        *(amounts.tokens(count) for count in counts),
        "–" if row.ttft_s is None else amounts.seconds(row.ttft_s),
        prefill,
        "–" if row.speedup is None else f"{row.speedup:.0f}×",
        "–" if row.kl is None else f"{row.kl:.4f}",
        "–" if row.top1 is None else f"{row.top1:.0%}",
    ]


def register(app: typer.Typer) -> None:
    app.command("demo")(demo)

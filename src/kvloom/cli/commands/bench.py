"""`kvloom bench …`: runs one of the benchmarks, shows its report, draws it. Knows no benchmark's inside."""

from __future__ import annotations

import importlib
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from kvloom.cli.options import JSON_ONLY, Options, takes

BENCH = ("model", "json")

QuickOption = Annotated[bool, typer.Option("--quick", help="Small and soon done: shows that it runs, proves nothing.")]
ThreadsOption = Annotated[int | None, typer.Option("--threads", min=1, metavar="N", help="Threads of both sides.")]
RepeatsOption = Annotated[int | None, typer.Option("--repeats", min=1, metavar="N", help="Measurements of each case.")]
PlotOption = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE", dir_okay=False, help="Draw it, too: FILE.svg or FILE.png.")
]
CasesOption = Annotated[
    str | None,
    typer.Option("--cases", metavar="A,B", help="Measure only these cases; the report says what is left out."),
]
OnlyFidelityOption = Annotated[
    str | None, typer.Option("--fidelity", metavar="A,B", help="Measure only these of splice, blend and exact.")
]

app = typer.Typer(
    help="Benchmarks, side by side with llama.cpp's own server.", no_args_is_help=True, rich_markup_mode=None
)


@app.command("switch")
@takes(BENCH)
def switch(
    options: Options,
    quick: QuickOption = False,
    threads: ThreadsOption = None,
    repeats: RepeatsOption = None,
    plot: PlotOption = None,
    cases: CasesOption = None,
    fidelity: OnlyFidelityOption = None,
) -> None:
    """Switch, reorder and insert documents.

    Time to first token against llama.cpp's own server.
    """
    request = {"quick": quick, "threads": threads, "repeats": repeats}
    run_bench("switch", options, request, plot, cases=cases, fidelity=fidelity)


@app.command("room")
@takes(BENCH)
def room(
    options: Options,
    quick: QuickOption = False,
    threads: ThreadsOption = None,
    repeats: RepeatsOption = None,
    plot: PlotOption = None,
) -> None:
    """Restore, compress, resize, and remember.

    Against a full prefill of the same tokens; planted facts by policy.
    """
    run_bench("room", options, {"quick": quick, "threads": threads, "repeats": repeats}, plot)


@app.command("restart")
@takes(BENCH)
def restart(
    options: Options,
    quick: QuickOption = False,
    threads: ThreadsOption = None,
    repeats: RepeatsOption = None,
    plot: PlotOption = None,
) -> None:
    """Start a new process with stored KV.

    Time to first token against a cold prefill and llama.cpp's slot restore.
    """
    run_bench("restart", options, {"quick": quick, "threads": threads, "repeats": repeats}, plot)


@app.command("fidelity")
@takes(BENCH)
def fidelity(
    options: Options,
    quick: QuickOption = False,
    threads: ThreadsOption = None,
    repeats: RepeatsOption = None,
    plot: PlotOption = None,
) -> None:
    """Measure how far outputs move from a full prefill.

    KL, top-1 and NLL over the share that is recomputed, with the re-batching floor beside them.
    """
    run_bench("fidelity", options, {"quick": quick, "threads": threads, "repeats": repeats}, plot)


@app.command("decode")
@takes(BENCH)
def decode(
    options: Options,
    quick: QuickOption = False,
    threads: ThreadsOption = None,
    repeats: RepeatsOption = None,
    plot: PlotOption = None,
) -> None:
    """Measure tokens per second of a long reply.

    Against llama.cpp's server and the bare low-level loop.
    """
    run_bench("decode", options, {"quick": quick, "threads": threads, "repeats": repeats}, plot)


@app.command("codecs")
@takes(BENCH)
def codecs(
    options: Options,
    quick: QuickOption = False,
    threads: ThreadsOption = None,
    repeats: RepeatsOption = None,
    plot: PlotOption = None,
) -> None:
    """Measure how stored KV is packed on disk.

    Size, time to write and to read, KL and top-1 of each coding, through the disk tier.
    """
    run_bench("codecs", options, {"quick": quick, "threads": threads, "repeats": repeats}, plot)


@app.command("plot")
@takes(JSON_ONLY)
def plot_stored(
    options: Options,
    result: Annotated[Path, typer.Argument(metavar="RESULT.json", help="What a benchmark printed with --json.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", dir_okay=False, help="FILE.svg or FILE.png.")],
) -> None:
    """Draw a stored report."""
    pictures = importlib.import_module("kvloom.bench.plot")
    document = pictures.read_report(result)
    pictures.plot(document, out)
    options.output.emit({"bench": document["bench"], "file": str(out)}, f"drawn: {out}")


def run_bench(name: str, options: Options, request: dict[str, Any], plot: Path | None, **more: str | None) -> None:
    """Runs `kvloom.bench.NAME.run`, shows its report and draws it into `plot`.

    A bar shows how far it is where someone watches; else every step is a line on standard error, for a log.
    """
    # By name: a benchmark stands above the edges, and needs llama.cpp's server, an extra that may not be installed.
    pictures = importlib.import_module("kvloom.bench.plot")
    if plot is not None:
        pictures.require_plot(plot)
    module = importlib.import_module(f"kvloom.bench.{name}")
    setting = importlib.import_module("kvloom.bench.setting")
    is_watched = sys.stderr.isatty() and not options.json
    with options.output.progress() if is_watched else nullcontext() as progress:
        report = module.run(setting.Request(model=options.model, progress=progress, **request), **more)
    report.show(as_json=options.json)
    if plot is not None:
        pictures.plot(report.document(), plot)
        options.output.note(f"drawn: {plot}")

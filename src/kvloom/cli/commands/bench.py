"""`kvloom bench …`: runs one of the benchmarks and shows its report. Knows no benchmark's inside."""

from __future__ import annotations

import importlib
from typing import Annotated

import typer

from kvloom.cli.options import Options, takes

BENCH = ("model", "json")

QuickOption = Annotated[bool, typer.Option("--quick", help="Small and soon done: shows that it runs, proves nothing.")]
ThreadsOption = Annotated[int | None, typer.Option("--threads", min=1, metavar="N", help="Threads of both sides.")]
RepeatsOption = Annotated[int | None, typer.Option("--repeats", min=1, metavar="N", help="Measurements of each case.")]

app = typer.Typer(
    help="Benchmarks, side by side with llama.cpp's own server.", no_args_is_help=True, rich_markup_mode=None
)


@app.command("switch")
@takes(BENCH)
def switch(
    options: Options, quick: QuickOption = False, threads: ThreadsOption = None, repeats: RepeatsOption = None
) -> None:
    """Switch, reorder and insert documents.

    Time to first token against llama.cpp's own server.
    """
    run_bench("switch", options, quick, threads, repeats)


@app.command("restart")
@takes(BENCH)
def restart(
    options: Options, quick: QuickOption = False, threads: ThreadsOption = None, repeats: RepeatsOption = None
) -> None:
    """Start a new process with stored KV.

    Time to first token against a cold prefill and llama.cpp's slot restore.
    """
    run_bench("restart", options, quick, threads, repeats)


@app.command("fidelity")
@takes(BENCH)
def fidelity(
    options: Options, quick: QuickOption = False, threads: ThreadsOption = None, repeats: RepeatsOption = None
) -> None:
    """Measure how far outputs move from a full prefill.

    KL, top-1 and NLL over the share that is recomputed, with the re-batching floor beside them.
    """
    run_bench("fidelity", options, quick, threads, repeats)


@app.command("decode")
@takes(BENCH)
def decode(
    options: Options, quick: QuickOption = False, threads: ThreadsOption = None, repeats: RepeatsOption = None
) -> None:
    """Measure tokens per second of a long reply.

    Against llama.cpp's server and the bare low-level loop.
    """
    run_bench("decode", options, quick, threads, repeats)


def run_bench(name: str, options: Options, quick: bool, threads: int | None, repeats: int | None) -> None:
    """Runs `kvloom.bench.NAME.run` and shows its report."""
    # By name: a benchmark stands above the edges, and needs llama.cpp's server, an extra that may not be installed.
    module = importlib.import_module(f"kvloom.bench.{name}")
    with options.output.progress() as progress:
        report = module.run(options.model, quick, progress, threads=threads, repeats=repeats)
    report.show(as_json=options.json)

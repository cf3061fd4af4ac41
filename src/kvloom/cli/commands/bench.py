"""`kvloom bench …`: runs one of the benchmarks, shows its report, draws it. Knows no benchmark's inside."""

from __future__ import annotations

import importlib
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from kvloom.cli.options import JSON_ONLY, Options, num_tokens, takes

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


@dataclass(frozen=True)
class BenchOptions(Options):
    """What every benchmark can be told."""

    quick: QuickOption = False
    threads: ThreadsOption = None
    repeats: RepeatsOption = None
    plot: PlotOption = None


BENCH = ("quick", "threads", "repeats", "plot", "model", "json")

app = typer.Typer(
    help="Benchmarks, side by side with llama.cpp's own server.", no_args_is_help=True, rich_markup_mode=None
)


@app.command("switch")
@takes(BENCH, BenchOptions)
def switch(options: BenchOptions, cases: CasesOption = None, fidelity: OnlyFidelityOption = None) -> None:
    """Switch, reorder and insert documents.

    Time to first token against llama.cpp's own server.
    """
    run_bench("switch", options, cases=cases, fidelity=fidelity)


@app.command("room")
@takes(BENCH, BenchOptions)
def room(
    options: BenchOptions,
    cases: CasesOption = None,
    facts: Annotated[
        int | None, typer.Option("--facts", min=1, metavar="N", help="endless: facts that are planted.")
    ] = None,
    turns: Annotated[
        int | None, typer.Option("--turns", min=1, metavar="N", help="endless: turns of the conversation.")
    ] = None,
    window: Annotated[
        int | None,
        typer.Option("--window", metavar="TOKENS", parser=num_tokens(1), help="endless: the window it outgrows."),
    ] = None,
) -> None:
    """Restore, compress, resize, and remember.

    Against a full prefill of the same tokens; planted facts by policy. The case endless, a conversation of many
    windows, is only run where --cases names it.
    """
    run_bench("room", options, cases=cases, facts=facts, turns=turns, window=window)


@app.command("snapshots")
@takes(BENCH, BenchOptions)
def snapshots(options: BenchOptions, cases: CasesOption = None) -> None:
    """Save and load a snapshot at 1k, 8k and 32k tokens.

    Here and in a fresh loom over the same home, to the next token, against computing it.
    """
    run_bench("snapshots", options, cases=cases)


@app.command("restart")
@takes(BENCH, BenchOptions)
def restart(options: BenchOptions) -> None:
    """Start a new process with stored KV.

    Time to first token against a cold prefill and llama.cpp's slot restore.
    """
    run_bench("restart", options)


@app.command("fidelity")
@takes(BENCH, BenchOptions)
def fidelity(options: BenchOptions) -> None:
    """Measure how far outputs move from a full prefill.

    KL, top-1 and NLL over the share that is recomputed, with the re-batching floor beside them.
    """
    run_bench("fidelity", options)


@app.command("decode")
@takes(BENCH, BenchOptions)
def decode(options: BenchOptions) -> None:
    """Measure tokens per second of a long reply.

    Against llama.cpp's server and the bare low-level loop.
    """
    run_bench("decode", options)


@app.command("serve")
@takes(BENCH, BenchOptions)
def serve(
    options: BenchOptions,
    server: Annotated[
        str | None,
        typer.Option("--server", metavar="FILE", help="A llama-server that was built like our llama.cpp, to run too."),
    ] = None,
    cases: CasesOption = None,
) -> None:
    """Serve 8 clients at once.

    Tokens per second, first token, gaps, documents in common; against llama.cpp's own server.
    """
    run_bench("serve", options, server=server, cases=cases)


@app.command("codecs")
@takes(BENCH, BenchOptions)
def codecs(options: BenchOptions) -> None:
    """Measure how stored KV is packed on disk.

    Size, time to write and to read, KL and top-1 of each coding, through the disk tier.
    """
    run_bench("codecs", options)


@app.command("retrieval")
@takes(BENCH, BenchOptions)
def retrieval(options: BenchOptions) -> None:
    """Search a library: recall at k.

    Questions over real texts whose places are known; then the time of a search, and of a purge, in a library of 100,000
    passages of random words, which takes 500 MB of the temporary folder; no model. With --model also by the vectors of
    its token table.
    """
    run_bench("retrieval", options)


@app.command("ask")
@takes(BENCH, BenchOptions)
def ask(
    options: BenchOptions,
    depth: Annotated[
        int | None, typer.Option("--depth", min=1, metavar="N", help="Passages given with each question.")
    ] = None,
) -> None:
    """Ask a library about long texts.

    The same passages as stored KV and pasted into llama.cpp's server: first token, answers, disk; --repeats questions.
    """
    run_bench("ask", options, depth=depth)


@app.command("explore")
@takes(BENCH, BenchOptions)
def explore(options: BenchOptions, cases: CasesOption = None) -> None:
    """Try out context sizes, strategies, windows and retrieval depths.

    Memory, speed and what is still answered, in tables; --cases takes some of context, strategies, windows and depth.
    """
    run_bench("explore", options, cases=cases)


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


def run_bench(name: str, options: BenchOptions, **more: str | int | None) -> None:
    """Runs `kvloom.bench.NAME.run`, shows its report and draws it where that was asked for.

    A bar shows how far it is where someone watches; else every step is a line on standard error, for a log.
    """
    # By name: a benchmark stands above the edges, and needs llama.cpp's server, an extra that may not be installed.
    pictures = importlib.import_module("kvloom.bench.plot")
    if options.plot is not None:
        pictures.require_plot(options.plot)
    module = importlib.import_module(f"kvloom.bench.{name}")
    setting = importlib.import_module("kvloom.bench.setting")
    is_watched = sys.stderr.isatty() and not options.json
    with options.output.progress() if is_watched else nullcontext() as progress:
        request = setting.Request(options.model, options.quick, options.threads, options.repeats, progress)
        report = module.run(request, **more)
    report.show(as_json=options.json)
    if options.plot is not None:
        pictures.plot(report.document(), options.plot)
        options.output.note(f"drawn: {options.plot}")

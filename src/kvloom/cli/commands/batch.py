"""`kvloom batch`: answers a file of requests, and goes on where it was interrupted. Knows the batch, no request."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvloom.cli import amounts
from kvloom.cli.options import Options, takes
from kvloom.errors import CancelledError

if TYPE_CHECKING:
    from kvloom.server.batch import BatchSummary

BATCH = ("model", "context", "home", "kv_type", "json")
"""The shared options of this command: a request names its own fidelity."""


@takes(BATCH)
def batch(
    options: Options,
    source: Annotated[Path, typer.Argument(metavar="IN.jsonl", help="Requests, in OpenAI's batch format.")],
    target: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="Replies; what stands there is not asked again.")],
    models: Annotated[
        Path | None, typer.Option("--models", metavar="FILE", help="Registry file of the models (YAML or JSON).")
    ] = None,
    slots: Annotated[
        int | None, typer.Option("--slots", metavar="N", min=1, max=200, help="How many replies run at once.")
    ] = None,
    reuse: Annotated[
        str | None,
        typer.Option(
            "--reuse", metavar="MODE", help="How KV of text known as a chunk is placed: off, exact, blend or splice."
        ),
    ] = None,
) -> None:
    """Answer a file of requests, without a server.

    What prompts have in common is computed once. Interrupted or killed, it goes on when it is run again: a reply that
    was written stays, and none is written twice.
    """
    from kvloom.config import create_home, load_settings
    from kvloom.server.batch import run_batch
    from kvloom.session.values import Progress

    server = {"slots": slots, "reuse": reuse, "models": None if models is None else str(models)}
    given = {"model": options.model, "context": options.context, "kv_type": options.kv_type, "server": server}
    settings = load_settings(given, home=options.home)
    create_home(options.paths)
    output, num_done = options.output, 0
    with output.progress() as progress:

        def on_done(done: int, total: int) -> None:
            nonlocal num_done
            num_done = done
            progress(Progress("answering", done, total, "requests"))

        try:
            summary = run_batch(settings, source, target, options.home, on_done)
        except KeyboardInterrupt as exc:
            progress.clear()
            raise CancelledError(f"{num_done} requests are answered; run it again to go on") from exc
    data = {"input": str(source), "output": str(target), **asdict(summary)}
    output.emit(data, summary_line(summary, target))


def summary_line(told: BatchSummary, target: Path) -> str:
    before = f" ({told.num_done_before} stood there before)" if told.num_done_before else ""
    failed = f", {told.num_failed} of them errors" if told.num_failed else ""
    cached = amounts.tokens(told.cached_tokens)
    return (
        f"{told.num_done} requests answered in {amounts.seconds(told.seconds)}{failed}{before}:"
        f" {amounts.tokens(told.prompt_tokens)} prompt tokens, {cached} of them not computed,"
        f" {amounts.tokens(told.completion_tokens)} in replies -> {amounts.printable(str(target))}"
    )


def register(app: typer.Typer) -> None:
    app.command("batch")(batch)

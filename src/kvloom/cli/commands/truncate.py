"""`kvloom truncate`: one text cut to a number of the model's tokens. Knows the façade only."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from kvloom.cli import amounts
from kvloom.cli.long_text import read_each, the_only_one
from kvloom.cli.options import LOOM, Options, num_tokens, takes


class End(Enum):
    """What `--keep` takes; `kvloom.Keep` has the same values."""

    HEAD = "head"
    TAIL = "tail"
    BOTH = "both"


@dataclass(frozen=True)
class Kept:
    """Characters [start, stop) of the text that stay."""

    start: int
    stop: int


@takes(LOOM)
def truncate(
    options: Options,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A text, Markdown, source, HTML or PDF file; - is standard input.")
    ],
    tokens: Annotated[
        int, typer.Option("--tokens", "-n", metavar="N", parser=num_tokens(), help="What the result may take.")
    ],
    keep: Annotated[End, typer.Option("--keep", help="What stays: the head, the tail, or both ends.")] = End.HEAD,
    marker: Annotated[
        str | None,
        typer.Option("--marker", metavar="TEXT", help="Stands for what is left out, {n} for its tokens; may be empty."),
    ] = None,
) -> None:
    """Cut a text to a number of tokens, as the model counts them.

    Never inside a character, and never more than N tokens, the marker among them.
    """
    import kvloom

    read = the_only_one(read_each([file], options.read_limits()), file)
    marks = {} if marker is None else {"marker": marker}
    output = options.output
    read.tell(output)
    with output.progress() as progress, options.open_loom(progress) as loom:
        result = kvloom.truncate(read.text, tokens, loom.count, keep.value, **marks)
        model = loom.status().model
    if not options.json:
        _write(result.text)
        if result.is_cut:
            left_out = amounts.tokens(result.num_removed_tokens)
            output.note(f"{amounts.tokens(result.num_tokens)} tokens; {left_out} left out")
        return
    data = {
        "model": model,
        "file": str(file),
        "text": result.text,
        "num_tokens": result.num_tokens,
        "num_removed_tokens": result.num_removed_tokens,
        "kept": [Kept(start, stop) for start, stop in result.kept],
    }
    output.emit(data, "")


def _write(text: str) -> None:
    """The text as it is, for whoever reads the output; in a terminal without what could steer it."""
    if sys.stdout.isatty():
        print(amounts.printable(text))  # noqa: T201 - the result itself
        return
    sys.stdout.write(text)
    sys.stdout.flush()


def register(app: typer.Typer) -> None:
    app.command("truncate")(truncate)

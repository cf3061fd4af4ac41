"""`kvloom window`: the same prompt to every window of a text. Knows the façade only."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvloom.cli import amounts
from kvloom.cli.interrupts import interruptible
from kvloom.cli.long_text import ToldProgress, read_one
from kvloom.cli.options import LOOM, Options, file_path, num_tokens, takes
from kvloom.errors import CancelledError

if TYPE_CHECKING:
    from kvloom.session.long_texts import WindowAnswers


class Combining(Enum):
    """What `--combine` takes."""

    LIST = "list"
    ANSWER = "answer"


def share(given: str | float) -> float:
    """What reads an option that is a share of a window: 0.5 or 50%."""
    text = str(given)
    number, is_percent = text.removesuffix("%"), text.endswith("%")
    try:
        return float(number) / (100 if is_percent else 1)
    except ValueError as exc:
        raise typer.BadParameter(f"expected a share such as 0.5 or 50%, got {text!r}") from exc


@takes(LOOM)
def window(
    options: Options,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", parser=file_path, help="A text, Markdown, source, HTML or PDF file; - is standard input."
        ),
    ],
    prompt: Annotated[str, typer.Option("--prompt", "-p", metavar="TEXT", help="What is asked of every window.")],
    size: Annotated[
        int | None,
        typer.Option(
            "--size", "-n", metavar="N", parser=num_tokens(1), help="Tokens of a window; as many as fit, 2048 at most."
        ),
    ] = None,
    overlap: Annotated[
        float,
        typer.Option("--overlap", metavar="SHARE", parser=share, help="Share of a window in the next one: 0 to 0.75."),
    ] = 0.0,
    combine: Annotated[
        Combining, typer.Option("--combine", help="The replies as a list, or one answer that the model makes of them.")
    ] = Combining.LIST,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", metavar="N", parser=num_tokens(1), help="Longest reply, in tokens (256)."),
    ] = None,
) -> None:
    """Ask the same of every window of a text that is longer than the context.

    Every token stands in some window. A reply that was made is kept: interrupted or killed, the pass goes on when it is
    run again.
    """
    import kvloom

    _check_overlap(overlap)
    text = read_one(file, options.read_limits())
    output = options.output
    text.tell(output)
    with output.progress() as progress, options.open_loom(progress) as loom, interruptible() as is_cancelled:
        seen = ToldProgress(progress, "windows")
        try:
            found = kvloom.ask_windows(
                text.text, prompt, loom, size=size, overlap=overlap, combine=combine.value, max_tokens=max_tokens,
                progress=seen, is_cancelled=is_cancelled,
            )  # fmt: skip
        except CancelledError as exc:
            raise CancelledError(seen.left_words()) from exc
        model = loom.status().model
    output.emit(_document(found, model, text.name), found.text and amounts.printable(found.text))
    output.note(_summary_line(found, max_tokens))


def _check_overlap(overlap: float) -> None:
    """Before a model is loaded. Raises UsageError."""
    from kvloom import windows

    windows("", 1, overlap, len)


def _document(found: WindowAnswers, model: str, name: str) -> dict[str, object]:
    return {
        "model": model,
        "file": name,
        "text": found.text,
        "size": found.size,
        "windows": [
            {
                "first_line": one.window.first_line,
                "last_line": one.window.last_line,
                "start": one.window.start,
                "stop": one.window.stop,
                "num_tokens": one.window.num_tokens,
                "text": one.text,
                "is_new": one.is_new,
                "is_cut_off": one.is_cut_off,
            }
            for one in found.replies
        ],
        "num_rounds": found.num_rounds,
        "num_asked": found.num_asked,
        "num_found": found.num_found,
    }


def _summary_line(found: WindowAnswers, max_tokens: int | None) -> str:
    known = f", {found.num_found} of the replies from before" if found.num_found else ""
    rounds = f", combined in {found.num_rounds} rounds" if found.num_rounds > 1 else ""
    plural = "" if len(found.replies) == 1 else "s"
    line = f"{len(found.replies)} window{plural} of {amounts.tokens(found.size)} tokens at most{rounds}{known}"
    if not found.num_cut_off:
        return line
    from kvloom.session.long_texts import MAX_REPLY_TOKENS

    limit = amounts.tokens(MAX_REPLY_TOKENS if max_tokens is None else max_tokens)
    return f"{line}; {found.num_cut_off} of {len(found.replies)} replies ended at {limit} tokens: --max-tokens"


def register(app: typer.Typer) -> None:
    app.command("window")(window)

"""`kvloom ask` and `kvloom count`: one question about files, and exact token counts. Know the façade only."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvloom.cli import amounts
from kvloom.cli.options import LOOM, TALK, Options, num_tokens, takes
from kvloom.errors import ContentError, UsageError

if TYPE_CHECKING:
    from kvloom.cli.screen import Screen
    from kvloom.session.loom import Loom
    from kvloom.session.session import Session
    from kvloom.session.values import Chunk, Reply

STANDARD_INPUT = "-"


@takes(TALK)
def ask(
    options: Options,
    question: Annotated[str, typer.Argument(help="The question; - reads it from standard input.")],
    file: Annotated[
        list[Path] | None, typer.Option("--file", "-f", metavar="FILE", help="A file to ask about; may be repeated.")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="System prompt.")] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", metavar="N", parser=num_tokens(1), help="Longest reply, in tokens."),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", min=0, metavar="T", help="0 always takes the likeliest token.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, metavar="N", help="Same seed, same reply.")] = None,
) -> None:
    """Ask one question about files.

    The KV of the files is stored: the next question about them starts at once.
    """
    from kvloom.cli.screen import JsonScreen, TextScreen

    text = sys.stdin.read() if question == STANDARD_INPUT else question
    if not text.strip():
        raise UsageError("the question is empty; give it as an argument, or on standard input with -")
    output = options.output
    screen: Screen = JsonScreen() if options.json else TextScreen(output, echoes=False)
    with output.progress() as progress, options.open_loom(progress) as loom:
        session = loom.session(system=system)
        try:
            chunks = [session.load(path) for path in file or []]
            reply = _stream(session, text, screen, max_tokens=max_tokens, temperature=temperature, seed=seed)
        finally:
            # One question is no conversation: what stays is the KV of the files.
            loom.delete_session(session.id)
        if options.json:
            output.emit(_document(reply, chunks), "")


def _stream(session: Session, text: str, screen: Screen, **sampling: float | None) -> Reply:
    from kvloom.cli.chat import cancel_on_interrupt

    reply: Reply | None = None
    try:
        with (
            screen.progress() as progress,
            cancel_on_interrupt(session),
            session.stream(text, progress=progress, **sampling) as stream,  # type: ignore[arg-type]
        ):
            for delta in stream:
                progress.clear()
                screen.delta(delta)
            reply = stream.reply
    finally:
        screen.reply_ended(reply)
    return reply


def _document(reply: Reply, chunks: list[Chunk]) -> dict[str, object]:
    return {
        "text": reply.text,
        "reasoning": reply.reasoning,
        "finish_reason": reply.finish_reason,
        "usage": reply.usage,
        "notices": reply.notices,
        "chunks": chunks,
    }


@takes(LOOM)
def count(
    options: Options,
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Text files; - is standard input.")],
) -> None:
    """Count the tokens of files, as the model sees them.

    Exactly, or marked with ~ where the model is behind an endpoint that counts nothing beforehand.
    """
    output = options.output
    with output.progress() as progress, options.open_loom(progress) as loom:
        rows = [_counted(loom, path) for path in files]
        model = loom.status().model
    total = sum(row.num_tokens for row in rows)
    is_estimate = any(row.is_estimate for row in rows)
    lines = [
        f"{amounts.tokens(row.num_tokens, is_estimate=row.is_estimate):>12}  {amounts.printable(row.file)}"
        for row in rows
    ]
    if len(rows) > 1:
        lines.append(f"{amounts.tokens(total, is_estimate=is_estimate):>12}  total")
    data = {"model": model, "files": rows, "num_tokens": total, "is_estimate": is_estimate}
    output.emit(data, "\n".join(lines))


@dataclass(frozen=True)
class Counted:
    """One file's count; `is_estimate` where the model is behind an endpoint that counts nothing beforehand."""

    file: str
    num_tokens: int
    num_characters: int
    is_estimate: bool


def _counted(loom: Loom, path: Path) -> Counted:
    text = sys.stdin.read() if str(path) == STANDARD_INPUT else read_text(path)
    count = loom.counted(text)
    return Counted(str(path), count.num_tokens, len(text), count.is_estimate)


def read_text(path: Path) -> str:
    """A file's text. Raises ContentError with the reason and the place."""
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as exc:
        raise ContentError(f"{path} is not UTF-8 text: byte {exc.start} cannot be read; convert it first") from exc
    except OSError as exc:
        raise ContentError(f"{path} cannot be read: {exc.strerror or exc}") from exc


def register(app: typer.Typer) -> None:
    app.command("ask")(ask)
    app.command("count")(count)

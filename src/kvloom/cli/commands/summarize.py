"""`kvloom summarize`: documents of any length in so many words. Knows the façade only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvloom.cli import amounts
from kvloom.cli.interrupts import interruptible
from kvloom.cli.long_text import ReadTexts, ToldProgress, read_all
from kvloom.cli.options import LOOM, Options, file_path, takes
from kvloom.errors import CancelledError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.tree import Tree

    from kvloom.session.long_texts import Node, TreeSummary


@takes(LOOM)
def summarize(
    options: Options,
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            parser=file_path,
            help="Text, Markdown, source, HTML or PDF files, or folders; - is standard input.",
        ),
    ],
    words: Annotated[
        int, typer.Option("--words", "-w", metavar="N", min=10, max=100_000, help="The most words of the summary.")
    ] = 200,
    tree: Annotated[bool, typer.Option("--tree", help="Show the summaries that it was made of, too.")] = False,
) -> None:
    """Sum up documents of any length: notes of every part, notes of notes, and one summary.

    Every note is kept by what it was made of: interrupted or killed, it goes on when it is run again, and after an edit
    only what changed is computed.
    """
    import kvloom

    found = read_all(files, options.read_limits())
    output = options.output
    found.tell(output)
    with output.progress() as progress, options.open_loom(progress) as loom, interruptible() as is_cancelled:
        seen = ToldProgress(progress, "parts")
        try:
            summary = kvloom.summarize(found.texts, loom, words=words, progress=seen, is_cancelled=is_cancelled)
        except CancelledError as exc:
            raise CancelledError(seen.left_words()) from exc
        model = loom.status().model
    output.emit(_document(summary, found, model, tree), lambda: _view(summary, tree))
    output.note(_summary_line(summary))


def _document(summary: TreeSummary, found: ReadTexts, model: str, with_tree: bool) -> dict[str, object]:
    data: dict[str, object] = {
        "model": model,
        "files": [text.name for text in found.texts],
        "skipped": found.skipped,
        "text": summary.text,
        "num_words": summary.num_words,
        "is_fallback": summary.is_fallback,
        "num_asked": summary.num_asked,
        "num_found": summary.num_found,
    }
    return {**data, "tree": summary.root} if with_tree else data


def _view(summary: TreeSummary, with_tree: bool) -> RenderableType:
    text = amounts.printable(summary.text)
    if not with_tree:
        return text
    from rich.console import Group
    from rich.text import Text

    return Group(tree_view(summary.root), Text(), Text(text))


def tree_view(node: Node) -> Tree:
    """The nodes below the summary, each with its place and its notes."""
    from rich.tree import Tree

    branch = Tree(_label(node, "summary"), guide_style="dim")
    for child in node.children:
        _grow(branch, child)
    return branch


def _grow(branch: Tree, node: Node) -> None:
    from rich.text import Text

    below = branch.add(Text.assemble(_label(node, "notes"), "\n", amounts.printable(node.text)))
    for child in node.children:
        _grow(below, child)


def _label(node: Node, what: str) -> str:
    place = f"{node.name}, lines {node.first_line}-{node.last_line}" if node.name else "all"
    marks = ("" if node.is_new else ", from before") + (", first sentences stand in" if node.is_fallback else "")
    return amounts.printable(f"{place}: {what} of {amounts.tokens(node.num_tokens)} tokens{marks}")


def _summary_line(summary: TreeSummary) -> str:
    known = f", {summary.num_found} known from before" if summary.num_found else ""
    gaps = "; some notes were unusable or broke off, and first sentences stand in" * summary.is_fallback
    plural = "" if summary.num_asked == 1 else "s"
    return f"{summary.num_words} words; {summary.num_asked} prompt{plural} computed{known}{gaps}"


def register(app: typer.Typer) -> None:
    app.command("summarize")(summarize)

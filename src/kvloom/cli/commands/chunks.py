"""`kvloom chunks …`: the catalog and the stored KV entries of a home. Knows the façade only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvloom.cli import amounts
from kvloom.cli.options import LOOM, Options, takes
from kvloom.errors import PurgeIncompleteError, UsageError

if TYPE_CHECKING:
    from kvloom.session.loom import Loom
    from kvloom.session.values import ChunkDetail
    from kvloom.types import ChunkId

EXIT_DAMAGED = 1

app = typer.Typer(
    help="Add, list, check and remove chunks and their stored KV.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

RefArgument = Annotated[str, typer.Argument(metavar="ID", help="6 or more hex digits of a chunk's id, or its name.")]


@app.command("add")
@takes(LOOM)
def add(
    options: Options,
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Text files.")],
    name: Annotated[str | None, typer.Option("--name", help="Name of the chunk, where one file is given.")] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Replace what is not UTF-8 with U+FFFD; the chunk's id is of that text.")
    ] = False,
    warm: Annotated[bool, typer.Option("--warm", help="Compute and store the KV now.")] = False,
) -> None:
    """Add files as chunks.

    With --warm their KV is computed and stored now, not with the first question.
    """
    if name is not None and len(files) > 1:
        raise UsageError(f"--name names one chunk, got {len(files)} files")
    output = options.output
    with output.progress() as progress, options.open_loom(progress) as loom:
        chunks = [loom.load(path, name=name, repair=repair) for path in files]
        if warm:
            for chunk in chunks:
                output.note(f"computing {chunk.name}")
                with loom.session() as session:
                    session.activate(chunk.id)
                    session.warm(progress)
                loom.save(chunk.id)
                loom.delete_session(session.id)
    sizes = [amounts.tokens(chunk.num_tokens, is_estimate=chunk.is_estimate) for chunk in chunks]
    lines = [f"{amounts.short_id(c.id)} {c.name}: {size} tokens" for c, size in zip(chunks, sizes, strict=True)]
    output.emit({"chunks": chunks}, "\n".join(lines))


@app.command("ls")
@takes(LOOM)
def list_(
    options: Options,
    erased: Annotated[bool, typer.Option("--erased", help="Those that were erased, too.")] = False,
) -> None:
    """List the known chunks and where their KV is."""
    from kvloom.cli.panels import chunks_table

    output = options.output
    with output.progress() as progress, options.open_stored(progress) as loom:
        chunks = loom.chunks(erased=erased)
    output.emit({"chunks": chunks}, lambda: chunks_table(chunks))


@app.command("show")
@takes(LOOM)
def show(
    options: Options,
    ref: RefArgument,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set metadata; an empty value removes it. May be repeated."),
    ] = None,
) -> None:
    """Show everything about one chunk.

    KV entries, cells, token ids, places in sessions, metadata.
    """
    from kvloom.cli.panels import chunk_view

    pairs = [_pair(word) for word in set_ or []]
    output = options.output
    with output.progress() as progress, options.open_loom(progress) as loom:
        for key, value in pairs:
            loom.set_metadata(ref, key, value or None)
        detail = loom.chunk(ref)
    output.emit(_document(detail), lambda: chunk_view(detail))


def _document(detail: ChunkDetail) -> dict[str, object]:
    return {
        "chunk": detail.status,
        "num_references": detail.num_references,
        "num_cells": sum(part.num_cells for part in detail.parts),
        "parts": detail.parts,
        "places": detail.places,
        "metadata": detail.metadata,
    }


def _pair(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not equals or not key:
        raise UsageError(f"--set takes KEY=VALUE, got {word!r}")
    return key, value


@app.command("verify")
@takes(LOOM)
def verify(options: Options) -> None:
    """Read and check every stored entry.

    Exit code 1 where one is damaged; it is a miss then, and computed anew when it is needed.
    """
    output = options.output
    with output.progress() as progress, options.open_loom(progress) as loom:
        results = list(loom.verify(progress))
    damaged = [result for result in results if result.fault]
    size = sum(result.size_bytes for result in results)
    lines = [f"damaged: {result.entry} ({result.fault})" for result in damaged]
    lines.append(f"{len(results)} entries, {amounts.size(size)} read, {len(damaged)} damaged")
    output.emit({"num_entries": len(results), "bytes": size, "damaged": damaged}, "\n".join(lines))
    if damaged:
        raise typer.Exit(EXIT_DAMAGED)


@app.command("gc")
@takes(LOOM)
def gc(options: Options) -> None:
    """Remove stored entries that nothing needs."""
    output = options.output
    with output.progress() as progress, options.open_loom(progress) as loom:
        report = loom.gc()
    output.emit(report, f"removed {report.num_entries} entries, {amounts.size(report.freed_bytes)} freed")


@app.command("rm")
@takes(LOOM)
def remove(
    options: Options,
    refs: Annotated[list[str], typer.Argument(metavar="ID", help="Chunks, by id prefix or name.")],
    purge: Annotated[
        bool, typer.Option("--purge", help="Really gone: KV in every tier, text, and its part in every session.")
    ] = False,
) -> None:
    """Erase chunks; --purge leaves nothing of them.

    An erased chunk is out of the list and comes back with /restore ID in a chat.
    """
    output = options.output
    with output.progress() as progress, options.open_loom(progress) as loom:
        # Every name is resolved first: a wrong one among them removes nothing.
        ids = [loom.resolve(ref) for ref in refs]
        freed = _purged(loom, ids) if purge else 0
        if not purge:
            for chunk in ids:
                loom.erase(chunk)
    shown = ", ".join(amounts.short_id(chunk) for chunk in ids)
    view = f"gone for good: {shown}, {amounts.size(freed)} freed" if purge else f"erased: {shown}"
    output.emit({"ids": ids, "purged": purge, "bytes": freed}, view)


def _purged(loom: Loom, ids: Sequence[ChunkId]) -> int:
    """Bytes freed. All of them are purged; raises PurgeIncompleteError behind the last where a library may still hold
    the text of one."""
    freed, incomplete = 0, None
    for chunk in ids:
        try:
            freed += loom.purge(chunk)
        except PurgeIncompleteError as error:
            incomplete = error
    if incomplete is not None:
        raise incomplete
    return freed

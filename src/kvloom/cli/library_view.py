"""How libraries, sources of a reply, and what an update of a library did, are shown. Knows the façade's values only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvloom.cli import amounts
from kvloom.cli.registry import did_you_mean
from kvloom.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from kvloom.session.home_libraries import ListedLibrary
    from kvloom.session.libraries import DocumentInfo, Found, LibraryInfo, Updated
    from kvloom.session.values import Source

MAX_SKIPPED = 10
"""Files that were passed over, told one by one; of more only their number is."""


_PAGES = re.compile(r"pages? (\d+)(?:-(\d+))?")
"""The heading of a passage of a PDF."""


def place(passage: Source | Found) -> str:
    """Where a passage stands now, whatever name its chunk was given first: `book.md:120-180`, of a PDF its pages, as
    nobody can open the lines of the text that was taken out of it: `book.pdf p. 62`, `book.pdf pp. 62–63`."""
    pages = _PAGES.fullmatch(passage.heading) if passage.document.lower().endswith(".pdf") else None
    if pages is None:
        return f"{passage.document}:{passage.first_line}-{passage.last_line}"
    return f"{passage.document} " + (f"pp. {pages[1]}–{pages[2]}" if pages[2] else f"p. {pages[1]}")


def cited(passage: Source | Found) -> str:
    """Its place, of HTML with the heading that a browser finds: `book.html:12-30 "Bells"`."""
    is_html = passage.document.lower().endswith((".html", ".htm", ".xhtml"))
    return f'{place(passage)} "{passage.heading}"' if is_html and passage.heading else place(passage)


def sources_line(sources: Sequence[Source]) -> str:
    return "sources: " + ", ".join(f"{cited(source)} ({amounts.short_id(source.chunk)})" for source in sources)


def explanation(sources: Sequence[Source]) -> RenderableType:
    """What was chosen, why, and what it cost."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from kvloom.cli.panels import tier_text

    if not sources:
        return "no passage was chosen"
    table = Table(box=box.SIMPLE, pad_edge=False, show_edge=False)
    has_vectors = any(source.similarity is not None for source in sources)
    near = ("near",) if has_vectors else ()
    for title in ("passage", "score", "coverage", *near, "because of", "tokens", "KV was", "cost"):
        is_number = title in ("score", "coverage", "near", "tokens", "cost")
        # What names a passage is never cut; numbers are never broken.
        table.add_column(title, justify="right", no_wrap=True) if is_number else table.add_column(
            title, overflow="fold"
        )
    for source in sources:
        cost = "" if source.restore_s is None else amounts.seconds(source.restore_s)
        table.add_row(
            Text(amounts.printable(cited(source))),
            f"{source.score:.2f}",
            f"{source.coverage:.0%}",
            *([_cosine(source.similarity)] if has_vectors else []),
            Text(amounts.printable(" ".join(source.words))),
            amounts.tokens(source.num_tokens),
            tier_text(source.tier),
            cost,
        )
    return table


def _cosine(similarity: float | None) -> str:
    return "" if similarity is None else f"{similarity:.2f}"


def updated_lines(name: str, updated: Updated) -> list[str]:
    """What was read for a library, and what was not, and why; nothing where all was known."""
    lines = []
    moved = (
        (updated.num_added, "added"), (updated.num_changed, "changed"), (updated.num_removed, "gone"),
    )  # fmt: skip
    said = ", ".join(f"{count} {word}" for count, word in moved if count)
    if said:
        lines.append(f"{name}: {said}, {amounts.counted(updated.num_passages_added, 'passage')} indexed")
    lines += [f"{document}: {note}" for document, note in updated.notes]
    lines += [f"passed over: {skipped.name} {skipped.why}" for skipped in updated.skipped[:MAX_SKIPPED]]
    if len(updated.skipped) > MAX_SKIPPED:
        lines.append(f"… and {len(updated.skipped) - MAX_SKIPPED} more that were passed over")
    if not updated.is_complete:
        lines.append(f"{name} is not complete: adding the same files again goes on from here")
    return lines


def attached_line(library: ListedLibrary) -> str:
    """A library that questions are looked up in, or why none can be."""
    said = library.fault or f"{amounts.tokens(library.num_passages)} passages"
    return amounts.printable(f"{library.name}: {said}")


def known_library(name: str, names: Sequence[str]) -> str:
    """The name, where a library has it. Raises UsageError with the nearest names."""
    if name in names:
        return name
    there_are = f"there are {len(names)}" if len(names) != 1 else "there is one"
    rest = f"`kvloom libraries list` shows them: {there_are}" if names else "this home has none yet"
    raise UsageError(f"there is no library {amounts.printable(name)!r}{did_you_mean(name, names)}; {rest}")


def libraries_table(libraries: Sequence[ListedLibrary]) -> RenderableType:
    """The libraries of a home; what is wrong with some stands below."""
    from rich.console import Group
    from rich.text import Text

    if not libraries:
        return "no libraries yet: `kvloom libraries add NAME FILE` makes one, `kvloom ask FILE QUESTION` makes its own"
    table = _table(("name", "made by"), ("documents", "passages", "size"))
    for one in libraries:
        counts = ("?", "?") if one.fault else (amounts.tokens(one.num_documents), amounts.tokens(one.num_passages))
        made_by = "ask" if one.is_adhoc else "name"
        table.add_row(Text(amounts.printable(one.name)), made_by, *counts, amounts.size(one.size_bytes))
    faults = [Text(amounts.printable(f"{one.name}: {one.fault}")) for one in libraries if one.fault]
    return Group(table, *faults)


def library_view(info: LibraryInfo, documents: Sequence[DocumentInfo], roots: Sequence[str]) -> RenderableType:
    """One library and its documents."""
    from rich.console import Group
    from rich.text import Text

    made_by = ", made by ask" if info.is_adhoc else ""
    head = (
        f"{info.name}{made_by}: {amounts.counted(info.num_documents, 'document')}, "
        f"{amounts.counted(info.num_passages, 'passage')}, {amounts.size(info.size_bytes)}"
    )
    lines = [head, f"reads: {', '.join(roots)}" if roots else "reads no file: its documents were handed over"]
    table = _table(("document", "kind"), ("size", "passages"), ("note",))
    for one in documents:
        table.add_row(
            Text(amounts.printable(one.name)),
            one.kind.value,
            amounts.size(one.size_bytes),
            amounts.tokens(one.num_passages),
            Text(amounts.printable(one.note)),
        )
    return Group(Text(amounts.printable("\n".join(lines))), *([table] if documents else []))


def found_view(found: Sequence[Found], *, with_text: bool) -> RenderableType:
    """Passages that were found, the best first."""
    from rich.console import Group
    from rich.text import Text

    if not found:
        return "nothing found: no passage has a word of the question"
    if with_text:
        shown = [f"{cited(one)}  {one.score:.2f}  {' '.join(one.words)}\n{one.text.strip()}\n" for one in found]
        return Group(*(Text(amounts.printable(text)) for text in shown))
    table = _table(("passage",), ("score", "coverage"), ("words", "heading"))
    for one in found:
        table.add_row(
            Text(amounts.printable(place(one))),
            f"{one.score:.2f}",
            f"{one.coverage:.0%}",
            Text(amounts.printable(" ".join(one.words))),
            Text(amounts.printable(one.heading)),
        )
    return table


def _table(left: Sequence[str], right: Sequence[str], last: Sequence[str] = ()) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in left:
        table.add_column(title, overflow="fold")
    for title in right:
        table.add_column(title, justify="right")
    for title in last:
        table.add_column(title, overflow="fold")
    return table

"""Small pictures of characters: parts of a text, parts of a window, answers. Knows numbers and words only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from kvloom.cli import amounts
from kvloom.cli.demos.asking import Asked
from kvloom.cli.demos.story import Fact

WIDTH = 60
"""Characters of a bar: fits 80 columns with its label."""
LABEL = 9
SEEN, UNSEEN, EMPTY = "█", "░", "·"

Span = tuple[int, int]
Part = tuple[str, str, int]
"""A character, its style, and how much it stands for."""


def labelled(label: str, bar: Text, behind: str = "") -> Text:
    """A bar with its name in front of it and its numbers behind it."""
    line = Text(f"{label:<{LABEL}}", style="dim")
    line.append_text(bar)
    if behind:
        line.append(f"  {behind}")
    return line


def coverage(num_chars: int, spans: Iterable[Span], style: str = "green") -> Text:
    """A text of `num_chars` in proportion; what lies in a span is there, the rest is not."""
    kept = tuple(spans)
    bar = Text()
    for cell in range(WIDTH):
        middle = (cell + 0.5) * num_chars / WIDTH
        if any(start <= middle < stop for start, stop in kept):
            bar.append(SEEN, style=style)
        else:
            bar.append(UNSEEN, style="dim")
    return bar


def marks(num_chars: int, facts: Sequence[Fact]) -> Text:
    """Where the facts stand in a text."""
    cells = [" "] * WIDTH
    for fact in facts:
        cells[min(WIDTH - 1, fact.place * WIDTH // max(1, num_chars))] = fact.mark
    return Text("".join(cells), style="bold magenta")


def stacked(parts: Sequence[Part], total: int, width: int = WIDTH) -> Text:
    """Parts side by side in proportion to `total`; one that is not nothing has a character at least."""
    bar = Text()
    used = 0
    for character, style, number in parts:
        if number <= 0:
            continue
        cells = min(max(1, round(number * width / max(1, total))), max(0, width - used))
        bar.append(character * cells, style=style)
        used += cells
    bar.append(" " * (width - used))
    return bar


def answers(asked: Sequence[Asked]) -> Text:
    """Every question's outcome on one line, and what was said instead of a code on lines of its own."""
    line = Text(" " * LABEL)
    for one in asked:
        line.append(f"{one.mark} ", style="bold magenta")
        line.append(f"{one.expected} ✓" if one.is_right else "✗", style="green" if one.is_right else "red")
        line.append("   ")
    if asked:
        line.append(f"first token {amounts.seconds(max(one.ttft_s for one in asked))} at most", style="dim")
    for one in asked:
        if not one.is_right:
            line.append(f"\n{' ' * LABEL}{one.mark}: {shortened(one.reply)}", style="dim")
    return line


def whole(text: str) -> str:
    """One line that cannot steer a terminal."""
    return " ".join(amounts.printable(text).split())


def shortened(text: str, most: int = 64) -> str:
    """One line of at most `most` characters that cannot steer a terminal."""
    line = whole(text)
    return line if len(line) <= most else line[: most - 1] + "…"


def page(title: str, blocks: Iterable[RenderableType], lessons: Sequence[str]) -> RenderableType:
    """The picture of a whole demonstration, and what is to be learned from it."""
    learned = Panel("\n".join(f"• {lesson}" for lesson in lessons), title="what to learn", title_align="left")
    return Group(Text(title, style="bold"), "", *blocks, learned)

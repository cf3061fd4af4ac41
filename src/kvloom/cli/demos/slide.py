"""`kvloom demo slide`: windows that overlap over one text, and what each of them answered."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rich.text import Text

import kvloom
from kvloom.cli import amounts
from kvloom.cli.demos import pictures
from kvloom.cli.demos.story import Count, Fact, Story, story

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kvloom.cli.demos import Stage

CONTEXT = 2048
TEXT_TOKENS = 560
MARKS = "BC"
"""One code for the border and one behind it: a window with two tells one of them."""
SIZE = 240
OVERLAPS = (0.0, 0.5)
"""Without any, and half of each window again in the next: every token is read once, and about twice."""
PROMPT = "Which code is told, and of what? Answer: The code of the ... is ..."
"""Small models take the way out where they are offered one: "or say none" finds nothing."""
MAX_REPLY_TOKENS = 24


@dataclass(frozen=True)
class Part:
    """One window: characters [start, stop) of the text, and its reply. `found`: marks of the facts that it told.

    `held`: marks of the facts that stand in it whole.
    """

    start: int
    stop: int
    first_line: int
    last_line: int
    num_tokens: int
    reply: str
    held: tuple[str, ...]
    found: tuple[str, ...]


@dataclass(frozen=True)
class Pass:
    """All windows of one overlap."""

    overlap: float
    parts: tuple[Part, ...]
    num_read_tokens: int
    found: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class SlideReport:
    """`size`: tokens of a window at most."""

    model: str
    num_tokens: int
    num_chars: int
    size: int
    prompt: str
    facts: tuple[Fact, ...]
    passes: tuple[Pass, ...]
    seconds: float


def run(stage: Stage) -> SlideReport:
    """The same question to every window, without an overlap and with one."""
    began = time.perf_counter()
    told = across_a_border(story(stage.loom.count, TEXT_TOKENS, marks=MARKS), stage.loom.count)
    passes = tuple(_pass(stage, told, overlap) for overlap in OVERLAPS)
    model, seconds = stage.loom.status().model, time.perf_counter() - began
    return SlideReport(model, told.num_tokens, len(told.text), SIZE, PROMPT, told.facts, passes, seconds)


def across_a_border(told: Story, count: Count) -> Story:
    """`told` with the number of its first fact wrapped onto the next line, where windows without an overlap end.

    Such a place is looked for by laying the windows; the text as it is where a vocabulary leaves none.
    """
    fact, behind = told.facts
    line = told.text[fact.place :].split("\n")[0]
    wrap = line.index(fact.answer)
    text = told.text.replace(line + "\n", "")
    place = 0
    last = behind.place - len(line) - 1
    while place < last:
        border = place + wrap
        wrapped = f"{text[:place]}{line[: wrap - 1]}\n{line[wrap:]} {text[place:]}"
        moved = (replace(fact, place=place), replace(behind, place=last + len(line) + 1))
        found = Story(wrapped, count(wrapped), moved)
        plain, overlapping = (kvloom.windows(wrapped, SIZE, overlap, count) for overlap in OVERLAPS)
        is_cut = any(one.start == border for one in plain)
        if is_cut and any(fact.mark in _held(found, one.start, one.stop) for one in overlapping):
            return found
        place = text.index("\n", place) + 1
    return told


def _held(told: Story, start: int, stop: int) -> tuple[str, ...]:
    """The facts that stand in characters [start, stop) from their first word to their last digit."""
    held = []
    for fact in told.facts:
        end = told.text.index(".", fact.place)
        if start <= fact.place and end <= stop:
            held.append(fact.mark)
    return tuple(held)


def _told(fact: Fact, reply: str) -> bool:
    """A number alone tells nothing: what it is the code of belongs to it."""
    return fact.answer in reply and fact.what in reply


def _pass(stage: Stage, told: Story, overlap: float) -> Pass:
    began = time.perf_counter()
    answered = kvloom.ask_windows(
        told.text, PROMPT, stage.loom, size=SIZE, overlap=overlap, max_tokens=MAX_REPLY_TOKENS, progress=stage.progress
    )
    parts = []
    for one in answered.replies:
        window, found = one.window, tuple(fact.mark for fact in told.facts if _told(fact, one.text))
        held = _held(told, window.start, window.stop)
        parts.append(
            Part(
                window.start, window.stop, window.first_line, window.last_line, window.num_tokens, one.text, held, found
            )
        )  # fmt: skip
        stage.tell(f"lines {window.first_line}-{window.last_line}: {pictures.shortened(one.text)}")
    all_found = tuple(fact.mark for fact in told.facts if any(fact.mark in part.found for part in parts))
    num_read = sum(part.num_tokens for part in parts)
    return Pass(overlap, tuple(parts), num_read, all_found, time.perf_counter() - began)


def view(report: object) -> RenderableType:
    """A bar for each window where it lies, its reply behind it."""
    assert isinstance(report, SlideReport)
    blocks: list[RenderableType] = []
    for one in report.passes:
        found = ", ".join(one.found) or "none"
        missed = ", ".join(fact.mark for fact in report.facts if fact.mark not in one.found) or "none"
        blocks.append(
            Text(f"overlap {one.overlap:.0%}: {len(one.parts)} windows, {amounts.tokens(one.num_read_tokens)} tokens "
                 f"read, {amounts.seconds(one.seconds)}; found: {found}; missed: {missed}")
        )  # fmt: skip
        blocks.append(pictures.labelled("", pictures.marks(report.num_chars, report.facts)))
        for number, part in enumerate(one.parts, 1):
            bar = pictures.coverage(report.num_chars, [(part.start, part.stop)], "cyan")
            blocks.append(pictures.labelled(f"{number}", bar, " ".join(part.held)))
        blocks += [_answer(number, part) for number, part in enumerate(one.parts, 1)]
        blocks.append("")
    title = (
        f"{report.model}: a log of {amounts.tokens(report.num_tokens)} tokens in windows of "
        f"{amounts.tokens(report.size)}, the same asked of each; {amounts.seconds(report.seconds)} in all"
    )
    return pictures.page(title, blocks, _lessons(report))


def _answer(number: int, part: Part) -> Text:
    """✓ with the facts that a reply told, ✗ where what it says is none of the codes."""
    line = Text(f"{' ' * pictures.LABEL}{number:>2}  ", style="dim")
    line.append(f"✓ {' '.join(part.found)} " if part.found else "✗ ", style="green" if part.found else "red")
    line.append(f"lines {part.first_line}-{part.last_line}: {pictures.shortened(part.reply, 48)}")
    return line


def _lessons(report: SlideReport) -> list[str]:
    plain, overlapping = report.passes[0], report.passes[-1]
    times = overlapping.num_read_tokens / max(1, plain.num_read_tokens)
    num_without = sum(not part.found for one in report.passes for part in one.parts)
    cut = [fact for fact in report.facts if not any(fact.mark in part.held for part in plain.parts)]
    return [
        "Every token stands in some window, so a text of any length is read with a window of any size.",
        *(
            f"Without an overlap the sentence of {fact.mark} is cut in two: a window ends with the name ({fact.what}), "
            f"the next begins with its number, and none can tell both. With {overlapping.overlap:.0%} a window holds "
            "it whole"
            + (" and tells it." if fact.mark in overlapping.found else ", and yet the model did not tell it.")
            for fact in cut
        ),
        f"An overlap of {overlapping.overlap:.0%} reads {times:.1f}× the tokens ({len(overlapping.parts)} windows for "
        f"{len(plain.parts)}); here it found {len(overlapping.found)} of {len(report.facts)} codes, without one "
        f"{len(plain.found)}.",
        f"Each window is answered alone, whether it holds an answer or not ({num_without} of the replies above tell "
        "none of the codes, ✗): check what comes back, or combine the replies (kvloom window --combine answer).",
    ]

"""`kvloom demo slide`: windows that overlap over one text, and what each of them answered."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.text import Text

import kvloom
from kvloom.cli import amounts
from kvloom.cli.demos import pictures
from kvloom.cli.demos.story import Fact, Story, story

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kvloom.cli.demos import Stage

CONTEXT = 2048
TEXT_TOKENS = 1000
SIZE = 320
OVERLAPS = (0.0, 0.5)
"""Without any, and half of each window again in the next: every token is read once, and about twice."""
PROMPT = "What is the code, a number of four digits?"
"""Small models take the way out where they are offered one: "or say none" finds nothing."""
MAX_REPLY_TOKENS = 24


@dataclass(frozen=True)
class Part:
    """One window: characters [start, stop) of the text, and its reply. `found`: marks of the facts that it told."""

    start: int
    stop: int
    first_line: int
    last_line: int
    num_tokens: int
    reply: str
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
    told = story(stage.loom.count, TEXT_TOKENS)
    passes = tuple(_pass(stage, told, overlap) for overlap in OVERLAPS)
    model, seconds = stage.loom.status().model, time.perf_counter() - began
    return SlideReport(model, told.num_tokens, len(told.text), SIZE, PROMPT, told.facts, passes, seconds)


def _pass(stage: Stage, told: Story, overlap: float) -> Pass:
    began = time.perf_counter()
    answered = kvloom.ask_windows(
        told.text, PROMPT, stage.loom, size=SIZE, overlap=overlap, max_tokens=MAX_REPLY_TOKENS, progress=stage.progress
    )
    parts = []
    for one in answered.replies:
        window, found = one.window, tuple(fact.mark for fact in told.facts if fact.answer in one.text)
        parts.append(
            Part(window.start, window.stop, window.first_line, window.last_line, window.num_tokens, one.text, found)
        )
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
        blocks.append(
            Text(f"overlap {one.overlap:.0%}: {len(one.parts)} windows, {amounts.tokens(one.num_read_tokens)} tokens "
                 f"read, {amounts.seconds(one.seconds)}; found: {found}")
        )  # fmt: skip
        blocks.append(pictures.labelled("", pictures.marks(report.num_chars, report.facts)))
        for number, part in enumerate(one.parts, 1):
            bar = pictures.coverage(report.num_chars, [(part.start, part.stop)], "cyan")
            blocks.append(pictures.labelled(f"{number}", bar, " ".join(part.found)))
        for number, part in enumerate(one.parts, 1):
            lines = f"{number:>2}  lines {part.first_line}-{part.last_line}: "
            blocks.append(Text(f"{' ' * pictures.LABEL}{lines}{pictures.shortened(part.reply)}", style="dim"))
        blocks.append("")
    title = (
        f"{report.model}: a log of {amounts.tokens(report.num_tokens)} tokens in windows of "
        f"{amounts.tokens(report.size)}, the same asked of each; {amounts.seconds(report.seconds)} in all"
    )
    return pictures.page(title, blocks, _lessons(report))


def _lessons(report: SlideReport) -> list[str]:
    plain, overlapping = report.passes[0], report.passes[-1]
    times = overlapping.num_read_tokens / max(1, plain.num_read_tokens)
    num_without = sum(not part.found for one in report.passes for part in one.parts)
    return [
        "Every token stands in some window, so a text of any length is read with a window of any size; what a sentence "
        "on a border means may need the overlap.",
        f"An overlap of {overlapping.overlap:.0%} reads {times:.1f}× the tokens ({len(overlapping.parts)} windows for "
        f"{len(plain.parts)}); here it found {len(overlapping.found)} of {len(report.facts)} codes, without one "
        f"{len(plain.found)}.",
        f"Each window is answered alone, whether it holds an answer or not ({num_without} of the replies above tell "
        "none of the codes): check what comes back, or combine the replies (kvloom window --combine answer).",
    ]

"""`kvloom demo window`: a text that grows until the window is full, what is refused then, and two ways out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.text import Text

import kvloom
from kvloom.cli import amounts
from kvloom.cli.demos import pictures
from kvloom.cli.demos.asking import MAX_REPLY_TOKENS, SYSTEM, Asked, ask_all
from kvloom.cli.demos.story import Fact, Story, story
from kvloom.errors import ContextOverflowError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kvloom.cli.demos import Stage
    from kvloom.session.session import Session

CONTEXT = 1024
TEXT_SHARE = 1.2
"""Of the window: more than it holds, and no more than a window of twice the size holds beside its reserve."""
SMALL_SHARE = 0.25
QUESTION_TOKENS = 40
"""A question with its template, beside the text."""


@dataclass(frozen=True)
class Step:
    """One try. `seen`: characters [start, stop) of the text that the model sees; `refused`: the error's words."""

    title: str
    window: int
    used: int
    reserve: int
    num_text_tokens: int
    seen: tuple[tuple[int, int], ...]
    refused: str
    asked: tuple[Asked, ...]
    seconds: float


@dataclass(frozen=True)
class WindowReport:
    """`num_tokens`, `num_chars`: of the whole text."""

    model: str
    num_tokens: int
    num_chars: int
    facts: tuple[Fact, ...]
    steps: tuple[Step, ...]
    seconds: float


def run(stage: Stage) -> WindowReport:
    """A part, the whole, as much as fits, and the whole in a window of twice the size."""
    began = time.perf_counter()
    loom = stage.loom
    told = story(loom.count, int(TEXT_SHARE * loom.window))
    with loom.session(system=SYSTEM) as session:
        steps = [
            _step(stage, session, told, "a small part of the text", int(SMALL_SHARE * told.num_tokens)),
            _step(stage, session, told, "all of the text", told.num_tokens),
            _step(stage, session, told, "as much as fits beside a reply, from the beginning", _room(session)),
        ]
        session.resize(min(2 * session.window, loom.status().train_context))
        steps.append(_step(stage, session, told, "all of the text, in a larger window", told.num_tokens))
    seconds = time.perf_counter() - began
    return WindowReport(loom.status().model, told.num_tokens, len(told.text), told.facts, tuple(steps), seconds)


def _room(session: Session) -> int:
    usage = session.usage()
    return usage.free - usage.reserve - QUESTION_TOKENS - MAX_REPLY_TOKENS


def _step(stage: Stage, session: Session, told: Story, title: str, num_tokens: int) -> Step:
    """The head of the text in the context, every fact asked, and the text out again."""
    began = time.perf_counter()
    cut = kvloom.truncate(told.text, num_tokens, stage.loom.count, "head", marker="")
    chunk = stage.loom.load_text(cut.text, name="log.txt").id
    refused, seen = "", cut.kept
    asked: tuple[Asked, ...] = ()
    stage.tell(f"{title}: {amounts.tokens(cut.num_tokens)} tokens in a window of {amounts.tokens(session.window)}")
    try:
        session.activate(chunk)
    except ContextOverflowError as error:
        refused, seen = str(error), ()
        stage.tell(f"  refused: {refused}")
    else:
        session.warm(stage.progress)
        asked = ask_all(stage, session, told.facts)
    usage = session.usage()
    if not refused:
        session.remove(chunk)
    return Step(
        title, usage.capacity, usage.used, usage.reserve, cut.num_tokens, seen, refused, asked,
        time.perf_counter() - began,
    )  # fmt: skip


def view(report: object) -> RenderableType:
    """Two bars for every try: what is seen of the text, and what the window holds."""
    assert isinstance(report, WindowReport)
    widest = max(step.window for step in report.steps)
    blocks: list[RenderableType] = [pictures.labelled("", pictures.marks(report.num_chars, report.facts))]
    for number, step in enumerate(report.steps, 1):
        blocks.append(
            Text(f"{number}. {step.title}: {amounts.tokens(step.num_text_tokens)} tokens, "
                 f"{amounts.seconds(step.seconds)}")
        )  # fmt: skip
        blocks += [pictures.labelled("seen", pictures.coverage(report.num_chars, step.seen))]
        blocks += [pictures.labelled("window", _window_bar(step, widest)), Text(_window_words(step), style="dim")]
        if step.refused:
            blocks.append(Text(f"{' ' * pictures.LABEL}refused: {step.refused}", style="red"))
        else:
            blocks.append(pictures.answers(step.asked))
        blocks.append("")
    title = (
        f"{report.model}: a log of {amounts.tokens(report.num_tokens)} tokens with the codes A, B and C; "
        f"{amounts.seconds(report.seconds)} in all"
    )
    return pictures.page(title, blocks, _lessons(report))


def _window_bar(step: Step, widest: int) -> Text:
    free = step.window - step.used - step.reserve
    parts = ((pictures.SEEN, "cyan", step.used), (pictures.EMPTY, "dim", free), ("-", "yellow", step.reserve))
    return pictures.stacked(parts, widest)


def _window_words(step: Step) -> str:
    return (
        f"{' ' * pictures.LABEL}{amounts.tokens(step.used)} of {amounts.tokens(step.window)} tokens used, "
        f"- {amounts.tokens(step.reserve)} kept for the reply"
    )


def _lessons(report: WindowReport) -> list[str]:
    cut = report.steps[2]
    lost = [one.mark for one in cut.asked if not one.is_right]
    return [
        "The window holds the system prompt, the template, the text, the question and the reply: the text may never "
        "have all of it. What does not fit is refused with the numbers, before anything is computed.",
        "What was left out is as if it were not there"
        + (f" (without it {', '.join(lost)} could not be answered)." if lost else "."),
        "A larger window costs KV memory and time for every token in it, no model memory. Before enlarging it: "
        "kvloom demo truncate, kvloom demo slide, or a policy that makes room (--policy adaptive).",
    ]

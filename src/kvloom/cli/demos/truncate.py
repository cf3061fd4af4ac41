"""`kvloom demo truncate`: one text cut to a third in each way, and which of its facts are answered then."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.text import Text

import kvloom
from kvloom.cli import amounts
from kvloom.cli.demos import pictures
from kvloom.cli.demos.asking import SYSTEM, Asked, ask_all
from kvloom.cli.demos.story import Fact, Story, story

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kvloom.cli.demos import Stage

CONTEXT = 4096
TEXT_TOKENS = 900
"""Read once whole and three times as a third: about ten seconds on two cores."""
PARTS = 3
WHOLE = "whole"
NAMES = {WHOLE: "nothing cut", "head": "the head stays", "tail": "the tail stays", "both": "the middle leaves"}


@dataclass(frozen=True)
class Cut:
    """What one way keeps of the text (characters [start, stop)), and what is answered from it.

    `seconds`: reading what is left and answering all questions.
    """

    keep: str
    num_tokens: int
    num_removed_tokens: int
    kept: tuple[tuple[int, int], ...]
    asked: tuple[Asked, ...]
    seconds: float

    @property
    def num_right(self) -> int:
        return sum(one.is_right for one in self.asked)


@dataclass(frozen=True)
class TruncateReport:
    """`budget`: the tokens that each way may keep."""

    model: str
    num_tokens: int
    num_chars: int
    budget: int
    facts: tuple[Fact, ...]
    cuts: tuple[Cut, ...]
    seconds: float


def run(stage: Stage) -> TruncateReport:
    """Cuts, and asks for each fact."""
    began = time.perf_counter()
    told = story(stage.loom.count, min(TEXT_TOKENS, stage.loom.window // 2))
    budget = told.num_tokens // PARTS
    cuts = tuple(_cut(stage, told, keep, budget) for keep in NAMES)
    model = stage.loom.status().model
    seconds = time.perf_counter() - began
    return TruncateReport(model, told.num_tokens, len(told.text), budget, told.facts, cuts, seconds)


def _cut(stage: Stage, told: Story, keep: str, budget: int) -> Cut:
    loom = stage.loom
    limit, way = (told.num_tokens, "head") if keep == WHOLE else (budget, keep)
    cut = kvloom.truncate(told.text, limit, loom.count, way)
    stage.tell(f"{NAMES[keep]}: {amounts.tokens(cut.num_tokens)} of {amounts.tokens(told.num_tokens)} tokens")
    began = time.perf_counter()
    with loom.session(system=SYSTEM) as session:
        session.activate(loom.load_text(cut.text, name=f"log-{keep}.txt").id)
        session.warm(stage.progress)
        asked = ask_all(stage, session, told.facts)
    return Cut(keep, cut.num_tokens, cut.num_removed_tokens, cut.kept, asked, time.perf_counter() - began)


def view(report: object) -> RenderableType:
    """What each way keeps, as bars."""
    assert isinstance(report, TruncateReport)
    blocks: list[RenderableType] = [pictures.labelled("", pictures.marks(report.num_chars, report.facts))]
    for cut in report.cuts:
        blocks.append(
            Text(f"{NAMES[cut.keep]}: {amounts.tokens(cut.num_tokens)} tokens, {amounts.seconds(cut.seconds)}")
        )
        blocks += [pictures.labelled("kept", pictures.coverage(report.num_chars, cut.kept))]
        blocks += [pictures.answers(cut.asked), ""]
    return pictures.page(_title(report), blocks, _lessons(report))


def _title(report: TruncateReport) -> str:
    return (
        f"{report.model}: a log of {amounts.tokens(report.num_tokens)} tokens with the codes A, B and C, cut to "
        f"{amounts.tokens(report.budget)}; {amounts.seconds(report.seconds)} in all"
    )


def _lessons(report: TruncateReport) -> list[str]:
    whole, *cuts = report.cuts
    best = max(cuts, key=lambda cut: cut.num_right)
    codes = [fact.answer for fact in report.facts]
    made_up = sum(any(code in one.reply for code in codes) for cut in cuts for one in cut.asked if not one.is_right)
    return [
        f"What is cut away cannot be answered: {best.num_right} of {len(codes)} at best ({NAMES[best.keep]}), "
        f"{whole.num_right} with nothing cut. Choose the end where the answers stand.",
        f"The model does not know what it does not see: {made_up} times it gave the code of something else.",
        "The marker that says how much is missing is paid from the budget, and no cut goes through a character.",
        "A cut is cheap and forgets for good; windows (kvloom demo slide) read everything, libraries (kvloom ask) "
        "what a question needs.",
    ]

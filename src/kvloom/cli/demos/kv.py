"""`kvloom demo kv`: the same texts asked again, switched off and on, reordered, edited; what is computed each time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.text import Text

from kvloom.cli import amounts
from kvloom.cli.demos import pictures
from kvloom.cli.demos.asking import MAX_REPLY_TOKENS, SYSTEM
from kvloom.cli.demos.story import story
from kvloom.types import Fidelity

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kvloom.cli.demos import Stage
    from kvloom.session.session import Session

CONTEXT = 4096
LOGS = ("spring", "summer", "autumn")
LOG_TOKENS = 400
QUESTIONS = (
    "What is the code of the oil cellar in spring?",
    "What is the code of the signal room in autumn?",
    "What is the code of the boat house in spring?",
    "What is the code of the oil cellar in summer?",
    "What is the code of the boat house in autumn?",
    "What is the code of the signal room in summer?",
)


@dataclass(frozen=True)
class Step:
    """One question. `prompt_tokens` = reused + loaded + computed; `rotated_tokens` of the loaded were moved to another
    place; `off_tokens` are in the context, switched off."""

    title: str
    question: str
    reply: str
    prompt_tokens: int
    reused_tokens: int
    loaded_tokens: int
    rotated_tokens: int
    computed_tokens: int
    off_tokens: int
    ttft_s: float


@dataclass(frozen=True)
class KvReport:
    """`token_bytes`: KV of one token; `text_tokens`: of the texts together, as they were last."""

    model: str
    token_bytes: int
    text_tokens: int
    steps: tuple[Step, ...]
    full: Step
    seconds: float


class _Run:
    """The steps over one session."""

    def __init__(self, stage: Stage, session: Session) -> None:
        self._stage = stage
        self._session = session

    def ask(self, title: str, question: str) -> Step:
        self._stage.tell(f"{title}\n> {question}")
        reply = self._session.generate(
            question, max_tokens=MAX_REPLY_TOKENS, temperature=0.0, seed=1, progress=self._stage.progress
        )
        off = sum(segment.num_tokens for segment in self._session.usage().segments if not segment.is_active)
        self._session.undo()
        usage = reply.usage
        self._stage.tell(f"  {reply.text.strip()}")
        return Step(
            title, question, reply.text.strip(), usage.prompt_tokens, usage.reused_tokens, usage.loaded_tokens,
            usage.rotated_tokens, usage.computed_tokens, off, usage.ttft_s,
        )  # fmt: skip


def run(stage: Stage) -> KvReport:
    """Six questions behind six edits, and the last prompt once more without any stored KV."""
    began = time.perf_counter()
    loom = stage.loom
    num_tokens = min(LOG_TOKENS, loom.window // (2 * len(LOGS)))
    texts = [f"The log of {name}.\n{story(loom.count, num_tokens, seed).text}" for seed, name in enumerate(LOGS, 1)]
    first, second, third = (loom.load_text(t, name=f"{n}.txt").id for n, t in zip(LOGS, texts, strict=True))
    with loom.session(system=SYSTEM) as session:
        session.activate(first, second, third)
        run_ = _Run(stage, session)
        steps = [run_.ask("three logs, seen for the first time", QUESTIONS[0])]
        steps.append(run_.ask("another question", QUESTIONS[1]))
        session.deactivate(second)
        steps.append(run_.ask("summer switched off", QUESTIONS[2]))
        session.activate(second)
        steps.append(run_.ask("summer on again", QUESTIONS[3]))
        session.move(third, 0)
        steps.append(run_.ask("autumn moved to the front", QUESTIONS[4]))
        edited = loom.load_text(texts[1] + "The lamp burned all night.\n", name="summer.txt").id
        session.remove(second)
        session.activate(edited)
        steps.append(run_.ask("a line added to summer", QUESTIONS[5]))
        usage = session.usage()
    with loom.session(system=SYSTEM, fidelity=Fidelity.EXACT) as session:
        session.activate(third, first, edited)
        full = _Run(stage, session).ask("the same prompt computed in full, as without stored KV", QUESTIONS[5])
    chunks = [segment for segment in usage.segments if segment.kind == "chunk"]
    text_tokens = sum(segment.num_tokens for segment in chunks)
    token_bytes = sum(segment.kv_bytes for segment in chunks) // max(1, text_tokens)
    seconds = time.perf_counter() - began
    return KvReport(loom.status().model, token_bytes, text_tokens, tuple(steps), full, seconds)


_REUSED, _LOADED, _ROTATED, _COMPUTED, _OFF = ("█", "green"), ("▓", "cyan"), ("▒", "yellow"), ("C", "red"), ("·", "dim")


def view(report: object) -> RenderableType:
    """Every prompt as a bar of where its KV came from."""
    assert isinstance(report, KvReport)
    steps = (*report.steps, report.full)
    widest = max(step.prompt_tokens + step.off_tokens for step in steps)
    names = ("reused", "loaded", "rotated", "computed", "switched off")
    legend = Text(" " * pictures.LABEL)
    for (character, style), name in zip((_REUSED, _LOADED, _ROTATED, _COMPUTED, _OFF), names, strict=True):
        legend.append(character * 2, style=style)
        legend.append(f" {name}   ")
    blocks: list[RenderableType] = [legend, ""]
    for number, step in enumerate(steps, 1):
        blocks.append(Text(f"{number}. {step.title}: first token after {amounts.seconds(step.ttft_s)}"))
        blocks.append(pictures.labelled("KV", _bar(step, widest)))
        reply = f"{' ' * pictures.LABEL}> {step.question} {pictures.shortened(step.reply, 80 - len(step.question))}"
        blocks += [Text(_words(step), style="dim"), Text(reply, style="dim"), ""]
    title = (
        f"{report.model}: {len(LOGS)} logs of {amounts.tokens(report.text_tokens)} tokens; a token's KV takes "
        f"{amounts.size(report.token_bytes)}, theirs {amounts.size(report.token_bytes * report.text_tokens)}; "
        f"{amounts.seconds(report.seconds)} in all"
    )
    return pictures.page(title, blocks, _lessons(report))


def _bar(step: Step, widest: int) -> Text:
    parts = (
        (*_REUSED, step.reused_tokens), (*_LOADED, step.loaded_tokens - step.rotated_tokens),
        (*_ROTATED, step.rotated_tokens), (*_COMPUTED, step.computed_tokens), (*_OFF, step.off_tokens),
    )  # fmt: skip
    return pictures.stacked(parts, widest)


def _words(step: Step) -> str:
    said = f"{amounts.tokens(step.prompt_tokens)} tokens = {amounts.tokens(step.reused_tokens)} reused + "
    said += f"{amounts.tokens(step.loaded_tokens)} loaded + {amounts.tokens(step.computed_tokens)} computed"
    if step.rotated_tokens:
        said += f" ({amounts.tokens(step.rotated_tokens)} of the loaded rotated)"
    if step.off_tokens:
        said += f"; {amounts.tokens(step.off_tokens)} off"
    return f"{' ' * pictures.LABEL}{said}"


def _lessons(report: KvReport) -> list[str]:
    first, again, moved, edited = report.steps[0], report.steps[1], report.steps[-2], report.steps[-1]
    # With --fidelity exact, and where a model's KV cannot be placed, it is computed again.
    is_placed = moved.computed_tokens < moved.prompt_tokens // 2
    moving = "rotated to its new place and not computed again" if is_placed else "computed again"
    return [
        f"KV of a text is computed once ({amounts.seconds(first.ttft_s)} for {amounts.tokens(first.computed_tokens)} "
        f"tokens); a later question computes itself alone ({amounts.tokens(again.computed_tokens)} tokens, "
        f"{amounts.seconds(again.ttft_s)}).",
        f"A text that is switched off costs no attention and keeps its KV; moved, it is {moving}.",
        f"An edit computes the changed text alone: {amounts.tokens(edited.computed_tokens)} tokens in "
        f"{amounts.seconds(edited.ttft_s)}, against {amounts.tokens(report.full.computed_tokens)} in "
        f"{amounts.seconds(report.full.ttft_s)} for the whole prompt.",
    ]

"""`kvloom demo kv`: the same texts asked again, switched off and on, reordered, edited; what is computed each time."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rich.text import Text

from kvloom.cli import amounts
from kvloom.cli.demos import pictures
from kvloom.cli.demos.asking import MAX_REPLY_TOKENS, SYSTEM
from kvloom.cli.demos.story import MARKS, Fact, story
from kvloom.types import Fidelity

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kvloom.cli.demos import Stage
    from kvloom.session.session import Session

CONTEXT = 4096
LOG_TOKENS = 250
"""Of each of three logs with one code each, of another room: logs much alike are mixed up with splice."""


@dataclass(frozen=True)
class Step:
    """One question, and whether the true code is in its reply.

    `prompt_tokens` = reused + loaded + computed; `rotated_tokens` of the loaded were moved to another place;
    `off_tokens` are in the context, switched off.
    """

    title: str
    question: str
    reply: str
    expected: str
    is_right: bool
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

    def ask(self, title: str, fact: Fact) -> Step:
        self._stage.tell(f"{title}\n> {fact.question}")
        reply = self._session.generate(
            fact.question, max_tokens=MAX_REPLY_TOKENS, temperature=0.0, seed=1, progress=self._stage.progress
        )
        off = sum(segment.num_tokens for segment in self._session.usage().segments if not segment.is_active)
        self._session.undo()
        usage, text = reply.usage, reply.text.strip()
        self._stage.tell(f"  {text}")
        return Step(
            title, fact.question, text, fact.answer, fact.answer in text, usage.prompt_tokens, usage.reused_tokens,
            usage.loaded_tokens, usage.rotated_tokens, usage.computed_tokens, off, usage.ttft_s,
        )  # fmt: skip


def run(stage: Stage) -> KvReport:
    """Six questions behind six edits, and the last prompt once more without any stored KV."""
    began = time.perf_counter()
    loom = stage.loom
    num_tokens = min(LOG_TOKENS, loom.window // (2 * len(MARKS)))
    logs = [story(loom.count, num_tokens, seed, mark) for seed, mark in enumerate(MARKS, 1)]
    first, second, third = (
        loom.load_text(one.text, name=f"{mark}.txt").id for mark, one in zip(MARKS, logs, strict=True)
    )
    (boat,), (oil,), (signal,) = (one.facts for one in logs)
    new_oil = replace(oil, answer=oil.answer[::-1])
    edited_log = logs[1].text.replace(oil.answer, new_oil.answer)
    with loom.session(system=SYSTEM) as session:
        session.activate(first, second, third)
        run_ = _Run(stage, session)
        steps = [run_.ask("three logs, A, B and C, seen for the first time", boat)]
        steps.append(run_.ask("another question", signal))
        session.deactivate(second)
        steps.append(run_.ask("B switched off", boat))
        session.activate(second)
        steps.append(run_.ask("B on again", oil))
        session.move(third, 0)
        steps.append(run_.ask("C moved to the front", signal))
        edited = loom.load_text(edited_log, name="B.txt").id
        session.remove(second)
        session.activate(edited)
        steps.append(run_.ask("the code in B changed", new_oil))
        usage = session.usage()
    with loom.session(system=SYSTEM, fidelity=Fidelity.EXACT) as session:
        session.activate(third, first, edited)
        full = _Run(stage, session).ask("the same prompt computed in full, as without stored KV", new_oil)
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
        blocks += [Text(_words(step), style="dim"), _answer(step), ""]
    title = (
        f"{report.model}: {len(MARKS)} logs of {amounts.tokens(report.text_tokens)} tokens; a token's KV takes "
        f"{amounts.size(report.token_bytes)}, theirs {amounts.size(report.token_bytes * report.text_tokens)}; "
        f"{amounts.seconds(report.seconds)} in all"
    )
    return pictures.page(title, blocks, _lessons(report))


def _answer(step: Step) -> Text:
    """The question, and the reply on a line of its own: as long as it may be, the code stands at its end."""
    indent = " " * pictures.LABEL
    said = Text(f"{indent}> {step.question}\n{indent}", style="dim")
    said.append("✓ " if step.is_right else "✗ ", style="green" if step.is_right else "red")
    said.append(pictures.whole(step.reply))
    if not step.is_right:
        said.append(f" (the code is {step.expected})", style="red")
    return said


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
    num_right = sum(step.is_right for step in report.steps)
    moving = "rotated to its new place and not computed again" if is_placed else "computed again"
    return [
        f"KV of a text is computed once ({amounts.seconds(first.ttft_s)} for {amounts.tokens(first.computed_tokens)} "
        f"tokens); a later question computes itself alone ({amounts.tokens(again.computed_tokens)} tokens, "
        f"{amounts.seconds(again.ttft_s)}).",
        f"A text that is switched off costs no attention and keeps its KV; moved, it is {moving}.",
        f"Right: {num_right} of {len(report.steps)} replies above, and the full prefill's is "
        f"{'right' if report.full.is_right else 'wrong'} (a small model errs by itself, too).",
        "Splice is approximate: KV of a text that was computed alone has not seen the texts in front of it. These logs "
        "have one code each, of another room; codes of texts much alike (the same room in spring, summer and autumn) "
        "are mixed up sooner than with --fidelity exact, which computes all that has moved again; blend computes a "
        "part of it (kvloom bench fidelity measures all three).",
        f"An edit computes the changed text alone: {amounts.tokens(edited.computed_tokens)} tokens in "
        f"{amounts.seconds(edited.ttft_s)}, against {amounts.tokens(report.full.computed_tokens)} in "
        f"{amounts.seconds(report.full.ttft_s)} for the whole prompt.",
    ]

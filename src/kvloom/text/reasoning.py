"""Splits a reply into the model's reasoning and its answer, whole or as it streams. Knows no tokens."""

from __future__ import annotations

from dataclasses import dataclass

TAGS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<reasoning>", "</reasoning>"),
)
"""Opening and closing words that models set around their reasoning."""


@dataclass(frozen=True)
class ReasoningTags:
    """The words around a model's reasoning. `starts_inside`: the prompt has already opened it."""

    opening: str
    closing: str
    starts_inside: bool = False


DEFAULT_TAGS = ReasoningTags(*TAGS[0])


def tags_of(template_source: str, prompt_tail: str = "") -> ReasoningTags:
    """The tags that a chat template speaks of; `prompt_tail` is the template text right before the reply."""
    for opening, closing in TAGS:
        if opening in template_source or closing in template_source:
            return ReasoningTags(opening, closing, prompt_tail.rstrip().endswith(opening))
    return DEFAULT_TAGS


@dataclass(frozen=True)
class ReplyText:
    """A run of a reply, or all of it: what was thought and what was said."""

    reasoning: str = ""
    answer: str = ""


class ReasoningSplitter:
    """Takes a reply's text as it comes. Reasoning opens only at the reply's start, and closes once.

    Text that could still become a tag is held back until it is clear. White space around the tags is nobody's.
    """

    def __init__(self, tags: ReasoningTags = DEFAULT_TAGS) -> None:
        self._tags = tags
        self._inside = tags.starts_inside
        self._may_open = not tags.starts_inside
        self._trims = tags.starts_inside
        self._held = ""

    def push(self, text: str) -> ReplyText:
        """What has become clear with `text`."""
        self._held += text
        reasoning = ""
        if self._may_open:
            start = self._held.lstrip()
            if start.startswith(self._tags.opening):
                self._held, self._inside, self._trims = start[len(self._tags.opening) :], True, True
            elif self._tags.opening.startswith(start):
                return ReplyText()
            self._may_open = False
        if self._inside:
            at = self._held.find(self._tags.closing)
            if at < 0:
                return ReplyText(reasoning=self._take(self._num_clear()))
            reasoning = self._take(at).rstrip()
            self._held = self._held[len(self._tags.closing) :].lstrip()
            self._inside, self._trims = False, True
        return ReplyText(reasoning, self._take(len(self._held)))

    def finish(self) -> ReplyText:
        """What is left when the reply ends."""
        rest = self._take(len(self._held))
        return ReplyText(reasoning=rest.rstrip()) if self._inside else ReplyText(answer=rest)

    def _take(self, num_chars: int) -> str:
        taken, self._held = self._held[:num_chars], self._held[num_chars:]
        if self._trims:
            taken = taken.lstrip()
            self._trims = not taken
        return taken

    def _num_clear(self) -> int:
        """Characters that cannot be the start of the closing tag, nor white space in front of it."""
        held, closing = self._held, self._tags.closing
        tail = next((n for n in range(min(len(closing) - 1, len(held)), 0, -1) if held.endswith(closing[:n])), 0)
        return len(held[: len(held) - tail].rstrip())


def split_reply(text: str, tags: ReasoningTags = DEFAULT_TAGS) -> ReplyText:
    """A whole reply, split."""
    splitter = ReasoningSplitter(tags)
    first, rest = splitter.push(text), splitter.finish()
    return ReplyText(first.reasoning + rest.reasoning, first.answer + rest.answer)

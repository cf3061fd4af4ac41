"""Asks the same of every window of a text, and makes one result of the replies. Knows no engine, no disk.

Every reply is remembered, so that a pass that was interrupted goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from kvloom.errors import ContextOverflowError, UsageError
from kvloom.reduce.asking import Asker, MemoryResults, Results, TextModel, grouped
from kvloom.reduce.extract import shortened
from kvloom.reduce.fit import Count
from kvloom.reduce.prompts import Wording
from kvloom.reduce.summarize import MAX_PIECE_TOKENS, Watch
from kvloom.reduce.windows import Window, check_layout, check_text, windows

MAX_REPLY_TOKENS = 256
"""Of the reply to one window, where nobody said otherwise."""
_SEAM_TOKENS = 8
"""What a prompt may take more than its parts apart."""
_TRIMMED_TOKENS = 1
"""Of a reply that was cut off, the white space at its ends: it is gone when the reply is counted again."""


class Combine(Enum):
    """What is made of the replies: LIST shows each under its lines, ANSWER asks the model for one of them all."""

    LIST = "list"
    ANSWER = "answer"


@dataclass(frozen=True)
class WindowPass:
    """What is asked of each window. `size` None: as large as the model's window allows, MAX_PIECE_TOKENS at most."""

    prompt: str
    size: int | None = None
    overlap: float = 0.0
    combine: Combine = Combine.LIST
    reply_tokens: int = MAX_REPLY_TOKENS


@dataclass(frozen=True)
class WindowReply:
    """`is_new`: it was computed now, not found in the results. `is_cut_off`: it has as many tokens
    as a reply may have."""

    window: Window
    text: str
    is_new: bool
    is_cut_off: bool = False


@dataclass(frozen=True)
class WindowAnswers:
    """`text` is the whole result. `num_rounds` of combining were needed for it; `num_asked` prompts were computed."""

    text: str
    replies: tuple[WindowReply, ...] = field(repr=False)
    size: int
    num_rounds: int
    num_asked: int
    num_found: int

    @property
    def num_cut_off(self) -> int:
        return sum(one.is_cut_off for one in self.replies)


def ask_windows(
    text: str,
    wanted: WindowPass,
    model: TextModel,
    results: Results | None = None,
    watch: Watch | None = None,
    laying: Watch | None = None,
) -> WindowAnswers:
    """One prompt for each window of `text`, in its order, and their replies combined.

    `laying` is who looks on while windows are laid, in characters; `watch` counts prompts.

    Raises UsageError for a prompt or a text without a word and for windows that cannot be laid, ContextOverflowError
    where a window, the prompt and a reply, or two replies to combine, are more than the model's window; before anything
    is computed.
    CancelledError between two windows that are laid, and between two prompts: what was asked is found when it is asked
    again.
    """
    check_text(text)
    if not text.strip() or not wanted.prompt.strip():
        missing = "text" if not text.strip() else "prompt"
        raise UsageError(f"there is nothing to ask: the {missing} is empty")
    size = _size(wanted, model)
    found = windows(text, size, wanted.overlap, model.count, laying)
    if wanted.combine is Combine.ANSWER and len(found) > 1:
        _room_for_answers(wanted, model)
    asker = Asker(model, MemoryResults() if results is None else results, watch or Watch())
    asker.expect(len(found))
    wording = _window_wording(wanted.prompt)
    replies: list[WindowReply] = []
    for window in found:
        num_asked = asker.num_asked
        reply = asker.ask(wording.prompt(window.text), wanted.reply_tokens)
        is_cut_off = model.count(reply) >= max(1, wanted.reply_tokens - _TRIMMED_TOKENS)
        replies.append(WindowReply(window, reply.strip(), asker.num_asked > num_asked, is_cut_off))
        asker.step()
    told = [f"{lines_of(one.window)}:\n{one.text}" for one in replies if one.text]
    num_rounds = 0
    if wanted.combine is Combine.LIST:
        shown = [f"{lines_of(one.window)}:\n{one.text}{'…' * one.is_cut_off}" for one in replies if one.text]
        result = "\n\n".join(shown)
    elif len(told) > 1:
        result, num_rounds = _answered(told, wanted, asker)
    else:
        result = "".join(one.text for one in replies)
    return WindowAnswers(result, tuple(replies), size, num_rounds, asker.num_asked, asker.num_found)


def lines_of(window: Window) -> str:
    """The lines of a window, for a person and for a prompt."""
    if window.first_line == window.last_line:
        return f"line {window.first_line}"
    return f"lines {window.first_line}-{window.last_line}"


def _size(wanted: WindowPass, model: TextModel) -> int:
    """The tokens of a window. Raises as `ask_windows` does."""
    check_layout(1 if wanted.size is None else wanted.size, wanted.overlap)
    if wanted.reply_tokens < 1:
        raise UsageError(f"a reply of {wanted.reply_tokens} tokens says nothing; give 1 or more")
    beside = model.count(_window_wording(wanted.prompt).prompt("")) + wanted.reply_tokens + _SEAM_TOKENS
    size = min(MAX_PIECE_TOKENS, model.window_tokens - beside) if wanted.size is None else wanted.size
    needed = max(1, size) + beside
    if needed > model.window_tokens:
        most = model.window_tokens - beside
        hint = f"a smaller size ({most:,} at most) or reply" if most > 0 else "a smaller reply or prompt"
        raise ContextOverflowError(
            f"a window of {max(1, size):,} tokens takes {needed:,} with the prompt and {wanted.reply_tokens:,} for its "
            f"reply, and the model has room for {model.window_tokens:,}; give {hint}, or a larger context",
            num_needed_tokens=needed,
            num_window_tokens=model.window_tokens,
        )
    return size


def _room_for_answers(wanted: WindowPass, model: TextModel) -> int:
    """Tokens of replies that are combined at once. Raises ContextOverflowError where not even one has room, and
    UsageError where one may be longer than what is read at once."""
    if wanted.reply_tokens > MAX_PIECE_TOKENS:
        raise UsageError(
            f"replies of up to {wanted.reply_tokens} tokens cannot be combined into one answer: at most "
            f"{MAX_PIECE_TOKENS} are read at once; ask for shorter replies, or for a list"
        )
    overhead = model.count(_combining(wanted.prompt).prompt("")) + wanted.reply_tokens + _SEAM_TOKENS
    room = min(MAX_PIECE_TOKENS, model.window_tokens - overhead)
    if room < wanted.reply_tokens:
        raise ContextOverflowError(
            f"combining the replies takes {overhead} tokens beside them, and the model has room for "
            f"{model.window_tokens}; ask for shorter replies or a list, or give a larger context",
            num_needed_tokens=overhead + wanted.reply_tokens,
            num_window_tokens=model.window_tokens,
        )
    return room


def _window_wording(prompt: str) -> Wording:
    """What is asked stands behind the text, nearest to the reply."""
    return Wording("<text>\n", f"\n</text>\n\n{prompt.strip()}")


def _combining(prompt: str) -> Wording:
    return Wording(
        "A long text was read part by part, and the same was asked of each part. These are the answers, in the order of"
        " the text:\n\n<answers>\n",
        f"\n</answers>\n\nThis was asked: {prompt.strip()}\n\nMake one answer of them, for the whole text. Leave out "
        "what parts said only because they do not hold it.",
    )


def _answered(told: Sequence[str], wanted: WindowPass, asker: Asker) -> tuple[str, int]:
    """One answer of many, round by round where they are too much for one prompt; and the number of rounds."""
    wording, count = _combining(wanted.prompt), asker.model.count
    room = _room_for_answers(wanted, asker.model)
    num_rounds = 0
    while len(told) > 1:
        groups = grouped(told, room, count)
        asker.expect(sum(len(group) > 1 for group in groups))
        made: list[str] = []
        for group in groups:
            texts = told[group.start : group.stop]
            if len(texts) == 1:
                made += texts
                continue
            made.append(asker.ask(wording.prompt(_within(texts, room, count)), wanted.reply_tokens).strip())
            asker.step()
        told = [text for text in made if text] or made[:1]
        num_rounds += 1
    return told[0], num_rounds


def _within(texts: Sequence[str], room: int, count: Count) -> str:
    """The texts one below the other; shortened where two of them alone are more than a prompt holds."""
    joined = "\n\n".join(texts)
    return joined if count(joined) <= room else shortened(joined.splitlines(), room, count)

"""The smallest window that is of any use: it holds what the prompt takes at least, a short question and its reply.

Counts with the loaded model's template; knows no session.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvloom.context.manifest import Manifest
from kvloom.errors import UsageError

if TYPE_CHECKING:
    from kvloom.session.loom import Loom

MIN_REPLY_TOKENS = 64
"""A window that cannot hold this beside what is used is refused; in one under 256 tokens a quarter of it is enough."""
SHORT_QUESTION_TOKENS = 32
"""A sentence or two: below it nothing can be asked."""


def least_window(num_used: int, reserve_tokens: int = MIN_REPLY_TOKENS) -> int:
    """The smallest window that holds so many tokens beside its reserve: so many, or a quarter of the window."""
    by_quarter = 4 * (num_used - 1) // 3 + 1  # the least w with w - w // 4 >= num_used
    return max(1, min(num_used + reserve_tokens, by_quarter))


@dataclass(frozen=True)
class ShortTurn:
    """What a first short turn takes: tokens of the system prompt, around a question, of the question and its reply."""

    num_head_tokens: int
    num_frame_tokens: int
    num_reply_tokens: int
    least: int
    """The smallest window that holds it."""

    def refusal(self, window: int) -> UsageError:
        return UsageError(
            f"a window of {window} tokens is too small to talk in: the system prompt takes {self.num_head_tokens}, "
            f"what stands around a question {self.num_frame_tokens}, a short question {SHORT_QUESTION_TOKENS} and its "
            f"reply {self.num_reply_tokens}; give {self.least} or more"
        )


def short_turn(loom: Loom, system: str) -> ShortTurn:
    """Behind this system prompt, as the loaded model's template writes it.

    A model that was trained for less may be opened with its whole length.
    """
    head = loom.prompts.head(system)
    _, frame = loom.prompts.question(Manifest(model=loom.engine.fingerprint).with_head(head, system), (), "")
    needed = len(head) + len(frame) + SHORT_QUESTION_TOKENS
    # The reserve as it is in force, and a reply of some length where less is reserved.
    least = max(least_window(needed, loom.settings.reserve_tokens), needed + MIN_REPLY_TOKENS)
    return ShortTurn(len(head), len(frame), least - needed, min(least, loom.engine.train_context or least))


def check_window(loom: Loom, window: int, system: str) -> None:
    """Raises UsageError, with the numbers, where a window that was asked for has no room for one short turn."""
    found = short_turn(loom, system)
    if window < found.least:
        raise found.refusal(window)

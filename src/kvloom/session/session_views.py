"""What a session shows of itself: its turns and messages, its prompt as tokens and text, its usage.

Part of `Session`, which makes what is declared here. Reads the manifest and the log; looking costs no context.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvloom.session.budget import Budget
from kvloom.session.desk import Desk
from kvloom.session.history import History
from kvloom.session.status import context_usage
from kvloom.session.values import ContextUsage, Message, Turn

if TYPE_CHECKING:
    from kvloom.session.loom import Loom


class SessionViews:
    """What can be looked at of a session."""

    loom: Loom
    _history: History
    _desk: Desk
    _budget: Budget

    def history(self) -> list[Turn]:
        """The turns of this context, in order."""
        self._desk.check_open()
        manifest = self._desk.manifest
        turns = []
        for number, slot in enumerate(manifest.turns, 1):
            record = self._history.turn(slot.ref)
            turns.append(
                Turn(
                    slot.ref, number, record.user, record.answer, record.reasoning, record.finish_reason,
                    slot.num_tokens, manifest.traces(slot), slot.pinned, record.replaces,
                )
            )  # fmt: skip
        return turns

    def messages(self) -> list[Message]:
        """The conversation as messages, the system prompt first."""
        system = self._desk.manifest.system
        messages = [Message("system", system)] if system else []
        for turn in self.history():
            messages.append(Message("user", turn.user, turn.number))
            messages.append(Message("assistant", turn.answer, turn.number))
        return messages

    def tokens(self) -> list[int]:
        """The token ids of the whole context, exactly as the engine holds them."""
        self._desk.check_open()
        return self._desk.manifest.token_ids()

    def prompt(self) -> str:
        """The text of `tokens()`, special tokens spelled out."""
        vocabulary = self.loom.engine.vocabulary
        pieces = (vocabulary.token_bytes(token, special=True) for token in self.tokens())
        return b"".join(pieces).decode("utf-8", "replace")

    def usage(self) -> ContextUsage:
        """What the window holds, by segment. Looking costs no context."""
        self._desk.check_open()
        return context_usage(self.loom, self._desk.manifest, self._history.id, self._budget)

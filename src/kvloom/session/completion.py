"""One prompt to the model beside a conversation: nothing of it is stored, and it gives way to whoever waits.

Knows no session: the summaries of a compression are made with it.
"""

from __future__ import annotations

import threading
import uuid
from typing import TYPE_CHECKING

from kvloom.context.manifest import Manifest
from kvloom.session.reply import ReplyOptions
from kvloom.session.turn import Patience, Question
from kvloom.types import Fidelity, SessionId

if TYPE_CHECKING:
    from kvloom.session.loom import Loom

SYSTEM = "You write short, exact notes."
"""Small models follow a plain system text better than a long one."""


class _Unhurried:
    """Nobody is waited for."""

    def is_interrupted(self) -> bool:
        return False

    def wait(self) -> bool:
        return True


UNHURRIED = _Unhurried()


class Completer:
    """Greedy completions, one at a time. `patience` says when others come first, and when to end."""

    def __init__(self, loom: Loom, patience: Patience = UNHURRIED, system: str = SYSTEM) -> None:
        self._loom = loom
        self._patience = patience
        self._owner = SessionId(f"completion-{uuid.uuid4().hex[:8]}")
        self._runner = loom.runner(self._owner, threading.Event())
        head = loom.prompts.head(system)
        self._manifest = Manifest(fidelity=Fidelity.EXACT, model=loom.engine.fingerprint).with_head(head, system)

    @property
    def num_overhead_tokens(self) -> int:
        """Tokens of the system text and the template around a prompt."""
        return self._manifest.num_tokens + len(self._question("").tokens)

    def __call__(self, prompt: str, max_tokens: int) -> str:
        """The model's answer, without its reasoning. Raises CancelledError where it is to end."""
        options = ReplyOptions.make(None, temperature=0.0, repeat_penalty=1.1)
        return self._runner.complete(self._question(prompt), max_tokens, options, self._patience).answer

    def close(self) -> None:
        """Give back the device. Idempotent."""
        self._runner.close()

    def _question(self, text: str) -> Question:
        manifest, tokens = self._loom.prompts.question(self._manifest, [], text)
        return Question(manifest, text, tokens)

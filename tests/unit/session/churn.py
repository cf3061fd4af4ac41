"""A conversation that is pulled about at random, and what must hold after every step: nothing a caller gave is lost."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from kvloom.context.policies.base import policy_names
from kvloom.errors import CompressionError, ContextOverflowError, NothingToUndoError, SnapshotError, UsageError
from kvloom.session.loom import Loom
from kvloom.session.session import Session
from tests.unit.session.fakes import fake_loom, held_tokens

WINDOW = 512
REFUSALS = (CompressionError, ContextOverflowError, NothingToUndoError, SnapshotError, UsageError)
"""What an operation may answer; the context has to be as before then."""


class Churn:
    """One session of one home, `loom` opened anew at every restart. `given`: every question that was answered."""

    def __init__(self, home: Path, seed: int) -> None:
        self._home = home
        self._random = random.Random(seed)
        self.loom = self._open()
        self.chat: Session = self.loom.session(fidelity=self._random.choice(["exact", "splice"]))
        self.given: set[str] = set()
        self.num_done = 0
        self._operations: list[tuple[int, Callable[[], object]]] = [
            (30, self.ask), (4, self.toggle), (4, self.compress), (2, self.clear), (14, self.undo), (1, self.restart),
            (3, self.choose_policy), (2, self.snapshot), (2, self.restore), (2, self.resize), (2, self.pin),
            (3, self.recall), (1, self.retry), (1, self.recompute), (1, self.cancel), (1, self.move),
        ]  # fmt: skip

    def step(self) -> str:
        """One operation, and the checks behind it; its name."""
        weights = [weight for weight, _ in self._operations]
        _, operation = self._random.choices(self._operations, weights)[0]
        before = (self.chat.tokens(), self.chat.policy, self.chat.window)
        try:
            operation()
        except REFUSALS:
            assert (self.chat.tokens(), self.chat.policy, self.chat.window) == before, operation.__name__
        self.num_done += 1
        self.check(operation.__name__)
        return operation.__name__

    def check(self, name: str) -> None:
        turns = self.chat.history()
        here = {turn.user for turn in turns if not turn.replaces}
        lines = self.chat.ledger()
        lost = self.given - here - {line.text for line in lines if line.kind == "turn"}
        assert not lost, (name, lost)
        assert not {turn.id for turn in turns} & {line.ref for line in lines}, name
        usage = self.chat.usage()
        assert usage.used == len(self.chat.tokens()), name
        assert usage.used <= usage.capacity, name

    def check_device(self) -> None:
        self.chat.warm()
        assert held_tokens(self.loom, self.chat) == self.chat.tokens()

    # -- operations -------------------------------------------------------------------------------------------------

    def ask(self) -> None:
        text = f"question {self.num_done} " + "word " * self._random.randrange(6)
        self.chat.generate(text.strip(), max_tokens=self._random.randrange(1, 6), temperature=0.0)
        self.given.add(text.strip())

    def toggle(self) -> None:
        known = self.chat.manifest.chunk_ids
        if len(known) < 3:
            name = f"note {len(known)}"
            self.chat.activate(self.loom.load_text(f"a note, number {len(known)}", name=name).id)
            return
        chunk = self._random.choice(known)
        if chunk in self.chat.manifest.active_chunk_ids:
            self.chat.deactivate(chunk)
        else:
            self.chat.activate(chunk)

    def move(self) -> None:
        known = self.chat.manifest.chunk_ids
        if known:
            self.chat.move(self._random.choice(known), self._random.randrange(len(known)))

    def compress(self) -> None:
        self.chat.compress(self._random.choice(["truncate", "truncate", "hybrid", "summarize"]))

    def clear(self) -> None:
        turns = self.chat.history()
        if turns and self._random.random() < 0.8:
            self.chat.clear(turns=[self._random.randrange(len(turns)) + 1])
        else:
            self.chat.clear()

    def undo(self) -> None:
        self.chat.undo()

    def retry(self) -> None:
        self.chat.retry(max_tokens=3)

    def recompute(self) -> None:
        self.chat.recompute()

    def choose_policy(self) -> None:
        self.chat.policy = self._random.choice(policy_names())

    def snapshot(self) -> None:
        self.chat.snapshot(f"at {self.num_done}")

    def restore(self) -> None:
        snapshots = self.chat.snapshots()
        if snapshots:
            self.chat.restore(self._random.choice(snapshots).id)

    def resize(self) -> None:
        self.chat.resize(self._random.choice([256, 384, 512, 768]))

    def pin(self) -> None:
        turns = self.chat.history()
        pinned = [turn for turn in turns if turn.is_pinned]
        if len(pinned) > 1:
            self.chat.pin(str(pinned[0].number), False)
        elif turns:
            self.chat.pin(str(self._random.randrange(len(turns)) + 1))

    def recall(self) -> None:
        lines = self.chat.ledger()
        if lines:
            self.chat.recall(self._random.choice(lines).ref)

    def cancel(self) -> None:
        stream = self.chat.stream("a question that nobody waits for", max_tokens=20)
        with stream, suppress(StopIteration):
            next(stream)

    def restart(self) -> None:
        session = self.chat.id
        self.close()
        self.loom = self._open()
        self.chat = self.loom.session(id=session)

    def close(self) -> None:
        self.loom.close()

    def _open(self) -> Loom:
        return fake_loom(self._home, context=WINDOW, reserve_tokens=48, compression={"enabled": False})

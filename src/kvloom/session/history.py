"""One session's history: its manifests, one behind the other, and the texts of its turns, on the log.

Knows no engine and no tiers.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from kvloom.context.manifest import Manifest
from kvloom.errors import NothingToUndoError
from kvloom.session.log import ManifestId, SessionLog
from kvloom.types import SessionId


class TurnRecord(msgspec.Struct, frozen=True):
    """What was asked and said in one turn. The first `num_prompt_tokens` of its slot are the question's."""

    id: str
    user: str
    answer: str
    reasoning: str
    finish_reason: str
    num_prompt_tokens: int
    created: float


class History:
    """The one writer of a session's log; holds its lock until `close`. The caller serialises calls.

    `manifest` is what the session stands at. Raises SessionBusyError where another process writes the session.
    """

    def __init__(self, log: SessionLog, session: SessionId, begin: Callable[[], Manifest]) -> None:
        self._log = log
        self.id = session
        self._writer = log.open_writer(session)
        try:
            self._turns = {key: msgspec.json.decode(body, type=TurnRecord) for key, body in log.turns(session).items()}
            record = log.get(session)
            self.name = record.name
            self.model = record.model
            if record.head:
                self.manifest = self.decode(log.manifest(record.head[0]).body)
            else:
                self.manifest = begin()
                self.append("new", self.manifest)
        except BaseException:
            self._writer.close()
            raise

    def append(self, operation: str, manifest: Manifest, turn: TurnRecord | None = None) -> ManifestId:
        """The next manifest, durable on return; `turn` is the record of a turn that it names first."""
        tokens = {run.digest: run.ids for run in manifest.tokens_by_digest()}
        turns = {turn.id: msgspec.json.encode(turn)} if turn is not None else {}
        number = self._writer.append(operation, manifest.encode(), tokens, turns)
        if turn is not None:
            self._turns[turn.id] = turn
        self.manifest = manifest
        return number

    def undo(self) -> str:
        """Back to the manifest before; what is undone. Raises NothingToUndoError at the first."""
        head = self._log.head(self.id)
        if not head.parent:
            raise NothingToUndoError("nothing to undo: this is the session's first state")
        before = self._writer.undo()
        self.manifest = self.decode(before.body)
        return head.op

    def turn(self, ref: str) -> TurnRecord:
        return self._turns[ref]

    def rename(self, name: str) -> None:
        self._log.rename(self.id, name)
        self.name = name

    def reread(self) -> None:
        """The manifest as the log has it now: after a purge has rewritten it."""
        self.manifest = self.decode(self._log.head(self.id).body)

    def decode(self, body: bytes) -> Manifest:
        return Manifest.decode(body, self._log.tokens)

    def close(self) -> None:
        """Give the session's lock back. Idempotent."""
        self._writer.close()

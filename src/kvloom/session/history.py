"""One session's history: its manifests, one behind the other, the texts of its turns, and its ledger, on the log.

Knows no engine and no tiers.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from kvloom.context.ledger import Ledger, Left
from kvloom.context.manifest import Manifest, Slot
from kvloom.errors import NothingToUndoError
from kvloom.session.log import ManifestId, ManifestRecord, SessionLog
from kvloom.types import SessionId


class TurnRecord(msgspec.Struct, frozen=True):
    """What was asked and said in one turn. The first `num_prompt_tokens` of its slot are the question's.

    `ordinal` counts the session's turns from 1, whatever clocks do. A summary `replaces` the turns of these refs.
    """

    id: str
    user: str
    answer: str
    reasoning: str
    finish_reason: str
    num_prompt_tokens: int
    created: float
    ordinal: int = 0
    replaces: tuple[str, ...] = ()

    @property
    def is_summary(self) -> bool:
        return bool(self.replaces)


class History:
    """The one writer of a session's log; holds its lock until `close`. The caller serialises calls.

    `manifest` is what the session stands at. Raises SessionBusyError where another process writes the session.
    """

    def __init__(self, log: SessionLog, session: SessionId, begin: Callable[[], Manifest]) -> None:
        self._log = log
        self.id = session
        self._writer = log.open_writer(session)
        self._ledger: Ledger[ManifestId] = Ledger()
        self._noted = ManifestId(0)
        try:
            self._turns = {key: msgspec.json.decode(body, type=TurnRecord) for key, body in log.turns(session).items()}
            record = log.get(session)
            self.name = record.name
            self.model = record.model
            if record.head:
                self.head = record.head[0]
                self.manifest = self.decode(log.manifest(self.head).body)
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
        self.manifest, self.head = manifest, number
        return number

    def undo(self) -> str:
        """Back to the manifest before; what is undone. Raises NothingToUndoError at the first."""
        head = self._log.head(self.id)
        if not head.parent:
            raise NothingToUndoError("nothing to undo: this is the session's first state")
        before = self._writer.undo()
        self.manifest, self.head = self.decode(before.body), before.id
        return head.op

    def next_ordinal(self) -> int:
        """For a turn that is made now."""
        return 1 + max((record.ordinal for record in self._turns.values()), default=0)

    def order(self, ref: str) -> int:
        """A turn's place among all turns of the session."""
        return self._turns[ref].ordinal if ref in self._turns else 0

    def newest(self, manifest: Manifest) -> Slot | None:
        """The turn that was made last. Behind it may stand what came back for a question that was undone."""
        return max(manifest.turns, key=lambda slot: self.order(slot.ref), default=None)

    def ledger(self) -> list[Left[ManifestId]]:
        """What was ever given here and is not in the manifest now."""
        for record in self._log.manifests(self.id, after=self._noted):
            parent = record.parent[0] if record.parent else None
            self._ledger.note(record.id, parent, record.op, Manifest.named(record.body))
            self._noted = record.id
        # What somebody took out and a library brought in again stands here, though the ledger was never told so.
        here = set(self.manifest.passages) & set(self.manifest.chunk_ids)
        return [line for line in self._ledger.lines(self.head) if line.named.ref not in here]

    def slots_of(self, line: Left[ManifestId]) -> list[Slot]:
        """What stood for a turn or chunk in the last manifest that held it, with its KV's lineage."""
        return Manifest.decode_slots(self._log.manifest(line.last).body, line.named.ref, self._log.tokens)

    def ancestors(self, limit: int) -> set[ManifestId]:
        """The manifests that the next `limit` undos lead to, and the present one."""
        found, record = {self.head}, self._log.manifest(self.head)
        while record.parent and len(found) <= limit:
            record = self._log.manifest(record.parent[0])
            found.add(record.id)
        return found

    def manifest_record(self, number: ManifestId) -> ManifestRecord:
        return self._log.manifest(number)

    def turn(self, ref: str) -> TurnRecord:
        return self._turns[ref]

    def rename(self, name: str) -> None:
        self._log.rename(self.id, name)
        self.name = name

    def reread(self) -> None:
        """The manifest as the log has it now: after a purge has rewritten it."""
        head = self._log.head(self.id)
        self.manifest, self.head = self.decode(head.body), head.id
        self._ledger, self._noted = Ledger(), ManifestId(0)

    def decode(self, body: bytes) -> Manifest:
        return Manifest.decode(body, self._log.tokens)

    def close(self) -> None:
        """Give the session's lock back. Idempotent."""
        self._writer.close()

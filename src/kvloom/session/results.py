"""Replies that are kept in the home by the digest of what they were made of. Knows no prompt and no model.

Rows of the home's database: one that was written survives `kill -9`, one that was not is computed again.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

from kvloom.chunk.database import Database
from kvloom.errors import StoreError

_LOG = logging.getLogger(__name__)

MAX_RESULTS = 100_000
"""Some 100 MB of replies; the oldest leave, a twentieth at a time."""
_LEAVE_SHARE = 20


class StoredResults:
    """The results of one home. Safe for several threads and processes; a context manager that closes itself.

    A fault is a miss: what cannot be read is computed again, and where nothing can be written any more work goes on
    without being kept (`num_faults` counts both). Raises StoreError where the home cannot be opened.
    """

    def __init__(self, home: Path, *, max_results: int = MAX_RESULTS, clock: Callable[[], float] = time.time) -> None:
        self._db = Database(home)
        self._max, self._clock = max_results, clock
        self.num_faults = 0

    def get(self, key: str) -> str | None:
        try:
            rows = self._db.rows("SELECT reply, checksum FROM results WHERE key = ?", (key,))
        except StoreError as error:
            self._failed(error)
            return None
        if not rows:
            return None
        reply, checksum = rows[0]
        if not isinstance(reply, str) or checksum != _checksum(key, reply):
            self._failed(StoreError(f"result {key[:12]} is damaged"))
            return None
        return reply

    def put(self, key: str, reply: str) -> None:
        """Durable on return, where there is room."""
        # A model's bytes may end in half a character: it is told as a mark, not as an error behind the work.
        reply = reply.encode("utf-8", "replace").decode("utf-8")
        try:
            with self._db.transaction():
                self._db.execute(
                    "INSERT INTO results (key, reply, checksum, created_s) VALUES (?, ?, ?, ?) ON CONFLICT (key) "
                    "DO UPDATE SET reply = excluded.reply, checksum = excluded.checksum",
                    (key, reply, _checksum(key, reply), self._clock()),
                )
                self._make_room()
        except StoreError as error:
            self._failed(error)

    def num_results(self) -> int:
        return int(self._db.rows("SELECT count(*) FROM results")[0][0])

    def clear(self) -> int:
        """Forget everything, and leave no byte of it; how many there were."""
        num = self._db.execute("DELETE FROM results")
        self._db.scrub()
        return num

    def close(self) -> None:
        """Idempotent."""
        self._db.close()

    def __enter__(self) -> StoredResults:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- inside -------------------------------------------------------------------------------------------------

    def _make_room(self) -> None:
        # Numbers rise, so that this needs no count of all rows; a reply that was replaced takes one, too.
        ((span,),) = self._db.rows("SELECT max(number) - min(number) + 1 FROM results")
        if span > self._max:
            self._db.execute(
                "DELETE FROM results WHERE number IN (SELECT number FROM results ORDER BY number LIMIT ?)",
                (max(1, self._max // _LEAVE_SHARE),),
            )

    def _failed(self, error: StoreError) -> None:
        self.num_faults += 1
        if self.num_faults == 1:
            _LOG.warning("results are not kept: %s", error)


def _checksum(key: str, reply: str) -> bytes:
    """A reply under another's key is damage, too."""
    return hashlib.sha256(f"{key}\n{reply}".encode()).digest()

"""The looms of this process that share a home: models side by side over the same chunks, sessions and stored KV.

Knows no loom's inside. A home that another process has open, too, is not seen here.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakSet, WeakValueDictionary

if TYPE_CHECKING:
    from kvloom.session.loom import Loom


class Neighbourhood:
    """The looms over one home. Safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._staying = threading.RLock()
        self._looms: WeakSet[Loom] = WeakSet()

    def join(self, loom: Loom) -> None:
        with self._lock:
            self._looms.add(loom)

    def looms(self) -> list[Loom]:
        """Those whose rooms are open, always in the same order."""
        with self._lock:
            return sorted(self._looms, key=id)

    @contextmanager
    def staying(self) -> Iterator[None]:
        """None of them closes its rooms meanwhile."""
        with self._staying:
            yield

    @contextmanager
    def leaving(self, loom: Loom) -> Iterator[None]:
        """The loom closes its rooms inside. What waits to be written there is written then, and found by a purge."""
        with self._staying:
            try:
                yield
            finally:
                with self._lock:
                    self._looms.discard(loom)


_lock = threading.Lock()
_known: WeakValueDictionary[Path, Neighbourhood] = WeakValueDictionary()


def neighbourhood_of(home: Path) -> Neighbourhood:
    """The one of this home; it lives as long as somebody holds it."""
    place = home.resolve()
    with _lock:
        found = _known.get(place)
        if found is None:
            found = _known[place] = Neighbourhood()
        return found

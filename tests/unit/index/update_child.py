"""Indexes documents in a process of its own, for a test to kill it. Arguments: the index's file, how many documents."""

from __future__ import annotations

import sys
from pathlib import Path

from kvloom.index import LibraryIndex
from tests.unit.index.texts import document, prose


def main() -> None:
    path, num_documents = Path(sys.argv[1]), int(sys.argv[2])
    with LibraryIndex.open(path) as index:
        documents = (document(f"{n}.md", prose(40_000, seed=n)) for n in range(num_documents))
        index.update(documents, lambda progress: print(progress.num_files, flush=True))


if __name__ == "__main__":
    main()

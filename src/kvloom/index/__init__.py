"""DOCUMENTS -> FOUND PASSAGES: cut into passages, kept in one SQLite file a library, searched. Knows no model."""

from kvloom.index.passages import PASSAGE_SIZES, Passage, passages
from kvloom.index.question import asks, is_follow_up, without_common_words
from kvloom.index.store import LibraryIndex
from kvloom.index.values import DocumentInfo, Found, Progress, StoredPassage, Updated
from kvloom.index.vectors import Embedder, Vectors

__all__ = [
    "PASSAGE_SIZES",
    "DocumentInfo",
    "Embedder",
    "Found",
    "LibraryIndex",
    "Passage",
    "Progress",
    "StoredPassage",
    "Updated",
    "Vectors",
    "asks",
    "is_follow_up",
    "passages",
    "without_common_words",
]

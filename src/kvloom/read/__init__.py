"""FILES -> DOCUMENTS: walks folders, decodes, takes the text out of PDF and HTML. Knows no model and no index."""

from kvloom.read.document import Document, DocumentKind, Reading, ReadLimits, Skipped, SkipReason, Unchanged
from kvloom.read.reader import num_files, read

__all__ = [
    "Document",
    "DocumentKind",
    "ReadLimits",
    "Reading",
    "SkipReason",
    "Skipped",
    "Unchanged",
    "num_files",
    "read",
]

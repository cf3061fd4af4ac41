"""FILES -> DOCUMENTS: walks folders, decodes, takes the text out of PDF and HTML. Knows no model and no index."""

from kvloom.read.document import Document, DocumentKind, Extract, Reading, ReadLimits, Skipped, SkipReason, Unchanged
from kvloom.read.extract import extract, extract_plain
from kvloom.read.reader import num_files, read
from kvloom.read.walk import FoundFile

__all__ = [
    "Document",
    "DocumentKind",
    "Extract",
    "FoundFile",
    "ReadLimits",
    "Reading",
    "SkipReason",
    "Skipped",
    "Unchanged",
    "extract",
    "extract_plain",
    "num_files",
    "read",
]

"""Texts and documents to index. Knows no index."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

from kvloom.read import Document, DocumentKind

_SYLLABLES = ["ba", "ke", "li", "mo", "nu", "ra", "se", "ti", "vo", "zu", "pra", "stel", "kor", "min", "dal"]


def document(
    name: str, text: str, folder: Path = Path("/books"), kind: DocumentKind = DocumentKind.MARKDOWN
) -> Document:
    """A document as reading would give it; its path need not be there."""
    data = text.encode()
    return Document(name, folder / name, text, hashlib.sha256(data).hexdigest(), kind, len(data), 1_000)


def prose(num_chars: int, seed: int = 0) -> str:
    """Paragraphs of made-up words, with a heading now and then: about so long."""
    draw = random.Random(seed)
    vocabulary = ["".join(draw.choices(_SYLLABLES, k=draw.choice([1, 2, 2, 3, 4]))) for _ in range(3_000)]
    weights = [1 / (rank + 3) for rank in range(len(vocabulary))]
    parts: list[str] = []
    length = 0
    while length < num_chars:
        if draw.random() < 0.1:
            part = f"## {' '.join(draw.choices(vocabulary, weights, k=3))}\n\n"
        else:
            part = " ".join(draw.choices(vocabulary, weights, k=draw.randint(15, 120))).capitalize() + ".\n\n"
        parts.append(part)
        length += len(part)
    return "".join(parts)

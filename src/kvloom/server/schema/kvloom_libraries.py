"""Shapes of kvloom's own API for libraries: documents, what is found in them, what a session looks up. No endpoint."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from kvloom.server.schema.base import RequestModel
from kvloom.server.schema.kvloom import CHUNK_ID, Label, View
from kvloom.types import TierName

MAX_LIBRARIES = 32
"""Of a tenant: listing them opens each, and a question may search all that are attached."""

MAX_LIBRARY_CHARS = 64
"""Of a library's name: in its file's name a character may take nine bytes more."""

MAX_DOCUMENTS = 10_000
"""Of a library: listing them stays a matter of milliseconds."""

MAX_QUESTION_CHARS = 8192
MAX_FOUND = 50
MIN_COMPUTED, MAX_COMPUTED = 2048, 1_000_000
"""Tokens of one call of `precompute`: a passage fits the least, the most is hours of a small machine."""
DEFAULT_COMPUTED = 16_384

LibraryName = Annotated[str, Field(min_length=1, max_length=MAX_LIBRARY_CHARS, pattern=r"^[^\x00-\x1f\x7f/]*[^./]$")]
"""One line without a slash, so that it can stand in a path of the API. It is a name: nothing is opened by it."""

AnyLibrary = Annotated[str, Field(min_length=1, max_length=256)]
"""A library's name, of one that the command line made too."""


def _example(**fields: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [fields]})


# --- libraries -------------------------------------------------------------------------------------------------------


class LibraryCreate(RequestModel):
    model_config = _example(name="books")

    name: LibraryName


class LibraryView(View):
    """`is_adhoc`: made by a question about files on the command line. `is_damaged`: it can only be deleted."""

    name: str
    num_documents: int
    num_passages: int
    size_bytes: int
    is_adhoc: bool
    is_damaged: bool = False


class LibraryPage(View):
    object: Literal["list"] = "list"
    data: list[LibraryView]
    has_more: bool = Field(description="ask again with `after` set to the last one's name")


# --- documents -------------------------------------------------------------------------------------------------------


class DocumentUpload(RequestModel):
    """A document's text, which is taken as it is. A name that is there already gets the new text."""

    model_config = _example(name="harbour.md", text="# Varnholm\n\nThe lighthouse keeper is called Ottokar.\n")

    name: Label
    text: str = Field(min_length=1)


class DocumentView(View):
    """A document of a library. `digest`: the SHA-256 of its bytes. `note`: what was done to read it, if anything."""

    name: str
    kind: str
    digest: str
    size_bytes: int
    num_passages: int
    note: str


class AddedDocument(View):
    """A document as it stands now. `is_changed`: it was known, with another content."""

    library: str
    document: DocumentView
    is_new: bool
    is_changed: bool
    num_passages_added: int
    num_passages_kept: int
    num_passages_removed: int


class DocumentPage(View):
    object: Literal["list"] = "list"
    data: list[DocumentView]
    has_more: bool = Field(description="ask again with `after` set to the last one's name")


class RemovedDocument(View):
    library: str
    name: str
    deleted: Literal[True] = True


# --- searching and computing -----------------------------------------------------------------------------------------


class SearchRequest(RequestModel):
    model_config = _example(question="Who keeps the lighthouse of Varnholm?", limit=5)

    question: str = Field(min_length=1, max_length=MAX_QUESTION_CHARS)
    limit: int | None = Field(None, ge=1, le=MAX_FOUND, description="default: 8")


class FoundPassage(View):
    """A passage that has to do with the question; lines count from 1, both included.

    `score` compares it with others of this search, `coverage` is the share of the question's weight that its `words`
    make. `id`: of the chunk with this text, once a question or `precompute` has made one of it.
    """

    id: str = Field(examples=[CHUNK_ID])
    document: str
    first_line: int
    last_line: int
    heading: str
    text: str
    score: float
    coverage: float
    words: list[str]
    similarity: float | None = Field(None, description="Cosine of its vector and the question's; null without vectors.")


class FoundList(View):
    """The best first; empty where no passage has a word of the question."""

    object: Literal["list"] = "list"
    data: list[FoundPassage]


class PrecomputeRequest(RequestModel):
    """`{}` takes the default."""

    model_config = _example(max_tokens=DEFAULT_COMPUTED)

    max_tokens: int | None = Field(
        None,
        ge=MIN_COMPUTED,
        le=MAX_COMPUTED,
        description=f"computed by this call at most, and set aside of the key's limits meanwhile; "
        f"default: {DEFAULT_COMPUTED:,}",
    )


class PrecomputedView(View):
    """What this call did. Where it is not complete, ask again: the next call goes on behind it."""

    num_passages: int
    num_computed: int
    num_known: int
    computed_tokens: int
    is_complete: bool
    num_too_long: int


# --- sessions --------------------------------------------------------------------------------------------------------


class LibraryRefs(RequestModel):
    model_config = _example(libraries=["books"])

    libraries: list[AnyLibrary] = Field(min_length=1, max_length=MAX_LIBRARIES)


class LookupChange(RequestModel):
    model_config = _example(recalls=False)

    recalls: bool = Field(description="whether questions are looked up in the attached libraries")


class AttachedLibraries(View):
    """The names of the libraries that every question of a session is looked up in, while `recalls`."""

    session: str
    libraries: list[str]
    recalls: bool


class SourceView(View):
    """A passage that stood in the window for a reply: `document`, lines `first_line` to `last_line`, of `library`.

    `chunk` is its id, `tier` where its KV was when the question came; `restore_s` what bringing it was expected to
    take (null: nothing was measured yet).
    """

    library: str
    document: str
    first_line: int
    last_line: int
    heading: str
    chunk: str = Field(examples=[CHUNK_ID])
    name: str
    score: float
    coverage: float
    words: list[str]
    similarity: float | None = Field(None, description="Cosine of its vector and the question's; null without vectors.")
    num_tokens: int
    tier: TierName
    restore_s: float | None

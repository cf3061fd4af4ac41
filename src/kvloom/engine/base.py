"""The engine seam: runs a model on token ids, positions, sequence ids and bytes. Knows no text, messages or files.

A new engine is one new package beside this file that implements `Engine`. All methods raise `EngineError` or a
subclass; none is thread-safe: the owner serialises calls.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from enum import Enum

from kvloom.errors import EngineUnsupportedError
from kvloom.types import (
    F32Array,
    I32Array,
    KVLayout,
    KVRows,
    KVType,
    ModelFingerprint,
    RopeSpec,
    SamplingParams,
    SequenceId,
    U8Array,
)


class Logits(Enum):
    """Which rows of a run's logits are wanted."""

    NONE = "none"
    LAST = "last"
    ALL = "all"


@dataclass(frozen=True)
class Capabilities:
    """What a plan may ask of an engine. `prefill_quantum`: rows from which the fast prefill path is taken."""

    can_move_kv: bool
    can_rotate: bool
    kv_types: tuple[KVType, ...]
    max_sequences: int
    prefill_quantum: int
    why_not: str = ""


@dataclass(frozen=True)
class Run:
    """Tokens to decode in one sequence at consecutive positions.

    `start` must be the sequence's `last_position + 1`, or anything where the sequence is empty.
    """

    sequence: SequenceId
    tokens: Sequence[int]
    start: int
    logits: Logits = Logits.NONE


@dataclass(frozen=True)
class PlacedRows:
    """Rows to write and the position of the first. They are at it already, or whoever lays them turns them to it."""

    rows: KVRows
    position: int


RowLayer = Callable[[Sequence[tuple[KVRows, int]], Sequence[U8Array], Sequence[U8Array]], None]
"""`lay(parts, k_views, v_views)`: write every (rows, position), turned to its position, one behind the other.

A layer's view is a contiguous (all tokens, row_bytes) uint8 array of memory that the engine owns; the views are valid
during the call only. So a rotation needs no buffer of its own. An exception leaves the engine's sequences as they were.
"""


class Sampler(ABC):
    """Chooses tokens with the engine's own samplers. Owned by one reply; `close` frees native memory."""

    @abstractmethod
    def sample(self, logits: F32Array) -> int:
        """The next token id for `logits` (vocab_size,); also accepts it (penalties)."""

    @abstractmethod
    def close(self) -> None: ...


class Vocabulary(ABC):
    """The loaded model's vocabulary: bytes to ids and back. The text room builds on it."""

    @property
    @abstractmethod
    def size(self) -> int: ...

    @property
    @abstractmethod
    def is_spm(self) -> bool:
        """Whether the tokenizer is SentencePiece-like (adds a space in front of a text)."""

    @property
    @abstractmethod
    def bos(self) -> int | None:
        """The BOS id if this model's prompts start with it, else None."""

    @property
    @abstractmethod
    def bos_text(self) -> str:
        """The text of BOS for chat templates, even where prompts do not start with it ("" if there is none)."""

    @property
    @abstractmethod
    def eos_text(self) -> str: ...

    @property
    @abstractmethod
    def chat_template(self) -> str | None:
        """The jinja2 source that the model file carries."""

    @abstractmethod
    def is_end(self, token: int) -> bool:
        """Whether the token ends a reply (any end-of-generation token)."""

    @abstractmethod
    def is_control(self, token: int) -> bool: ...

    @abstractmethod
    def tokenize(self, text: bytes, *, parse_special: bool) -> list[int]:
        """Ids of `text`; never adds BOS or EOS. With `parse_special` False, `<|im_end|>` is plain text."""

    @abstractmethod
    def token_bytes(self, token: int, *, special: bool) -> bytes:
        """The bytes a token stands for; control tokens are empty unless `special`."""

    def tokenize_whole(self, text: bytes) -> list[int]:
        """Ids of a text that stands alone, framed as the model wants one (BOS, EOS); `<|im_end|>` is plain text."""
        head = [] if self.bos is None else [self.bos]
        return head + self.tokenize(text, parse_special=False)


class Embedder(ABC):
    """Makes vectors of texts, in native memory of its own beside the cells. Used by one thread at a time."""

    num_bytes: int
    """What it takes, as forecast."""
    max_tokens: int
    """The longest text."""

    @abstractmethod
    def embed(self, texts: Sequence[Sequence[int]]) -> Generator[list[F32Array], None, None]:
        """The texts' vectors in order, of length 1 each; every `next()` computes one native batch and gives those that
        it has completed (there may be none). Not to be begun again before it has ended or was closed."""

    @abstractmethod
    def close(self) -> None:
        """Free the native memory. Idempotent."""


class Engine(ABC):
    """One loaded model and its native KV cells."""

    capabilities: Capabilities
    fingerprint: ModelFingerprint
    layout: KVLayout
    rope: RopeSpec
    vocabulary: Vocabulary
    num_cells: int
    """Native cells: the most tokens that all sequences together may hold."""
    train_context: int
    """The length the model was trained for, RoPE scaling included."""
    uses_accelerator: bool
    """Whether layers and cells are on a GPU: its memory is what runs short then."""
    sink_token: int
    """The one fixed token behind which chunks are computed alone (see `Lineage`)."""

    @abstractmethod
    def decode(self, runs: Sequence[Run]) -> list[F32Array | None]:
        """Compute the runs, all in as few native batches as fit; logits per run: (vocab,) LAST, (n, vocab) ALL.

        Cuts long runs at multiples of `prefill_quantum` and pads short prefills to it; padding never stays in the
        cache. Raises EngineMemoryError when no cells are free (nothing of the call stays), EngineStateError when a
        run does not start where its sequence ends. Interruptible between native batches only (KeyboardInterrupt).
        """

    @abstractmethod
    def copy(self, source: SequenceId, target: SequenceId, start: int, stop: int) -> None:
        """Let `target` share the cells of `source` with start ≤ position < stop. No bytes are copied."""

    @abstractmethod
    def remove(self, sequence: SequenceId, start: int = 0, stop: int | None = None) -> None:
        """Take positions start ≤ p < stop out of a sequence; cells that no sequence holds become free."""

    @abstractmethod
    def last_position(self, sequence: SequenceId) -> int | None:
        """The highest position held, None for an empty sequence."""

    @abstractmethod
    def num_tokens(self, sequence: SequenceId) -> int:
        """Tokens that a sequence holds; shared ones too."""

    @abstractmethod
    def read(self, sequence: SequenceId, start: int = 0, stop: int | None = None) -> tuple[I32Array, KVRows]:
        """(positions ascending (n,), rows in that order) of start ≤ position < stop; `first_position` is positions[0].

        The caller slices entries out: rows of a sequence with holes are still valid row by row. Reading a range costs
        the range only.
        """

    @abstractmethod
    def write(self, sequence: SequenceId, parts: Sequence[PlacedRows], lay: RowLayer | None = None) -> None:
        """Replace a whole sequence by `parts`, in one native call; their position ranges must not overlap.

        `lay` writes K and V rows straight into the state buffer, turned to their positions. Without it the rows must
        have been computed at the positions where they are wanted (EngineStateError otherwise) and are copied.
        """

    @abstractmethod
    def sampler(self, params: SamplingParams) -> Sampler: ...

    @property
    def has_embeddings(self) -> bool:
        """Whether `embedder` gives one."""
        return False

    def embedder_bytes(self, max_tokens: int) -> int:  # noqa: ARG002 - an engine that has none needs no number
        """What an embedder for texts of so many tokens will take: asked before it is made. Raises as `embedder`."""
        raise EngineUnsupportedError(f"{type(self).__name__} makes no embeddings")

    def embedder(self, max_tokens: int) -> Embedder:  # noqa: ARG002 - as above
        """Another context over the same weights, which the caller closes before the engine.

        It computes on the same cores: no `decode` may run meanwhile. Raises EngineUnsupportedError where the model
        makes no embeddings, EngineMemoryError where the context cannot be had.
        """
        raise EngineUnsupportedError(f"{type(self).__name__} makes no embeddings")

    @abstractmethod
    def used_cells(self) -> int:
        """Cells that some sequence holds, by our own books; a cell shared by several sequences counts once."""

    @abstractmethod
    def resize(self, num_cells: int) -> None:
        """Another number of cells for the same weights; every sequence is empty afterwards.

        The old cells are given back before the new ones are asked for. Where these cannot be had the old number comes
        back, empty too, and EngineMemoryError says so. 0 gives all cells back: nothing can be computed until a resize.
        """

    @abstractmethod
    def close(self) -> None:
        """Free the native memory. Idempotent."""

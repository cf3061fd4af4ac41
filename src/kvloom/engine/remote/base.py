"""The seam of the endpoints: what is asked of one, what comes back. Knows messages and counts, no HTTP and no session.

A new kind of endpoint is one file beside this that implements `Endpoint`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

from kvloom.errors import EngineUnsupportedError
from kvloom.types import SamplingParams

STANDARD_SAMPLING = frozenset({"temperature", "top_p", "seed"})
"""What every OpenAI-compatible endpoint takes. Others refuse what they do not know."""
ALL_SAMPLING = STANDARD_SAMPLING | {"top_k", "min_p", "repeat_penalty"}


@dataclass(frozen=True)
class ChatMessage:
    """`role`: system, user or assistant. `broken`: words of the content that were changed so that they stay text."""

    role: str
    content: str = field(repr=False)
    broken: tuple[str, ...] = ()

    def wire(self) -> dict[str, str]:
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True)
class ChatRequest:
    """One question with everything before it. `num_prompt_tokens`: what we count the prompt to, for error messages."""

    messages: tuple[ChatMessage, ...]
    max_tokens: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[str, ...] = ()
    num_prompt_tokens: int = 0
    window: int = 0


@dataclass(frozen=True)
class Piece:
    """Text of a reply as it streams."""

    text: str = ""
    reasoning: str = ""


@dataclass(frozen=True)
class Ending:
    """How a reply ended. A count of 0: the endpoint did not say.

    `cached_tokens` of the prompt were not computed again; `reasoning_tokens` are part of `completion_tokens`.
    `load_s`: seconds that the server took to load the model for this reply.
    """

    finish_reason: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    load_s: float = 0.0


@dataclass(frozen=True)
class ModelFacts:
    """What the endpoint says of its model. A number of 0 or an empty text: it does not say.

    `window`: tokens that it serves now; `max_window`: the most that it can be asked for. `digest`: of the weights.
    `bos_text` opens every prompt where it is not "". `server`: what answers there, in words. `marks`: words that its
    template writes around messages, where `chat_template` is not the one that it uses.
    """

    model: str
    server: str
    window: int = 0
    max_window: int = 0
    digest: str = ""
    chat_template: str = ""
    bos_text: str = ""
    eos_text: str = ""
    marks: tuple[str, ...] = ()


IsCancelled = Callable[[], bool]


class Endpoint(ABC):
    """One model at one address. Safe for several threads. All methods raise EngineError or ModelNotFoundError."""

    facts: ModelFacts
    where: str
    """The address, for messages."""
    counts_exactly: bool = False
    """Whether `count` and `count_messages` can be asked."""
    is_resizable: bool = False
    """Whether `resize` can ask for another window."""
    sampling: frozenset[str] = STANDARD_SAMPLING
    """Fields of SamplingParams that it understands."""

    @abstractmethod
    def chat(self, request: ChatRequest, is_cancelled: IsCancelled) -> Generator[Piece | Ending, None, None]:
        """The reply in pieces, an Ending last. Closing it ends the request; the server stops computing.

        Raises CancelledError soon after `is_cancelled` says so, ContextOverflowError with the numbers where the server
        refuses the prompt for its length, EngineError where the stream breaks before its end.
        """

    def count(self, text: str, *, is_template: bool) -> int:
        """The exact number of tokens of `text`; special tokens are tokens where the template wrote it."""
        raise NotImplementedError

    def count_messages(self, messages: tuple[ChatMessage, ...]) -> int:
        """The exact number of tokens of the whole prompt, by the server's own template."""
        raise NotImplementedError

    def prompt(self, messages: tuple[ChatMessage, ...]) -> str:
        """What the server makes of the messages. Raises EngineUnsupportedError where it does not tell."""
        raise NotImplementedError

    def metadata(self) -> tuple[dict[str, object], int]:
        """The metadata of the model's GGUF and the bytes of its file. Raises EngineUnsupportedError where it tells
        neither."""
        raise EngineUnsupportedError(f"{self.where} does not tell the shape of its model")

    def resize(self, window: int) -> None:
        """Ask for another window from the next request on."""
        raise NotImplementedError

    def reload_reason(self, window: int) -> str:
        """Why a window of this size makes the server load the model again; "" where it does not."""
        del window
        return ""

    @abstractmethod
    def close(self) -> None:
        """End the connections. Idempotent."""

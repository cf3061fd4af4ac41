"""How much a session may hold, and what makes room: its window, its policy, its compression, and who is told in time.

Part of `Session`, which makes what is declared here. Writes the next manifest; knows no snapshot and no reply.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from kvloom.context.policies.base import find_policy
from kvloom.errors import UsageError
from kvloom.session.budget import Budget
from kvloom.session.compression import Compression
from kvloom.session.desk import Desk
from kvloom.session.least_window import least_window, short_turn
from kvloom.session.values import CompressionEstimate, CompressionResult, Overflow, ProgressCallback, Threshold
from kvloom.session.watch import Watch

if TYPE_CHECKING:
    from kvloom.session.loom import Loom


class SessionWindow:
    """The window side of a session."""

    loom: Loom
    _desk: Desk
    _budget: Budget
    _compression: Compression
    _watch: Watch

    @property
    def window(self) -> int:
        """The most tokens that this context may hold, the reply included."""
        return self._budget.window()

    @property
    def policy(self) -> str:
        """What leaves the window when it overflows: see `kvloom.policies()`."""
        return self._budget.policy_name()

    @policy.setter
    def policy(self, name: str) -> None:
        find_policy(name)
        with self._desk.editing():
            self._desk.commit(f"policy {name}", replace(self._desk.manifest, policy=name))

    def resize(self, num_tokens: int | None) -> int:
        """A window of another size; None takes what memory allows. The window now.

        The model stays loaded, the conversation as it is; running replies of this loom wait. Raises UsageError below
        what is used and what a short turn takes (with the numbers), EngineMemoryError where the memory is not there:
        the old size stays.
        """
        with self._desk.editing():
            wanted = self.loom.automatic_window() if num_tokens is None else num_tokens
            used = self._desk.manifest.num_tokens
            least = least_window(used)
            if num_tokens is not None:
                short = short_turn(self.loom, self._desk.manifest.system)
                if wanted < short.least > least:
                    raise short.refusal(wanted)
            if wanted < least:
                raise UsageError(
                    f"a window of {wanted} tokens cannot hold the {used} in use and a reply: give {least} or more, or "
                    "make the context smaller first (compress it, switch chunks off, clear turns)"
                )
            self.loom.ensure_window(wanted)
            self._desk.snapshot_before("resize")
            self._desk.commit(f"resize {wanted}", replace(self._desk.manifest, window=wanted))
            self.loom.shrink_pool()
            return self._budget.window()

    def resize_notice(self, num_tokens: int | None) -> str:
        """What a resize would cost, to be said before it; "" where the model stays loaded."""
        del num_tokens
        return ""

    def compress(
        self, strategy: str | None = None, *, dry_run: bool = False, progress: ProgressCallback | None = None
    ) -> CompressionResult | CompressionEstimate:
        """Old turns become a summary (`hybrid`, `summarize`) or leave (`truncate`); the ledger keeps them.

        `dry_run` only estimates. Raises CompressionError where there is nothing to compress or it gains too little.
        """
        self._compression.stop()
        with self._desk.editing():
            if dry_run:
                return self._compression.estimate(strategy)
            self._desk.cancel.clear()
            return self._compression.compress(strategy, progress)

    @property
    def is_compressing(self) -> bool:
        """Whether a compression runs in the background."""
        return self._compression.is_running

    def wait_for_compression(self, timeout_s: float | None = None) -> bool:
        """Until the compression in the background has ended; False where it has not in time."""
        return self._compression.wait(timeout_s)

    def on_threshold(self, share: float, callback: Callable[[Threshold], object]) -> Callable[[], None]:
        """Call `callback` when the context passes `share` of what it may hold; returns what ends that."""
        return self._watch.on_threshold(share, callback)

    def on_before_overflow(self, callback: Callable[[Overflow], object]) -> Callable[[], None]:
        """Call `callback` before a question that does not fit is refused or makes room; returns what ends that."""
        return self._watch.overflow.subscribe(callback)

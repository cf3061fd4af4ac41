"""What one of several models of a process may take: its window and tiers, within its own limits and beside the others.

Reads a model's header, loads nothing. How much the others hold is said by whoever holds them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from kvloom.config import Settings
from kvloom.engine.cores import CORES
from kvloom.errors import ConfigError, EngineMemoryError, ModelFormatError, ModelNotFoundError
from kvloom.memory.guard import below_share
from kvloom.memory.reading import MemoryReading
from kvloom.memory.sizing import WINDOW_STEP, Demand, Sizing, window_ceiling
from kvloom.model.footprint import Footprint, largest_fitting
from kvloom.model.header import read_header
from kvloom.model.hf_config import read_hf_model
from kvloom.session.loom import Loom
from kvloom.session.pool import CELL_STEP, num_cells
from kvloom.session.reply_forms import tool_form
from kvloom.session.rooms import reading_now
from kvloom.session.sizing import demand_of, limits_of, opening_window, shared_pool

__all__ = ["ModelFacts", "ModelLimits", "ModelPlan", "Others", "Planner", "read_facts", "share_cores"]

MIB = 1024**2
CELLS_SHARE = 0.5
"""An automatic window takes at most this part of the RAM that KV may take: stored entries need some, too."""


@dataclass(frozen=True)
class ModelLimits:
    """A person's limits for one model; None: none. `max_ram_bytes`: weights, buffers and KV. `kv_ram_bytes`: the native
    cells and the stored entries in RAM, together."""

    max_ram_bytes: int | None = None
    kv_ram_bytes: int | None = None


@dataclass(frozen=True)
class ModelFacts:
    """What a model's files say of it. `longest`: tokens it was trained for, 0 where no file tells.

    `sliding_window`: of its attention, 0 where it has none; it is no policy of ours.
    """

    longest: int = 0
    sliding_window: int = 0
    tool_form: str = ""


@dataclass(frozen=True)
class Others:
    """The other models of the process. `held_bytes`: what the loaded ones take, as forecast; `waiting_bytes`: what the
    others would take at least."""

    held_bytes: int = 0
    waiting_bytes: int = 0
    num_models: int = 0


@dataclass(frozen=True)
class ModelPlan:
    """`settings` to open the model with (window and tiers set), and the memory it will take, as forecast."""

    settings: Settings
    needed_bytes: int


class Planner:
    """Plans one model. Made from its file, before it is loaded.

    `read`: the memory that the model goes to, as it is now; None where nobody can tell.
    """

    def __init__(
        self,
        path: Path,
        settings: Settings,
        limits: ModelLimits,
        config: Path | None = None,
        read: Callable[[Settings], MemoryReading | None] = reading_now,
    ) -> None:
        """Raises ModelError where the file cannot be read."""
        header = read_header(path)
        facts = read_facts(path, config)
        demand = demand_of(header.shape, header.weights.total_bytes, settings)
        if not demand.shape.context_length and facts.longest and settings.context is None:
            longest = min(facts.longest, settings.context_max or facts.longest)
            least = min(settings.context_min, longest)
            settings = settings.model_copy(update={"context_max": longest, "context_min": least})
        self.facts = facts
        self._settings = settings
        self._limits = limits
        self._demand: Demand = demand
        self._read = read

    @property
    def least_bytes(self) -> int:
        """What the model takes with the smallest window it may have."""
        return self._demand.total_bytes(self._least_window)

    @property
    def longest_window(self) -> int:
        """The window, if memory were no matter."""
        return self._settings.context or window_ceiling(self._demand.shape, limits_of(self._settings))

    def check_limits(self) -> None:
        """Raises ConfigError where the model's own limits leave no room for its smallest window."""
        least = self._least_window
        if self._fits_limits(least):
            return
        kv = self._demand.footprint(least).kv_bytes
        raise ConfigError(
            f"a window of {least:,} tokens needs {_mib(self.least_bytes)} in RAM, {_mib(kv)} of it for KV; allowed are"
            f" {_mib(self._limits.max_ram_bytes)} (max_ram_mb) and {_mib(self._limits.kv_ram_bytes)} for KV"
            " (kv_cache_ram_mb): raise them, or set a smaller context or another kv_type"
        )

    def most_bytes(self, others: Others, budget_bytes: int | None) -> int | None:
        """What all models together may take; None where nothing limits it but what `plan` finds free: of a model alone,
        a window that was asked for may pass the guard's soft limit."""
        if not others.num_models and budget_bytes is None:
            return None
        reading = self._read(self._settings)
        total = None if reading is None else below_share(reading.total_bytes, self._settings.guard.soft)
        return min((limit for limit in (budget_bytes, total) if limit is not None), default=None)

    def plan(self, others: Others, budget_bytes: int | None, num_replies: int = 1) -> ModelPlan:
        """A plan for now, beside the others. Raises EngineMemoryError where there is no room now.

        Cells for `num_replies` windows are taken of what neither one window nor the others need.

        What others hold counts as forecast as well as measured: the weights of a mapped file look like free memory.
        """
        self.check_limits()
        most = self.most_bytes(others, budget_bytes)
        left = None if most is None else most - others.held_bytes
        window = self._window(left)
        chosen = self._settings
        if chosen.context is None:
            least = min(chosen.context_min, window)
            chosen = chosen.model_copy(update={"context_max": window, "context_min": least})
        sizing = opening_window(chosen, self._demand, self._read(chosen))
        spare = [sizing.budget_bytes] if sizing.budget_bytes else []
        spare += [left] if left is not None else []
        cells = self._cells(sizing, num_replies, min(spare, default=None), others)
        found = self._with(cells, sizing.context)
        changed = {
            "context": sizing.context,
            "pool_tokens": cells if cells > sizing.num_cells else 0,
            "ram_budget_bytes": self._entries_bytes(found),
        }
        return ModelPlan(chosen.model_copy(update=changed), found.total_bytes)

    # -- inside -------------------------------------------------------------------------------------------------

    @property
    def _least_window(self) -> int:
        return self._settings.context or min(self._settings.context_min, self.longest_window)

    def _window(self, left_bytes: int | None) -> int:
        """The largest window within the limits and `left_bytes`."""
        least, most = self._least_window, self.longest_window

        def fits(window: int) -> bool:
            is_in_memory = left_bytes is None or self._demand.total_bytes(window) <= left_bytes
            return is_in_memory and self._fits_limits(window)

        if not fits(least):
            raise EngineMemoryError(
                f"a window of {least:,} tokens needs {_mib(self.least_bytes)}; {_mib(max(0, left_bytes or 0))} are left"
                " of what the models of this server may take"
            )
        return max(least, largest_fitting(fits, most, WINDOW_STEP))

    def _fits_limits(self, window: int) -> bool:
        return self._is_allowed(self._demand.footprint(window), is_least=window <= self._least_window)

    def _cells(self, sizing: Sizing, num_replies: int, left_bytes: int | None, others: Others) -> int:
        """Native cells: those of the window, and more for other replies."""
        wanted = self._settings.pool_tokens or num_replies * sizing.context
        if wanted <= sizing.num_cells:
            return sizing.num_cells
        most = None
        if left_bytes is not None:
            spare = max(0, left_bytes - sizing.needed_bytes)
            # Where not all models fit at once, each takes its part of what is over.
            part = spare // (others.num_models + 1)
            most = sizing.needed_bytes + max(part, spare - others.waiting_bytes)

        def fits(cells: int) -> bool:
            found = self._with(cells, sizing.context)
            return self._is_allowed(found, is_least=False) and (most is None or found.total_bytes <= most)

        return max(sizing.num_cells, largest_fitting(fits, wanted, CELL_STEP))

    def _with(self, cells: int, window: int) -> Footprint:
        if cells > num_cells(window):
            return shared_pool(self._demand, cells).footprint(window)
        return replace(self._demand, num_cells=lambda _: cells).footprint(window)

    def _is_allowed(self, found: Footprint, *, is_least: bool) -> bool:
        limits = self._limits
        # Entries in RAM may have to do with nothing where the window was asked for, or can be no smaller.
        share = 1.0 if is_least else CELLS_SHARE
        if limits.kv_ram_bytes is not None and found.kv_bytes > share * limits.kv_ram_bytes:
            return False
        return limits.max_ram_bytes is None or found.total_bytes <= limits.max_ram_bytes

    def _entries_bytes(self, found: Footprint) -> int:
        """The RAM tier: what the settings give, within what the limits leave."""
        limits = self._limits
        left = [int(self._settings.ram_budget_bytes)]
        if limits.kv_ram_bytes is not None:
            left.append(limits.kv_ram_bytes - found.kv_bytes)
        if limits.max_ram_bytes is not None:
            left.append(limits.max_ram_bytes - found.total_bytes)
        return max(0, min(left))


def read_facts(path: Path, config: Path | None = None) -> ModelFacts:
    """From the GGUF's header; what it does not say from a Hugging Face `config.json`. Raises ModelError."""
    header = read_header(path)
    longest, window = header.shape.context_length, header.shape.sliding_window or 0
    if config is not None and not (longest and window):
        try:
            published = read_hf_model(config).shape
        except (ModelFormatError, ModelNotFoundError):
            if not longest:
                raise
        else:
            longest, window = longest or published.context_length, window or published.sliding_window or 0
    return ModelFacts(longest, window, tool_form(header.chat_template or ""))


def share_cores(loom: Loom) -> None:
    """From now on this model computes in turns with the others of the process that do, in bounded steps."""
    loom.device.batcher.cores = CORES


def _mib(num_bytes: int | None) -> str:
    return "any number of MiB" if num_bytes is None else f"{num_bytes / MIB:,.0f} MiB"

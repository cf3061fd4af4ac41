"""Which window a model is opened with, and how far it may grow: the memory room's sums over this machine's readings.

The same answer is given by `kvloom fit` and used here.
"""

from __future__ import annotations

from dataclasses import replace

from kvloom.config import Settings
from kvloom.memory.reading import MemoryPicture, MemoryReading
from kvloom.memory.sizing import Bound, Demand, Room, Sizing, SizingLimits, auto_size, explicit_size, window_ceiling
from kvloom.model.footprint import CacheSpec, largest_fitting
from kvloom.model.shape import ModelShape
from kvloom.session.pool import ASIDE_CELLS, CELL_STEP, num_cells
from kvloom.types import KVType


def limits_of(settings: Settings) -> SizingLimits:
    return SizingLimits(
        target=settings.context_target,
        minimum=settings.context_min,
        maximum=settings.context_max,
        reserve_bytes=settings.memory_reserve_bytes,
        soft_share=settings.guard.soft,
    )


def demand_of(shape: ModelShape, weights_bytes: int, settings: Settings) -> Demand:
    """What a window costs with these settings; RoPE scaling stretches the trained length as the engine has it."""
    trained = shape.context_length
    if settings.rope.freq_scale:
        trained = max(1, round((settings.rope.yarn_orig_context or trained) / settings.rope.freq_scale))
    spec = CacheSpec(k_type=settings.k_type, v_type=settings.v_type, num_sequences=settings.max_sequences + 1)
    return Demand(replace(shape, context_length=trained), weights_bytes, spec, num_cells)


def reading_for(picture: MemoryPicture, *, on_accelerator: bool) -> MemoryReading | None:
    """The memory that a model goes to: the fullest accelerator where layers are on GPUs, else the host's."""
    if on_accelerator and picture.accelerators:
        return min(picture.accelerators, key=lambda reading: reading.available_bytes)
    return picture.host


def opening_window(settings: Settings, demand: Demand, reading: MemoryReading | None) -> Sizing:
    """The window to open with: the one that was asked for, else the automatic one.

    Raises EngineMemoryError where memory cannot hold it, before anything is loaded: the system would hand out memory
    that is not there, and kill the process when it is used. Without a reading the limits alone decide.
    """
    return window_for(settings, demand, Room.of(reading) if reading is not None else None)


def window_for(settings: Settings, demand: Demand, room: Room | None) -> Sizing:
    """The same for a room that is known already, or is only assumed. Raises as `opening_window` does."""
    limits = limits_of(settings)
    if settings.context is not None:
        if room is None:
            return _unmeasured(settings.context, Bound.EXPLICIT, demand)
        return explicit_size(settings.context, demand, room, limits)
    if room is not None and settings.context_auto:
        return auto_size(demand, room, limits)
    window = window_ceiling(demand.shape, limits)
    if room is None:
        return _unmeasured(window, Bound.TARGET, demand)
    # As it is, unless memory cannot hold it at all.
    found = explicit_size(window, demand, room, limits)
    return replace(found, bound=Bound.TARGET, reason="the target, within what the model was trained for")


def shared_pool(demand: Demand, cells: int) -> Demand:
    """What a pool for several replies costs: its cells, and the context for prefills beside it."""
    spec, beside = demand.spec, None
    if (spec.k_type, spec.v_type) == (KVType.F16, KVType.F16):
        beside = replace(spec, num_cells=ASIDE_CELLS, num_sequences=2, num_output_rows=2)
    return replace(demand, num_cells=lambda _: cells, beside=beside)


def pool_tokens(wanted: int, demand: Demand, sizing: Sizing) -> int:
    """Cells that all may share beside a window that was chosen: as many as are wanted, where the budget has them."""
    least = num_cells(sizing.context)
    if wanted <= least or not sizing.budget_bytes:
        return wanted if wanted > least else 0

    def fits(cells: int) -> bool:
        return shared_pool(demand, cells).total_bytes(sizing.context) <= sizing.budget_bytes

    found = largest_fitting(fits, wanted, CELL_STEP)
    return found if found > least else 0


def _unmeasured(window: int, bound: Bound, demand: Demand) -> Sizing:
    found = demand.footprint(window)
    reason = "as asked for" if bound is Bound.EXPLICIT else "the target; memory was not asked"
    return Sizing(
        window, bound, reason, found.num_cells, found.total_bytes, 0, 0, 0, demand.shape.context_length
    )  # fmt: skip

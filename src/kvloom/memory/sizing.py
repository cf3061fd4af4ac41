"""How large a window may be: from a model's shape, the memory there is, and what a person wants. Pure arithmetic.

A size that is chosen here ends below the guard's soft threshold: a pool that trips the guard as it opens would be
shrunk at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum

from kvloom.errors import EngineMemoryError, UsageError
from kvloom.memory.guard import below_share
from kvloom.memory.reading import MemoryReading
from kvloom.model.footprint import CacheSpec, Footprint, footprint_of_shape, largest_fitting
from kvloom.model.shape import ModelShape

__all__ = [
    "WINDOW_STEP",
    "Bound",
    "Demand",
    "Room",
    "Sizing",
    "SizingLimits",
    "auto_size",
    "beyond_trained",
    "budget_bytes",
    "explicit_size",
    "window_ceiling",
]

MIB = 1024**2
WINDOW_STEP = 256
"""A window that memory bounds is rounded down to this: llama.cpp's own step for cells."""


class Bound(Enum):
    """What decided a size."""

    TARGET = "target"
    MINIMUM = "minimum"
    MAXIMUM = "maximum"
    MODEL = "model"
    MEMORY = "memory"
    EXPLICIT = "explicit"


def _as_many(window: int) -> int:
    return window


@dataclass(frozen=True)
class Demand:
    """What a window costs.

    `weights_bytes`: those that are still to be loaded, 0 where the model is loaded already. `spec` says how the cells
    are held; their number comes from `num_cells`, which gives the cells that a window needs (slack included). `beside`:
    another context over the same weights.
    `shape.context_length` is the trained length, stretched by whoever sets RoPE scaling.
    """

    shape: ModelShape
    weights_bytes: int
    spec: CacheSpec = field(default_factory=CacheSpec)
    num_cells: Callable[[int], int] = _as_many
    beside: CacheSpec | None = None

    def footprint(self, window: int) -> Footprint:
        spec = replace(self.spec, num_cells=self.num_cells(window))
        found = footprint_of_shape(self.shape, self.weights_bytes, spec)
        if self.beside is None:
            return found
        return replace(found, beside_bytes=footprint_of_shape(self.shape, 0, self.beside).context_bytes)

    def total_bytes(self, window: int) -> int:
        return self.footprint(window).total_bytes


@dataclass(frozen=True)
class Room:
    """The memory that the model goes to. Where it replaces a pool, `available_bytes` includes what that pool holds."""

    total_bytes: int
    available_bytes: int

    @classmethod
    def of(cls, reading: MemoryReading) -> Room:
        return cls(reading.total_bytes, reading.available_bytes)


@dataclass(frozen=True)
class SizingLimits:
    """What a person wants. `maximum` 0: the model's trained length. `minimum` is for the automatic size only."""

    target: int = 16384
    minimum: int = 2048
    maximum: int = 0
    reserve_bytes: int = 512 * MIB
    soft_share: float = 0.80


@dataclass(frozen=True)
class Sizing:
    """A window, what decided it, and the numbers behind. `warning` is empty where there is nothing to warn of.

    `needed_bytes` is the forecast for this window, `budget_bytes` what it may take (see `budget_bytes`).
    """

    context: int
    bound: Bound
    reason: str
    num_cells: int
    needed_bytes: int
    budget_bytes: int
    available_bytes: int
    total_bytes: int
    trained_context: int
    warning: str = ""


def budget_bytes(room: Room, limits: SizingLimits) -> int:
    """What may be taken: all that is available but the reserve, and no more than leaves the memory below soft.

    Never negative. Raises UsageError for a memory that cannot be.
    """
    total, available = room.total_bytes, room.available_bytes
    if total <= 0 or not 0 <= available <= total:
        raise UsageError(f"a memory of {total:,} bytes with {available:,} available cannot be: the probe lies")
    used = total - available
    return max(0, min(available - limits.reserve_bytes, below_share(total, limits.soft_share) - used))


def auto_size(demand: Demand, room: Room, limits: SizingLimits) -> Sizing:
    """The largest window up to the target, the maximum and the trained length that fits the budget.

    Raises UsageError where the limits contradict each other, EngineMemoryError where not even the minimum fits.
    """
    _check(limits)
    ceiling, bound = _ceiling(demand.shape, limits)
    budget = budget_bytes(room, limits)
    least = min(limits.minimum, ceiling)
    if demand.total_bytes(least) > budget:
        raise _too_little(demand, least, room, limits)
    window = largest_fitting(lambda tokens: demand.total_bytes(tokens) <= budget, ceiling, WINDOW_STEP)
    if window < ceiling:
        window, bound = max(window, least), Bound.MEMORY
    return _sizing(demand, room, limits, window, bound)


def explicit_size(window: int, demand: Demand, room: Room, limits: SizingLimits) -> Sizing:
    """The window that a person asked for, as it is: minimum, target and maximum do not touch it.

    A window beyond the trained length, or one that leaves less than the reserve or passes the guard's soft threshold,
    comes with a warning. Raises UsageError for a window that is none, EngineMemoryError where the memory that is
    available cannot hold it.
    """
    if window < 1:
        raise UsageError(f"a window of {window} tokens cannot be; give 1 or more")
    budget = budget_bytes(room, limits)
    needed, trained = demand.total_bytes(window), demand.shape.context_length
    if needed > room.available_bytes:
        longest = min(window, trained) if trained else window
        most = largest_fitting(lambda tokens: demand.total_bytes(tokens) <= budget, longest, WINDOW_STEP)
        way_out = f"{most:,} tokens fit" if most else "no window fits: take a smaller model"
        raise EngineMemoryError(
            f"a window of {window:,} tokens needs {_mib(needed)} ({_parts(demand, window)}), but "
            f"{_mib(room.available_bytes)} of {_mib(room.total_bytes)} are available; {way_out}, and --kv-type q8_0 "
            "takes about half the KV"
        )
    warnings = list(filter(None, (beyond_trained(window, trained),)))
    if needed > budget:
        warnings.append(
            f"it takes {_mib(needed)} where {_mib(budget)} would leave the reserve and the guard's soft limit alone: "
            "the guard may shrink it"
        )
    return replace(_sizing(demand, room, limits, window, Bound.EXPLICIT), warning="; ".join(warnings))


def beyond_trained(window: int, trained: int) -> str:
    """What is to be said of a window beyond the trained length (0: not known); "" of any other."""
    if not 0 < trained < window:
        return ""
    return (
        f"the model was trained for {trained:,} tokens, {window:,} were asked for: beyond that it answers badly "
        "unless RoPE scaling is set"
    )


def _check(limits: SizingLimits) -> None:
    for name, value in (("target", limits.target), ("minimum", limits.minimum)):
        if value < 1:
            raise UsageError(f"the {name} of the automatic window is {value} tokens; it must be at least 1")
    if limits.maximum < 0 or limits.reserve_bytes < 0:
        raise UsageError(
            f"the maximum ({limits.maximum} tokens) and the reserve ({limits.reserve_bytes} bytes) cannot be negative"
        )
    if 0 < limits.maximum < limits.minimum:
        raise UsageError(
            f"the minimum of the automatic window ({limits.minimum:,} tokens) is above its maximum "
            f"({limits.maximum:,}); lower the one or raise the other"
        )
    if not 0 < limits.soft_share <= 1:
        raise UsageError(f"the guard's soft share lies between 0 and 1, got {limits.soft_share}")


def _ceiling(shape: ModelShape, limits: SizingLimits) -> tuple[int, Bound]:
    """The largest window that anyone wants, and who says so; a trained length of 0 is not known."""
    wanted = (limits.target, Bound.TARGET) if limits.target >= limits.minimum else (limits.minimum, Bound.MINIMUM)
    others = ((limits.maximum, Bound.MAXIMUM), (shape.context_length, Bound.MODEL))
    return min([wanted, *(other for other in others if other[0] > 0)], key=lambda pair: pair[0])


def window_ceiling(shape: ModelShape, limits: SizingLimits) -> int:
    """The largest window that `auto_size` gives, however much memory there is. Raises UsageError, as it does."""
    _check(limits)
    return _ceiling(shape, limits)[0]


def _sizing(demand: Demand, room: Room, limits: SizingLimits, window: int, bound: Bound) -> Sizing:
    budget, trained = budget_bytes(room, limits), demand.shape.context_length
    reasons = {
        Bound.TARGET: f"the target of {limits.target:,} tokens",
        Bound.MINIMUM: f"the minimum of {limits.minimum:,} tokens, which is above the target of {limits.target:,}",
        Bound.MAXIMUM: f"the maximum of {limits.maximum:,} tokens",
        Bound.MODEL: f"the model's trained length of {trained:,} tokens",
        Bound.MEMORY: f"what fits into {_mib(budget)}: {_mib(room.available_bytes)} of {_mib(room.total_bytes)} are "
        f"available, {_mib(limits.reserve_bytes)} stay in reserve, and the memory stays below {limits.soft_share:.0%}",
        Bound.EXPLICIT: "as asked for",
    }
    found = demand.footprint(window)
    return Sizing(
        context=window,
        bound=bound,
        reason=reasons[bound],
        num_cells=found.num_cells,
        needed_bytes=found.total_bytes,
        budget_bytes=budget,
        available_bytes=room.available_bytes,
        total_bytes=room.total_bytes,
        trained_context=trained,
    )


def _too_little(demand: Demand, least: int, room: Room, limits: SizingLimits) -> EngineMemoryError:
    budget = budget_bytes(room, limits)
    needed = f"{_mib(demand.total_bytes(least))} ({_parts(demand, least)})"
    return EngineMemoryError(
        f"not even a window of {least:,} tokens fits: it needs {needed}, "
        f"and {_mib(budget)} may be taken ({_mib(room.available_bytes)} of {_mib(room.total_bytes)} are available, "
        f"{_mib(limits.reserve_bytes)} stay in reserve, and the memory stays below {limits.soft_share:.0%}); end "
        "what holds memory, take --kv-type q8_0 or a smaller model, or set a smaller window with --context"
    )


def _parts(demand: Demand, window: int) -> str:
    found = demand.footprint(window)
    buffers = found.compute_bytes + found.output_bytes
    return f"weights {_mib(found.weights_bytes)}, KV {_mib(found.kv_bytes)}, buffers {_mib(buffers)}"


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / MIB:,.0f} MiB"

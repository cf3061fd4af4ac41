"""`kvloom fit`: what a model will take, by memory, and the largest window that fits. Loads nothing, asks the probes.

The window is the one that a chat would open with: the same arithmetic decides both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvloom.cli import amounts
from kvloom.cli.options import Options, takes
from kvloom.errors import EngineMemoryError, ModelFormatError, UsageError

if TYPE_CHECKING:
    from kvloom.config import Paths, Settings
    from kvloom.memory.sizing import Demand, Room, SizingLimits
    from kvloom.model.footprint import Footprint
    from kvloom.model.shape import ModelShape, WeightBytes
    from kvloom.model.split import DevicePart, SplitFootprint

FIT = ("context", "kv_type", "home", "json")

EXIT_DOES_NOT_FIT = 1

MIN_MEMORY_BYTES = 1024**2
"""A smaller --memory is a forgotten unit."""


@dataclass(frozen=True)
class Subject:
    """The model that is asked about."""

    shape: ModelShape
    weights: WeightBytes
    path: Path
    notes: tuple[str, ...] = ()
    is_here: bool = True


@dataclass(frozen=True)
class Places:
    """Where the model would go. `num_gpus` 0: all of it into one memory. `rooms` is empty where none is known."""

    rooms: tuple[Room, ...]
    num_gpus: int
    origin: str

    @property
    def is_split(self) -> bool:
        return self.num_gpus > 0


@takes(FIT)
def fit(
    options: Options,
    model: Annotated[
        str,
        typer.Argument(
            help="A GGUF file, a model's name, a config.json (or the folder that holds one), or ollama:NAME."
        ),
    ],
    max_: Annotated[bool, typer.Option("--max", help="Also the largest window that fits.")] = False,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            metavar="SIZE[,SIZE…]",
            help="A memory of this size (8GB), or one for each GPU, not what is free.",
        ),
    ] = None,
    gpus: Annotated[
        int | None, typer.Option("--gpus", metavar="N", min=1, help="Spread the layers over N GPUs, as llama.cpp does.")
    ] = None,
) -> None:
    """Forecast the memory that a model will take.

    Weights, KV and buffers, before anything is loaded. Without --context the window is the one that a chat would
    choose: it leaves the reserve free and stays below the guard's soft limit.

    Exit code 1 where it does not fit; with --max where no window does.
    """
    from kvloom.config import load_settings

    settings = load_settings({"context": options.context, "kv_type": options.kv_type})
    subject = read_subject(model, options.paths, settings)
    if subject.notes and gpus is not None:
        raise UsageError("--gpus needs the sizes of single layers, which an endpoint does not tell: name the GGUF file")
    places = find_places(memory, gpus) if subject.is_here or memory is not None else Places((), 0, "")
    forecast = Forecast(subject, settings, places)
    options.output.emit(*forecast.result(want_max=max_))
    # With --max the question is whether any window fits.
    if not forecast.most() if max_ else places.rooms and not forecast.fits(forecast.window):
        raise typer.Exit(EXIT_DOES_NOT_FIT)


ENDPOINT_NOTES = (
    "weights, KV and buffers as kvloom itself would load it; what its server takes beside these is its own business",
    "the server's KV type and the requests that it serves at once (Ollama: OLLAMA_KV_CACHE_TYPE, OLLAMA_NUM_PARALLEL) "
    "scale the KV",
)


def read_subject(model: str, where: Paths, settings: Settings) -> Subject:
    """A model's shape, its weights, and where they were read. Raises ModelError, UsageError, EngineError."""
    from kvloom.model.header import read_header
    from kvloom.model.hf_config import read_hf_model
    from kvloom.model.registry import find_model
    from kvloom.model.shape import WeightBytes
    from kvloom.session.checkup import is_address, read_endpoint_model

    if is_address(model):
        told = read_endpoint_model(model, settings)
        # In one memory only their sum counts.
        weights = WeightBytes(told.weights_bytes, (0,) * told.shape.num_layers, 0)
        return Subject(told.shape, weights, Path(model), ENDPOINT_NOTES, told.is_here)
    path = Path(model).expanduser()
    if path.name == "config.json" or (path / "config.json").is_file():
        found = read_hf_model(path)
        if found.weights is None:
            raise ModelFormatError(f"{path} does not tell the number of parameters; name a GGUF of this model")
        return Subject(found.shape, found.weights, path)
    resolved = find_model(model, where)
    header = read_header(resolved.path)
    return Subject(header.shape, header.weights, resolved.path)


def find_places(memory: str | None, gpus: int | None) -> Places:
    """The memories that were named, else those that are here. Raises UsageError."""
    from kvloom.memory.probe import read_memory
    from kvloom.memory.sizing import Room

    if memory is not None:
        sizes = parse_sizes(memory)
        if gpus is not None and len(sizes) == 1:
            sizes *= gpus
        if gpus is not None and len(sizes) != gpus:
            raise UsageError(f"--gpus {gpus} and --memory with {len(sizes)} sizes contradict each other")
        num_gpus = len(sizes) if gpus is not None or len(sizes) > 1 else 0
        return Places(tuple(Room(size, size) for size in sizes), num_gpus, "--memory")
    picture = read_memory()
    if gpus is None:
        host = picture.host
        return Places(() if host is None else (Room.of(host),), 0, "free now")
    here = picture.accelerators[:gpus]
    return Places(tuple(map(Room.of, here)) if len(here) == gpus else (), gpus, "free now")


def parse_sizes(text: str) -> tuple[int, ...]:
    """`8GB,12GiB` in bytes. Raises UsageError."""
    from pydantic import ByteSize, TypeAdapter, ValidationError

    sizes: list[int] = []
    for part in text.split(","):
        try:
            size = int(TypeAdapter(ByteSize).validate_python(part.strip()))
        except (ValidationError, OverflowError) as error:
            raise UsageError(
                f"--memory {text}: {part.strip()!r} is no size; write 8GB or 8GiB, several with commas"
            ) from error
        if size < MIN_MEMORY_BYTES:
            raise UsageError(f"--memory {text}: {part.strip()!r} is {size:,} bytes; name the unit, as in 8GB")
        sizes.append(size)
    return tuple(sizes)


class Forecast:
    """What a subject takes in its places, as data and as text."""

    def __init__(self, subject: Subject, settings: Settings, places: Places) -> None:
        from kvloom.memory.sizing import budget_bytes
        from kvloom.session.sizing import demand_of, limits_of

        self.subject, self.settings, self.places = subject, settings, places
        self.limits: SizingLimits = limits_of(settings)
        self.demand: Demand = demand_of(subject.shape, subject.weights.total_bytes, settings)
        self.longest = self.demand.shape.context_length
        self.budgets = tuple(budget_bytes(room, self.limits) for room in places.rooms)
        self.refusal = ""
        self.window, self.reason, self.warning = self._choose()
        self.footprint: Footprint = self.demand.footprint(self.window)
        self.split: SplitFootprint | None = self._split(self.window) if places.is_split else None

    def result(self, *, want_max: bool) -> tuple[dict[str, object], str]:
        data, rows = self._data(), self._rows()
        if want_max:
            most = self.most()
            data["max_context"] = most
            rows.append(("largest window", f"{amounts.tokens(most)} tokens" if most else "none fits"))
        return data, "\n".join(f"{name:<16} {value}" for name, value in rows)

    def fits(self, window: int) -> bool:
        """Within the budget of every memory; so it is, too, where none is known."""
        return all(needed <= budget for needed, budget in zip(self._needs(window), self.budgets, strict=False))

    def _needs(self, window: int) -> tuple[int, ...]:
        if not self.places.is_split:
            return (self.demand.total_bytes(window),)
        return tuple(part.total_bytes for part in self._split(window).devices)

    def _split(self, window: int) -> SplitFootprint:
        from kvloom.model.split import split_footprint

        spec = replace(self.demand.spec, num_cells=self.demand.num_cells(window))
        # llama.cpp splits by the memory that is free, and evenly where it knows of none.
        shares = [room.available_bytes for room in self.places.rooms] or [1] * self.places.num_gpus
        return split_footprint(self.subject.shape, self.subject.weights, spec, shares)

    def _choose(self) -> tuple[int, str, str]:
        """The window, why it is this one, and what is to be said against it."""
        from kvloom.memory.sizing import WINDOW_STEP, window_ceiling
        from kvloom.model.footprint import largest_fitting
        from kvloom.session.sizing import window_for

        rooms, settings = self.places.rooms, self.settings
        ceiling = window_ceiling(self.demand.shape, self.limits)
        least = min(self.limits.minimum, ceiling)
        if not self.places.is_split and rooms:
            try:
                sizing = window_for(settings, self.demand, rooms[0])
            except EngineMemoryError as error:
                # What is asked is what it takes: that it does not fit is the answer, not a failure.
                self.refusal = str(error)
                if settings.context is not None:
                    return settings.context, "as asked for", ""
                return (least, "the minimum", "") if settings.context_auto else (ceiling, "the target", "")
            return sizing.context, sizing.reason, sizing.warning
        if settings.context is not None:
            return settings.context, "as asked for", ""
        if not settings.context_auto:
            return ceiling, "the target", ""
        window = max(least, largest_fitting(self.fits, ceiling, WINDOW_STEP))
        return window, "what was wanted" if window == ceiling else "what fits", ""

    def most(self) -> int:
        """The largest window up to the trained length that fits, 0 where none does. Raises UsageError."""
        from kvloom.memory.sizing import WINDOW_STEP
        from kvloom.model.footprint import UNKNOWN_LENGTH, largest_fitting

        if not self.places.rooms:
            raise UsageError("the memory is not known here, so no largest window either; give it with --memory")
        return largest_fitting(self.fits, self.longest or UNKNOWN_LENGTH, WINDOW_STEP)

    def _beyond(self) -> str:
        """Whatever the memory is: what is to be said of a window beyond the trained length."""
        from kvloom.memory.sizing import beyond_trained

        return beyond_trained(self.window, self.longest)

    def _data(self) -> dict[str, object]:
        shape, found, settings, rooms = self.subject.shape, self.footprint, self.settings, self.places.rooms
        data: dict[str, object] = {
            "path": self.subject.path,
            "architecture": shape.architecture,
            "trained_context": shape.context_length,
            "context": self.window,
            "reason": self.reason,
            "warning": self.warning or self._beyond(),
            "refusal": self.refusal,
            "num_cells": found.num_cells,
            "kv_type_k": settings.k_type,
            "kv_type_v": settings.v_type,
            "weights_bytes": found.weights_bytes,
            "kv_bytes": found.kv_bytes,
            "kv_token_bytes": found.kv_token_bytes,
            "compute_bytes": found.compute_bytes,
            "output_bytes": found.output_bytes,
            "total_bytes": found.total_bytes,
            "is_complete": found.is_complete,
            "memory_bytes": [room.total_bytes for room in rooms],
            "free_bytes": sum(room.available_bytes for room in rooms) if rooms else None,
            "budget_bytes": sum(self.budgets) if rooms else None,
            "fits": self.fits(self.window) if rooms else None,
            "notes": self.subject.notes,
        }
        if self.split is not None:
            data["host"] = _part_data(self.split.host, None)
            budgets = self.budgets or (None,) * len(self.split.devices)
            data["devices"] = [_part_data(*pair) for pair in zip(self.split.devices, budgets, strict=True)]
        return data

    def _rows(self) -> list[tuple[str, str]]:
        shape, found, settings = self.subject.shape, self.footprint, self.settings
        trained = f"; trained for {amounts.tokens(shape.context_length)}" if shape.context_length else ""
        if self.longest != shape.context_length:
            trained += f", stretched to {amounts.tokens(self.longest)} by RoPE scaling"
        rows = [
            ("model", f"{shape.architecture} ({self.subject.path})"),
            ("window", f"{amounts.tokens(self.window)} tokens ({self.reason}){trained}"),
            ("weights", amounts.size(found.weights_bytes)),
            ("KV", f"{amounts.size(found.kv_bytes)} ({settings.k_type.value}/{settings.v_type.value}, "
                   f"{amounts.tokens(found.kv_token_bytes)} bytes a token)"),
            ("buffers", amounts.size(found.compute_bytes + found.output_bytes)),
            ("total", amounts.size(found.total_bytes)),
        ]  # fmt: skip
        if self.split is not None:
            rows += [
                (f"GPU {index}", _part_text(part) + self._verdict(index))
                for index, part in enumerate(self.split.devices)
            ]
            rows.append(("host", _part_text(self.split.host)))
        elif self.places.rooms:
            rows.append((self.places.origin, amounts.size(self.places.rooms[0].available_bytes) + self._verdict(0)))
        if beyond := self._beyond():
            rows.append(("warning", beyond))
        if not found.is_complete:
            rows.append(("note", "this model has a recurrent state beside its KV, which is not in these numbers"))
        rows += [("note", note) for note in self.subject.notes]
        return rows

    def _verdict(self, index: int) -> str:
        if not self.budgets:
            return ""
        needed, budget, room = self._needs(self.window)[index], self.budgets[index], self.places.rooms[index]
        if needed <= budget:
            return f": it fits ({amounts.size(budget)} may be taken)"
        if needed <= room.available_bytes:
            return f": past the {amounts.size(budget)} that leave the reserve and the guard's soft limit alone"
        lacks = amounts.size(needed - room.available_bytes)
        return f": it lacks {lacks}; a smaller --context or --kv-type q8_0 takes less"


def _part_data(part: DevicePart, budget: int | None) -> dict[str, object]:
    return {
        "num_layers": part.num_layers,
        "weights_bytes": part.weights_bytes,
        "kv_bytes": part.kv_bytes,
        "buffer_bytes": part.buffer_bytes,
        "total_bytes": part.total_bytes,
        "budget_bytes": budget,
        "fits": None if budget is None else part.total_bytes <= budget,
    }


def _part_text(part: DevicePart) -> str:
    layers = f"{part.num_layers} layers, " if part.num_layers else ""
    return (
        f"{amounts.size(part.total_bytes)} ({layers}weights {amounts.size(part.weights_bytes)}, "
        f"KV {amounts.size(part.kv_bytes)}, buffers {amounts.size(part.buffer_bytes)})"
    )


def register(app: typer.Typer) -> None:
    app.command("fit")(fit)

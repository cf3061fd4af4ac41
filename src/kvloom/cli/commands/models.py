"""`kvloom pull`, `models` and `fit`: which models there are, fetching one, what one costs. Loads no weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvloom.cli import amounts
from kvloom.cli.options import HOME, Options, takes

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kvloom.config import Paths, Settings
    from kvloom.model.footprint import Footprint
    from kvloom.model.shape import ModelShape

FIT = ("context", "kv_type", "home", "json")

SOFT_LIMIT_SHARE = 0.8
"""A forecast above this share of the memory that is free leaves the machine no air."""


@dataclass(frozen=True)
class ListedModel:
    """A model that can be named. `holder`: "kvloom", "ollama", "lm-studio"; `path` is None until it is fetched."""

    name: str
    holder: str
    size_bytes: int
    path: Path | None
    is_default: bool = False
    note: str = ""


def list_models(where: Paths) -> list[ListedModel]:
    """The registry (fetched or not), what was fetched from the hub, what Ollama and LM Studio hold on this machine."""
    from kvloom.config import DEFAULT_MODEL
    from kvloom.model.local import local_models
    from kvloom.model.registry import REGISTRY, ModelOrigin, fetched_models

    fetched = fetched_models(where)
    here = {model.name: model.path for model in fetched}
    known = [
        ListedModel(
            name=model.id,
            holder="kvloom",
            size_bytes=model.size_bytes,
            path=here.get(model.id),
            is_default=model.id == DEFAULT_MODEL,
            note=f"{model.licence}; {model.note}",
        )
        for model in REGISTRY.values()
    ]
    hub = [
        ListedModel(model.name, "kvloom", model.path.stat().st_size, model.path, note="from the hub")
        for model in fetched
        if model.origin is ModelOrigin.HUB
    ]
    local = [ListedModel(model.name, model.holder, model.size_bytes, model.path) for model in local_models()]
    return [*known, *hub, *local]


@takes(HOME)
def models(options: Options) -> None:
    """List the models that can be used here.

    kvloom's own, those fetched from the hub, and those that Ollama and LM Studio hold on this machine.
    """
    found = list_models(options.paths)
    options.output.emit({"models": found}, lambda: models_table(found))


def models_table(found: list[ListedModel]) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in ("model", "held by"):
        table.add_column(title)
    table.add_column("size", justify="right")
    table.add_column("state")
    table.add_column("note")
    for model in found:
        state = "here" if model.path is not None else f"kvloom pull {model.name}"
        name = amounts.printable(model.name) + (" (default)" if model.is_default else "")
        table.add_row(Text(name), model.holder, amounts.size(model.size_bytes), Text(state), Text(model.note))
    return table


@takes(HOME)
def pull(
    options: Options,
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A registry id or user/repo[:quant]; default: the settings'.")
    ] = None,
) -> None:
    """Fetch a model and check it.

    Nothing happens where it is here already. What an interrupted fetch left is used by the next one.
    """
    from kvloom.config import load_settings
    from kvloom.model.pull import ensure_model
    from kvloom.session.values import Progress

    name = model or load_settings().model
    output = options.output
    with output.progress() as progress:

        def report(task: str, done: int, total: int) -> None:
            progress(Progress(task, done, total, "bytes"))

        resolved = ensure_model(name, options.paths, report)
    size = resolved.path.stat().st_size
    data = {"model": resolved.name, "path": resolved.path, "origin": resolved.origin, "bytes": size}
    output.emit(data, f"{resolved.name}: {resolved.path} ({amounts.size(size)})")


@takes(FIT)
def fit(
    options: Options,
    model: Annotated[
        str, typer.Argument(help="A GGUF file, a model's name, or a config.json (or the folder that holds one).")
    ],
    max_: Annotated[
        bool, typer.Option("--max", help="Also the largest window that fits into the memory that is free now.")
    ] = False,
) -> None:
    """Forecast the memory that a model will take."""
    from kvloom.config import load_settings

    settings = load_settings({"context": options.context, "kv_type": options.kv_type})
    shape, weights, path = read_shape(model, options.paths)
    options.output.emit(*forecast(shape, weights, path, settings, want_max=max_))


def read_shape(model: str, where: Paths) -> tuple[ModelShape, int, Path]:
    """A model's shape, the bytes of its weights, and where they were read. Raises ModelError."""
    from kvloom.errors import ModelFormatError
    from kvloom.model.header import read_header
    from kvloom.model.hf_config import read_hf_config
    from kvloom.model.registry import find_model

    path = Path(model).expanduser()
    if path.name == "config.json" or (path / "config.json").is_file():
        shape = read_hf_config(path)
        if shape.num_parameters is None:
            raise ModelFormatError(f"{path} does not tell the number of parameters; name a GGUF of this model")
        return shape, shape.num_parameters * BF16_BYTES, path
    resolved = find_model(model, where)
    header = read_header(resolved.path)
    return header.shape, header.tensor_bytes, resolved.path


BF16_BYTES = 2
"""A `config.json` speaks of weights as they are published: 16 bits each."""


def forecast(
    shape: ModelShape, weights: int, path: Path, settings: Settings, *, want_max: bool
) -> tuple[dict[str, object], str]:
    """The forecast as data and as text."""
    import psutil

    from kvloom.model.footprint import CacheSpec, footprint_of_shape, largest_context
    from kvloom.session.rooms import num_cells

    spec = CacheSpec(
        num_cells=num_cells(settings.context),
        k_type=settings.k_type,
        v_type=settings.v_type,
        num_sequences=settings.max_sequences + 1,
    )
    found = footprint_of_shape(shape, weights, spec)
    free = int(psutil.virtual_memory().available)
    data: dict[str, object] = {
        "path": path,
        "architecture": shape.architecture,
        "trained_context": shape.context_length,
        "context": settings.context,
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
        "free_bytes": free,
        "fits": found.total_bytes <= free - settings.memory_reserve_bytes,
    }
    text = _forecast_text(shape, found, settings, path, free)
    if want_max:
        budget = min(free - settings.memory_reserve_bytes, int(free * SOFT_LIMIT_SHARE))
        data["max_context"] = largest = largest_context(shape, weights, budget, spec)
        text += f"\nlargest window now   {amounts.tokens(largest)} tokens (in {amounts.size(budget)})"
    return data, text


def _forecast_text(shape: ModelShape, found: Footprint, settings: Settings, path: Path, free: int) -> str:
    rows = [
        ("model", f"{shape.architecture} ({path})"),
        ("window", f"{amounts.tokens(settings.context)} tokens; trained for {amounts.tokens(shape.context_length)}"),
        ("weights", amounts.size(found.weights_bytes)),
        ("KV", f"{amounts.size(found.kv_bytes)} ({settings.k_type.value}/{settings.v_type.value}, "
               f"{amounts.tokens(found.kv_token_bytes)} bytes a token)"),
        ("buffers", amounts.size(found.compute_bytes + found.output_bytes)),
        ("total", amounts.size(found.total_bytes)),
    ]  # fmt: skip
    spare = free - settings.memory_reserve_bytes - found.total_bytes
    if spare >= 0:
        rows.append(("free now", f"{amounts.size(free)}: it fits"))
    else:
        reserve = amounts.size(settings.memory_reserve_bytes)
        rows.append(
            ("free now", f"{amounts.size(free)}, less {reserve} reserve: it lacks {amounts.size(-spare)}; a smaller "
                         "--context or --kv-type q8_0 takes less")
        )  # fmt: skip
    if not found.is_complete:
        rows.append(("note", "this model has a recurrent state beside its KV, which is not in these numbers"))
    return "\n".join(f"{name:<20} {value}" for name, value in rows)


def register(app: typer.Typer) -> None:
    app.command("pull")(pull)
    app.command("models")(models)
    app.command("fit")(fit)

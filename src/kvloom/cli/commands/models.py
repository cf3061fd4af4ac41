"""`kvloom pull` and `models`: which models there are, and fetching one. Loads no weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvloom.cli import amounts
from kvloom.cli.options import HOME, Options, takes

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kvloom.config import Paths


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


def register(app: typer.Typer) -> None:
    app.command("pull")(pull)
    app.command("models")(models)

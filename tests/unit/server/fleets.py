"""Fleets for tests: real headers of tiny models, over looms of the fake engine or really loaded ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kvloom.config import Settings, load_settings
from kvloom.server.fleet import Fleet
from kvloom.server.registry_file import ModelEntry, Registry, ServedModel
from kvloom.session.loom import Loom
from kvloom.session.model_plan import ModelLimits, Planner
from kvloom.session.values import ProgressCallback
from tests.tiny_gguf import TinyModel, write_tiny
from tests.unit.session.fakes import fake_loom

CONTEXT = 512
NO_GUARD = {"enabled": False}


class Clock:
    """Goes on when it is told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Openings:
    """Opens looms over the fake engine, and remembers which. `faults`: what the next openings raise."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.opened: list[str] = []
        self.looms: list[Loom] = []
        self.settings: list[Settings] = []
        self.faults: list[Exception] = []

    @property
    def num_open(self) -> int:
        return sum(not loom._closed for loom in self.looms)

    def __call__(self, name: str, settings: Settings, progress: ProgressCallback) -> Loom:
        self.opened.append(Path(name).stem)
        self.settings.append(settings)
        if self.faults:
            raise self.faults.pop(0)
        loom = fake_loom(self.home, context=settings.context)
        self.looms.append(loom)
        return loom


def tiny(folder: Path, name: str, **shape: Any) -> Path:
    path = folder / f"{name}.gguf"
    return path if path.exists() else write_tiny(path, TinyModel(num_layers=2, **shape))


def served(folder: Path, *names: str, **fields: Any) -> Registry:
    """Tiny models by these names, each with `fields` and an alias `the-NAME`."""
    fields = {"context": CONTEXT, **fields}
    return Registry(
        tuple(
            ServedModel(ModelEntry(id=name, aliases=(f"the-{name}",), **fields), str(tiny(folder, name)))
            for name in names
        )
    )


def needed_bytes(folder: Path, context: int = CONTEXT) -> int:
    """What one of these models takes, as forecast."""
    settings = load_settings({"context": context, "guard": NO_GUARD})
    return Planner(tiny(folder, "a"), settings, ModelLimits(), read=lambda _: None).least_bytes


def settings_for(num_models: float | None = None, folder: Path | None = None, **server: Any) -> Settings:
    """Settings under which `num_models` of these models fit at once."""
    if num_models is not None:
        assert folder is not None
        server["models_memory_bytes"] = int(num_models * needed_bytes(folder))
    return load_settings({"guard": NO_GUARD, "server": server})


def fleet_of(folder: Path, names: str, num_models: float | None = None, **server: Any) -> tuple[Fleet, Openings, Clock]:
    openings, clock = Openings(folder / "home"), Clock()
    settings = settings_for(num_models, folder, **server)
    fleet = Fleet(served(folder, *names), settings, folder / "home", open_model=openings, clock=clock)
    return fleet, openings, clock

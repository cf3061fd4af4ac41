"""`kvloom demo NAME`: four small demonstrations of a context, each run on the model that is loaded. Knows no option."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kvloom.session.loom import Loom
    from kvloom.session.values import ProgressCallback

__all__ = ["DemoName", "Stage", "find"]


class DemoName(Enum):
    """What can be shown."""

    WINDOW = "window"
    TRUNCATE = "truncate"
    SLIDE = "slide"
    KV = "kv"


@dataclass(frozen=True)
class Stage:
    """What a demonstration is given: a loom over an empty home, and whom it tells what it does."""

    loom: Loom
    tell: Callable[[str], None]
    progress: ProgressCallback


@dataclass(frozen=True)
class Demonstration:
    """`run` measures and returns a frozen report, `view` draws that. `context`: the window that the loom is to have."""

    context: int
    run: Callable[[Stage], object]
    view: Callable[[object], RenderableType]


def find(name: DemoName) -> Demonstration:
    """The demonstration of that name, imported now: `kvloom --help` must not wait for it."""
    module = importlib.import_module(f"kvloom.cli.demos.{name.value}")
    return Demonstration(module.CONTEXT, module.run, module.view)

"""What every benchmark starts and ends with: settings, a home of its own, the peer's settings, how to repeat the run.

Knows no case and no measurement.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvloom.bench.peer import GGML_TYPES, PeerSettings
from kvloom.bench.report import command, load_average, machine
from kvloom.bench.teller import Teller
from kvloom.config import Settings, load_settings
from kvloom.session.values import ProgressCallback

if TYPE_CHECKING:
    from kvloom.session.loom import Loom

SYSTEM = "Answer from the documents."


@dataclass(frozen=True)
class Request:
    """What a caller may choose. None: the benchmark's own default; without `progress` it tells lines on stderr."""

    model: str | None = None
    quick: bool = False
    threads: int | None = None
    repeats: int | None = None
    progress: ProgressCallback | None = None

    def teller(self, bench: str, total: int) -> Teller:
        return Teller(bench, total, self.progress)

    def closing(self, bench: str, **options: object) -> dict[str, object]:
        """What a report's set-up ends with: the line that repeats the run (`options`: the benchmark's own), the load
        of the machine now."""
        common = {"model": self.model, "threads": self.threads, "repeats": self.repeats, "quick": self.quick}
        line = command(bench, {**common, **options})
        return {"is_quick": self.quick, "command": line, "load_average_at_end": load_average()}


def settings_for(request: Request, **overrides: object) -> Settings:
    """The settings in force, with what the caller chose and what the benchmark needs."""
    return load_settings({"model": request.model, "threads": request.threads, **overrides})


@contextmanager
def own_home() -> Iterator[Path]:
    """A home that is gone at the end: a benchmark leaves the user's chunks and sessions alone."""
    with tempfile.TemporaryDirectory(prefix="kvloom-bench-") as folder:
        yield Path(folder)


def open_loom(settings: Settings, home: Path, tell: Teller | None = None) -> Loom:
    import kvloom

    if tell is None:
        return kvloom.open(settings=settings, home=home)
    tell.say(f"loading the model {settings.model}")
    loom = kvloom.open(settings=settings, home=home, progress=tell.wait)
    tell.say("loaded")
    return loom


def peer_settings(loom: Loom, n_ctx: int, **changes: Any) -> PeerSettings:
    """The peer on the same file, with the same threads and KV types."""
    settings = loom.settings
    return PeerSettings(
        model=loom.status().model_path,
        n_ctx=n_ctx,
        threads=settings.num_threads,
        threads_batch=settings.num_threads,
        cache_type_k=GGML_TYPES[settings.k_type],
        cache_type_v=GGML_TYPES[settings.v_type],
        **changes,
    )


def setup_of(loom: Loom, more: Mapping[str, object]) -> dict[str, Any]:
    """Machine, libraries, model and settings, as a report shows them."""
    status = loom.status()
    return {
        "model_name": status.model,
        "model_fingerprint": status.fingerprint,
        "threads": loom.settings.num_threads,
        "kv_type": status.kv_type,
        "num_cells": status.num_cells,
        **machine(),
        **more,
    }

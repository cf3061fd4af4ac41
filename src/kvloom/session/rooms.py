"""Opens the rooms that a loom joins: the model file, its engine, the tiers. What `kvloom.open` does and decides."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kvloom.config import Paths, Settings, create_home, load_settings, paths
from kvloom.engine.base import Engine
from kvloom.engine.remote.address import parse_address
from kvloom.kv.codec import Codec
from kvloom.kv.disk import DiskCoding, DiskTier
from kvloom.kv.disk_share import ModelDiskTier
from kvloom.kv.ram import RamTier
from kvloom.kv.rotate import Rotator
from kvloom.kv.store import TieredStore
from kvloom.memory.probe import read_memory
from kvloom.memory.reading import MemoryReading
from kvloom.memory.sizing import Sizing
from kvloom.model.fingerprint import HashCache, file_sha256, model_fingerprint
from kvloom.model.header import read_header, shard_paths
from kvloom.model.pull import ensure_model
from kvloom.model.registry import find_model
from kvloom.session.least_window import check_window
from kvloom.session.loom import Loom
from kvloom.session.pool import ASIDE_CELLS, num_cells
from kvloom.session.recording import remember
from kvloom.session.sizing import demand_of, opening_window, pool_tokens, reading_for
from kvloom.session.values import Progress, ProgressCallback
from kvloom.types import Fidelity, ModelFingerprint


def open_loom(  # noqa: PLR0913 - the public constructor: each is one keyword of its own
    model: str | Path | None = None,
    context: int | None = None,
    home: str | Path | None = None,
    kv_type: str | None = None,
    fidelity: str | Fidelity | None = None,
    *,
    settings: Settings | None = None,
    progress: ProgressCallback | None = None,
    allow_fetch: bool = True,
    replies: int = 1,
) -> Loom:
    """Load a model and open a home over it. Everything that is None comes from the settings.

    `model`: a path to a GGUF, a registry id, `user/repo[:quant]` on the hub, or a name that Ollama or LM Studio holds;
    or a model behind HTTP: `http://host:port/v1#name`, `ollama:NAME`. A file is fetched first where it is missing and
    `allow_fetch` (`progress` sees it). `context`: the window of a session in tokens. `home`: where chunks, sessions and
    KV are kept. `kv_type`: f16, q8_0 or q4_0. `fidelity`: exact, blend or splice. `replies`: how many shall run at
    once: cells for so many windows are taken, as far as memory has them. Raises ConfigError, ModelError, EngineError
    or StoreError, each saying what to do; UsageError for a window that has no room for a turn.
    """
    given: Mapping[str, Any] = {
        "model": None if model is None else str(model),
        "context": context,
        "kv_type": kv_type,
        "fidelity": fidelity.value if isinstance(fidelity, Fidelity) else fidelity,
    }
    chosen = _settings(settings, given, home)
    where = paths(home)
    create_home(where)
    address = parse_address(chosen.model)
    if address is not None:
        from kvloom.session.remote_rooms import open_remote

        return _checked(open_remote(address, chosen, where, given), chosen)

    def on_bytes(task: str, done: int, total: int) -> None:
        if progress is not None:
            progress(Progress(task, done, total, "bytes"))

    found = ensure_model(chosen.model, where, on_bytes) if allow_fetch else find_model(chosen.model, where)
    asked = chosen
    chosen, sizing = _sized(asked, found.path, replies)
    fingerprint = fingerprint_of(found.path, chosen, where, on_bytes)
    engine = open_engine(found.path, chosen, where, fingerprint)
    try:
        loom = join(engine, chosen, where.home, (found.name, found.path))
        loom.sizing = sizing
        remember(loom)
    except BaseException:
        engine.close()
        raise
    return _checked(loom, asked)


def _checked(loom: Loom, asked: Settings) -> Loom:
    """The loom, closed where a window was asked for that is of no use: what a prompt takes, only the model can tell.

    Raises UsageError.
    """
    if asked.context is not None:
        try:
            check_window(loom, asked.context, "")
        except BaseException:
            loom.close()
            raise
    return loom


def _sized(settings: Settings, path: Path, replies: int) -> tuple[Settings, Sizing]:
    """The settings with the window and the pool that the model will be opened with. Raises EngineMemoryError, before
    anything is loaded, where memory cannot hold the window."""
    header = read_header(path)
    demand = demand_of(header.shape, header.weights.total_bytes, settings)
    sizing = opening_window(settings, demand, reading_now(settings))
    pool = pool_tokens(settings.pool_tokens or replies * sizing.context, demand, sizing)
    return settings.model_copy(update={"context": sizing.context, "pool_tokens": pool}), sizing


def reading_now(settings: Settings) -> MemoryReading | None:
    """The memory that a model with these settings goes to, as it is now."""
    from kvloom.engine.llamacpp.build import build_features

    _, has_gpu = build_features()
    return reading_for(read_memory(), on_accelerator=has_gpu and settings.n_gpu_layers != 0)


def join(
    engine: Engine, settings: Settings, home: Path, model: tuple[str, Path], kind: Callable[..., Loom] = Loom
) -> Loom:
    """A loom over an engine that is loaded already."""
    caster = getattr(engine, "row_caster", None)
    rotator = Rotator(engine.layout, engine.rope, caster)
    packed = settings.recall.compression or settings.disk_compression.value
    coding = DiskCoding(Codec(settings.disk_compression.value), (engine.rope,), caster, packed_codec=Codec(packed))
    if settings.model_disk_bytes is None:
        disk = DiskTier(home / "kv", settings.disk_budget_bytes, coding)
    else:
        disk = ModelDiskTier(
            home / "kv", settings.disk_budget_bytes, coding, engine.fingerprint, settings.model_disk_bytes
        )
    store = TieredStore([RamTier(settings.ram_budget_bytes), disk])
    try:
        return kind(engine, store, rotator, settings, home, model)
    except BaseException:
        store.close()
        raise


def open_engine(path: Path, settings: Settings, where: Paths, fingerprint: ModelFingerprint) -> Engine:
    """The embedded engine for a GGUF file, with cells for the window and for weaving beside it."""
    from kvloom.engine.llamacpp import LlamaCppEngine, LoadSettings, RopeOverrides, RopeScaling

    rope = settings.rope
    scaling = RopeScaling[rope.scaling.upper()] if rope.scaling else None
    load = LoadSettings(
        path=path,
        num_cells=num_cells(settings.context or settings.context_target, settings.pool_tokens),
        kv_type_k=settings.k_type,
        kv_type_v=settings.v_type,
        aside_cells=ASIDE_CELLS if settings.pool_tokens else 0,
        max_sequences=settings.max_sequences,
        num_gpu_layers=settings.n_gpu_layers,
        num_threads=settings.num_threads,
        rope=RopeOverrides(
            scaling=scaling,
            freq_base=rope.freq_base,
            freq_scale=rope.freq_scale,
            yarn_ext_factor=rope.yarn_ext_factor,
            yarn_attn_factor=rope.yarn_attn_factor,
            yarn_beta_fast=rope.yarn_beta_fast,
            yarn_beta_slow=rope.yarn_beta_slow,
            yarn_original_context=rope.yarn_orig_context,
        ),
        cache_dir=where.cache_dir,
    )
    return LlamaCppEngine(load, fingerprint)


def _settings(settings: Settings | None, given: Mapping[str, Any], home: str | Path | None) -> Settings:
    if settings is None:
        return load_settings(given, home=home)
    changed = {name: value for name, value in given.items() if value is not None}
    return load_settings({**settings.model_dump(exclude_unset=True), **changed}, home=home) if changed else settings


def fingerprint_of(
    path: Path, settings: Settings, where: Paths, on_bytes: Callable[[str, int, int], None] = lambda *_: None
) -> ModelFingerprint:
    """The weights' hashes (taken once, cached), the RoPE overrides, and what else changes the rows.

    LLAMA_ATTN_ROT_DISABLE changes how quantized rows are stored, and the bytes carry no mark of it.
    """
    cache = HashCache(where.home)
    weights = [
        file_sha256(shard, cache, lambda done, total: on_bytes("checking the model", done, total))
        for shard in shard_paths(path)
    ]
    extra = {"attn_rot_disable": os.environ.get("LLAMA_ATTN_ROT_DISABLE") or None}
    return model_fingerprint(weights, rope={**settings.rope.model_dump(), **extra})

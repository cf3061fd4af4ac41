"""All settings, and where their values come from: overrides, environment, YAML, defaults, in this order.

Knows names, types and limits; what a setting does is known where it is used.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextvars import ContextVar
from enum import Enum
from pathlib import Path
from typing import Any, Self

from pydantic import ByteSize, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from kvloom.config.file import ConfigFile, read_config_file
from kvloom.config.folders import paths
from kvloom.config.foreign import FOREIGN_VARIABLES, converted
from kvloom.config.groups import (
    CompressionSettings,
    GuardSettings,
    OverflowSettings,
    QuotaTier,
    RecallSettings,
    RopeSettings,
    SamplingSettings,
    ServerSettings,
    SnapshotSettings,
    contradiction,
)
from kvloom.config.mistakes import ENV_NESTING, ENV_PREFIX, Origins, check_variables, explain
from kvloom.config.threads import default_threads
from kvloom.config.token_count import token_setting
from kvloom.errors import ConfigError
from kvloom.types import Fidelity, KVType

DEFAULT_MODEL = "qwen2.5-coder-0.5b"
DEFAULT_TIER = "default"
GIB = 1024**3
MIB = 1024**2

OTHER_VARIABLES = ("KVLOOM_HOME", "KVLOOM_CONFIG", "KVLOOM_MODELS", "KVLOOM_DEBUG")
"""Variables with our prefix that are no settings: folders, and whether unexpected errors show their traceback."""


class DiskCompression(Enum):
    """How entries are packed on disk. `Q8_0` and `LOW4` (4 to 5 bits a value) lose precision: never a default."""

    OFF = "off"
    LOSSLESS = "lossless"
    Q8_0 = "q8_0"
    LOW4 = "low4"


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

    model: str = Field(
        DEFAULT_MODEL,
        min_length=1,
        description="path to a GGUF, registry id, user/repo[:quant], http://host:port/v1#name or ollama:NAME",
    )
    remote_key: SecretStr | None = Field(None, description="key of an endpoint that is named as the model; never shown")
    remote_timeout_s: float = Field(600.0, gt=0, description="an endpoint may be silent for so many seconds")
    context: int | None = Field(None, ge=64, description="window of a session, in tokens; default: automatic")
    context_auto: bool = Field(
        True, description="automatic window: ask memory; else context_target, up to the model's own length, or refused"
    )
    context_target: int = Field(16384, ge=64, description="automatic window: as large as this where memory allows")
    context_min: int = Field(2048, ge=64, description="automatic window: never smaller; less is refused")
    context_max: int = Field(0, ge=0, description="automatic window: never larger; 0: the model's own limit")
    memory_reserve_bytes: ByteSize = Field(ByteSize(512 * MIB), description="memory that sizing leaves free")
    kv_type: KVType = Field(KVType.F16, description="how K and V are held on the device")
    kv_type_k: KVType | None = Field(None, description="K alone; default: kv_type")
    kv_type_v: KVType | None = Field(None, description="V alone; default: kv_type")
    fidelity: Fidelity = Field(Fidelity.SPLICE, description="which stored entries may be placed")
    blend_budget: float = Field(0.15, gt=0, le=1, description="blend: largest share of tokens computed again in place")
    n_gpu_layers: int = Field(-1, ge=-1, description="layers on the GPU; -1: all, where the build has a GPU")
    threads: int | None = Field(None, ge=1, le=512, description="default: the physical cores this process may use")
    max_sequences: int = Field(32, ge=4, le=255, description="native sequences: sessions and scratch space share them")
    pool_tokens: int = Field(
        0,
        ge=0,
        description="native cells that all share, where memory has them; 0: a window, in a server one for each slot",
    )
    step_tokens: int = Field(
        1024, ge=64, le=65_536,
        description="tokens of prompts that are computed between two tokens of running replies: fewer let replies flow"
        " more evenly, more let everything end sooner",
    )  # fmt: skip
    ram_budget_bytes: ByteSize = Field(ByteSize(2 * GIB), description="entries kept in RAM")
    disk_budget_bytes: ByteSize = Field(ByteSize(32 * GIB), description="entries kept on disk")
    model_disk_bytes: ByteSize | None = Field(
        None, description="of those on disk, one model's; default: no limit beside disk_budget_bytes"
    )
    disk_compression: DiskCompression = Field(DiskCompression.OFF, description="how entries are packed on disk")
    system: str = Field("You are a helpful assistant.", description="system prompt of new sessions")
    reserve_tokens: int = Field(
        1024, ge=0, description="tokens of the window kept free for the reply; never more than a quarter"
    )
    tiers: dict[str, QuotaTier] = Field(
        default_factory=lambda: {DEFAULT_TIER: QuotaTier()}, description="limits of the server's keys, by tier"
    )
    rope: RopeSettings = Field(default_factory=RopeSettings, description="RoPE overrides")
    sampling: SamplingSettings = Field(default_factory=SamplingSettings, description="how replies are drawn")
    overflow: OverflowSettings = Field(default_factory=OverflowSettings, description="what leaves a full window")
    compression: CompressionSettings = Field(
        default_factory=CompressionSettings, description="how old turns become a summary"
    )
    recall: RecallSettings = Field(
        default_factory=RecallSettings, description="what a question gets of the attached libraries"
    )
    snapshots: SnapshotSettings = Field(default_factory=SnapshotSettings, description="what is kept to go back to")
    guard: GuardSettings = Field(default_factory=GuardSettings, description="what happens when memory runs short")
    server: ServerSettings = Field(default_factory=ServerSettings, description="`kvloom serve`")

    @field_validator(
        "context", "context_target", "context_min", "context_max", "pool_tokens", "reserve_tokens", mode="before"
    )
    @classmethod
    def _tokens(cls, value: object) -> object:
        return token_setting(value)

    @field_validator("model")
    @classmethod
    def _strip(cls, value: str) -> str:
        return value.strip()

    @field_validator("tiers")
    @classmethod
    def _with_the_default_tier(cls, value: dict[str, QuotaTier]) -> dict[str, QuotaTier]:
        return {DEFAULT_TIER: QuotaTier(), **value}

    @model_validator(mode="after")
    def _sizes_in_order(self) -> Self:
        if 0 < self.context_max < self.context_min:
            raise contradiction(
                f"the smallest window ({self.context_min} tokens) is larger than the largest ({self.context_max})",
                "context_max", "context_min",
            )  # fmt: skip
        return self

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
    check_variables(Settings, OTHER_VARIABLES)
    file = read_config_file(paths(home).config_file)
    token = _config_file.set(file)
    try:
        return Settings(**given)
    except ValidationError as error:
        origins = Origins(given, file)
        raise ConfigError("\n".join(explain(item, Settings, origins) for item in error.errors())) from error
    except SettingsError as error:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise ConfigError(f"an environment variable of kvloom cannot be read: {error}{cause}") from error
    finally:
        _config_file.reset(token)


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


# --- sources ---------------------------------------------------------------------------------------------------------


_config_file: ContextVar[ConfigFile | None] = ContextVar("kvloom_config_file", default=None)
"""The file that `load_settings` read: pydantic builds the sources by itself, and gives no way to hand it in."""


class _DictSource(PydanticBaseSettingsSource):
    """A source whose values are known as one dict."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        return None, field_name, False


class _ForeignSource(_DictSource):
    def __call__(self) -> dict[str, Any]:
        given = {name: os.environ.get(variable, "").strip() for variable, name in FOREIGN_VARIABLES.items()}
        return {name: converted(name, value) for name, value in given.items() if value}


class _YamlSource(_DictSource):
    def __call__(self) -> dict[str, Any]:
        return (_config_file.get() or read_config_file(paths().config_file)).values

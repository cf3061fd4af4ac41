"""The folders and files that kvloom uses. Knows the environment, no setting."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from kvloom.errors import StoreReadOnlyError

APP = "kvloom"


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

"""Settings (command line > environment > YAML > defaults) and the folders that kvloom uses. Knows no model and no tier.

A wrong name or value is a `ConfigError` that says where it stands and which valid name is nearest.
"""

from __future__ import annotations

from kvloom.config.folders import Paths, create_home, paths
from kvloom.config.groups import (
    CompressionSettings,
    GuardSettings,
    OverflowSettings,
    RopeSettings,
    SamplingSettings,
    SnapshotSettings,
)
from kvloom.config.settings import DEFAULT_MODEL, DiskCompression, Settings, load_settings
from kvloom.config.threads import default_threads

__all__ = [
    "DEFAULT_MODEL",
    "CompressionSettings",
    "DiskCompression",
    "GuardSettings",
    "OverflowSettings",
    "Paths",
    "RopeSettings",
    "SamplingSettings",
    "Settings",
    "SnapshotSettings",
    "create_home",
    "default_threads",
    "load_settings",
    "paths",
]

"""Settings (command line > environment > YAML > defaults) and the folders that kvloom uses. Knows no model and no tier.

A wrong name or value is a `ConfigError` that says where it stands and which valid name is nearest.
"""

from __future__ import annotations

from kvloom.config.document import Document, Location, read_document
from kvloom.config.folders import Paths, create_home, paths
from kvloom.config.groups import (
    CompressionSettings,
    GuardSettings,
    OverflowSettings,
    PolicyName,
    QuotaTier,
    RecallSettings,
    RopeSettings,
    SamplingSettings,
    ServerSettings,
    SnapshotSettings,
)
from kvloom.config.mistakes import explain_in
from kvloom.config.names import nearest
from kvloom.config.settings import DEFAULT_MODEL, DEFAULT_TIER, DiskCompression, Settings, load_settings
from kvloom.config.threads import default_threads
from kvloom.config.token_count import FORMS as TOKEN_FORMS
from kvloom.config.token_count import parse_tokens

__all__ = [
    "DEFAULT_MODEL",
    "DEFAULT_TIER",
    "TOKEN_FORMS",
    "CompressionSettings",
    "DiskCompression",
    "Document",
    "GuardSettings",
    "Location",
    "OverflowSettings",
    "Paths",
    "PolicyName",
    "QuotaTier",
    "RecallSettings",
    "RopeSettings",
    "SamplingSettings",
    "ServerSettings",
    "Settings",
    "SnapshotSettings",
    "create_home",
    "default_threads",
    "explain_in",
    "load_settings",
    "nearest",
    "parse_tokens",
    "paths",
    "read_document",
]

"""The llama.cpp engine: the only importer of `llama_cpp`. Knows ids, positions and bytes, as every engine."""

from kvloom.engine.llamacpp.driver import LlamaCppEngine
from kvloom.engine.llamacpp.load import LoadSettings, RopeOverrides, RopeScaling

__all__ = ["LlamaCppEngine", "LoadSettings", "RopeOverrides", "RopeScaling"]

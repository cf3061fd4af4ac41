"""What this build of llama.cpp was made with. Loads no model."""

from __future__ import annotations

import llama_cpp

__all__ = ["build_features"]


def build_features() -> tuple[str, bool]:
    """The switches that are on, as llama.cpp names them (`AVX2 AVX512 …`), and whether layers can go to a GPU."""
    text = llama_cpp.llama_print_system_info().decode("utf-8", "replace")
    parts = (part.rpartition(":")[2].strip() for part in text.split("|"))
    features = [name.strip() for name, _, value in (part.partition("=") for part in parts) if value.strip() == "1"]
    return " ".join(features), bool(llama_cpp.llama_supports_gpu_offload())

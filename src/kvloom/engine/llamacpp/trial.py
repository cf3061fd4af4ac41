"""Loads a model and computes a few tokens, in a process that may die of it. Run as a script by `probe`.

It imports nothing of kvloom, so that it starts fast and wherever it lies.
"""

from __future__ import annotations

import ctypes
import os
import sys

ROWS = 72
"""More than the 64 rows from which ggml's CPU attention and products take their fast paths."""


def main(path: str, *, extra_buffers: bool) -> int:
    """0 when the model computed, 1 when llama.cpp refused it in an orderly way."""
    import llama_cpp

    llama_cpp.llama_backend_init()
    model_params = llama_cpp.llama_model_default_params()
    model_params.n_gpu_layers = 0
    model_params.use_extra_bufts = extra_buffers
    model = llama_cpp.llama_model_load_from_file(os.fsencode(path), model_params)
    if not model:
        return 1
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_outputs_max = 256, ROWS, ROWS, 8
    params.flash_attn_type = 1
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        return 1
    for count in (ROWS, 1):
        tokens = (ctypes.c_int32 * count)(*range(count))  # the batch holds only a pointer to it
        batch = llama_cpp.llama_batch_get_one(tokens, count)
        if llama_cpp.llama_decode(context, batch) != 0:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], extra_buffers=sys.argv[2] == "1"))

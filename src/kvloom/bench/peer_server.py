"""llama.cpp's own HTTP server in this process, until standard input ends. Knows nothing of kvloom.

`python -m kvloom.bench.peer_server '{"model": …}'` prints one JSON line with the server's address once it listens.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

LOG_NOTHING = -1


def serve(settings: Mapping[str, Any]) -> None:
    """Start the server, say where it listens, and wait for the end of standard input: then whoever asked is gone."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings["model"]
    params.port = 0
    params.n_ctx = settings["n_ctx"]
    params.n_parallel = settings["slots"]
    params.cpuparams.n_threads = settings["threads"]
    params.cpuparams_batch.n_threads = settings["threads_batch"]
    params.cache_type_k = xllamacpp.ggml_type(settings["cache_type_k"])
    params.cache_type_v = xllamacpp.ggml_type(settings["cache_type_v"])
    params.flash_attn_type = xllamacpp.llama_flash_attn_type(settings["flash_attn"])
    params.n_cache_reuse = settings["cache_reuse"]
    params.cache_ram_mib = settings["cache_ram_mib"]
    # The server puts a file's name right behind this: without the separator the files would lie beside the folder.
    params.slot_save_path = os.path.join(settings["slot_save_path"], "") if settings["slot_save_path"] else ""  # noqa: PTH118
    if settings["embeddings"]:
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        # Its pooling is part of the graph: a text has to be one native batch.
        params.n_batch = params.n_ubatch = settings["n_ctx"]
    params.n_gpu_layers = 0
    params.fit_params = False
    params.ui = False
    params.verbosity = LOG_NOTHING
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        sys.exit(f"llama.cpp's server cannot start: {error}")
    print(json.dumps({"address": server.listening_address}), flush=True)  # noqa: T201 - the parent reads it
    sys.stdin.read()


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))

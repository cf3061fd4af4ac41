"""Routes llama.cpp's log to Python's logging, never to the terminal, and keeps the last errors for messages.

It knows nothing of models: installing it once per process is enough.
"""

from __future__ import annotations

import ctypes
import logging
from collections import deque
from typing import Any

import llama_cpp

__all__ = ["install_log", "recent_errors"]

_logger = logging.getLogger("kvloom.engine.llamacpp.native")
_logger.addHandler(logging.NullHandler())  # where nobody set up logging, Python would write warnings to the terminal

# ggml's levels: 1 debug, 2 info, 3 warning, 4 error, 5 continues the line before. llama.cpp's "info" is a page per
# load and its warnings are habitual, so both go one step down.
_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.INFO, 4: logging.WARNING, 5: logging.DEBUG}
_NATIVE_ERROR = 4
_KEPT_ERRORS = 8

_errors: deque[str] = deque(maxlen=_KEPT_ERRORS)
_installed: list[Any] = []  # the callback must outlive every native object


def install_log() -> None:
    """Take over llama.cpp's log for this process. Idempotent."""
    if _installed:
        return

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def on_log(level: int, text: bytes, _user_data: ctypes.c_void_p) -> None:
        line = text.decode("utf-8", "replace").strip()
        if not line or line == ".":
            return
        if level == _NATIVE_ERROR:
            _errors.append(line)
        _logger.log(_LEVELS.get(level, logging.DEBUG), "%s", line)

    _installed.append(on_log)
    llama_cpp.llama_log_set(on_log, ctypes.c_void_p(0))


def recent_errors(*, clear: bool = False) -> str:
    """The last error lines of llama.cpp, oldest first, "" when there are none."""
    text = "; ".join(_errors)
    if clear:
        _errors.clear()
    return text

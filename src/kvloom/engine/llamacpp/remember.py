"""Answers that are expensive to find, kept in a small JSON file and asked for again at the next load.

It knows keys and JSON values, not what they mean. A file that is lost or broken only costs finding out again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import llama_cpp

__all__ = ["Answers", "build_id", "cpu_id"]

MAX_ANSWERS = 256
"""The oldest go first: a file of answers stays below some 100 kB."""


class Answers:
    """A dictionary in a file. Two writers at once lose one answer, never the file."""

    def __init__(self, folder: Path | None, name: str) -> None:
        self._path = None if folder is None else folder / name

    def get(self, key: str) -> Any:
        """What was put under the key, None where nothing was."""
        return self._read().get(key)

    def put(self, key: str, value: Any) -> None:
        """Keep `value`; a folder that cannot be written is no error."""
        if self._path is None:
            return
        answers = self._read()
        answers.pop(key, None)
        answers[key] = value
        kept = dict(list(answers.items())[-MAX_ANSWERS:])
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, temporary = tempfile.mkstemp(dir=self._path.parent, prefix=self._path.name)
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    json.dump(kept, file)
                Path(temporary).replace(self._path)
            except OSError:
                Path(temporary).unlink(missing_ok=True)
                raise

    def _read(self) -> dict[str, Any]:
        if self._path is None:
            return {}
        try:
            answers = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return answers if isinstance(answers, dict) else {}


def build_id() -> str:
    """Names this build of llama.cpp: its shared libraries by size and time. 16 hex digits."""
    folder = Path(llama_cpp.__file__).parent / "lib"
    digest = hashlib.sha256(llama_cpp.__version__.encode())
    for path in sorted(folder.glob("*")):
        if path.is_file():
            found = path.stat()
            digest.update(f"{path.name}:{found.st_size}:{found.st_mtime_ns};".encode())
    return digest.hexdigest()[:16]


def cpu_id() -> str:
    """Names this machine's CPU by what it can do. 16 hex digits."""
    text = f"{platform.machine()}:{platform.processor()}"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
        text += "".join(line for line in lines if line.split("\t")[0] in ("model name", "flags", "Features"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]

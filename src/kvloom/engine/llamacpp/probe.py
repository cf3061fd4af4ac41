"""Finds out, in a child process, whether this build of llama.cpp runs on this CPU at all. Once, then remembered.

A build for another CPU dies of an illegal instruction; one that uses AMX dies in `ldtilecfg` inside some virtual
machines. Neither can be caught, so the process that holds the user's sessions must not be the first to try.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from kvloom.engine.llamacpp import trial
from kvloom.engine.llamacpp.load import LoadSettings
from kvloom.engine.llamacpp.remember import Answers, build_id, cpu_id
from kvloom.errors import EngineUnsupportedError

__all__ = ["Outcome", "ProbeResult", "probe", "safe_settings"]

ANSWERS_FILE = "engine-probe.json"
TIMEOUT_S = 300.0
"""A model of many GB may be read from a slow disk first."""
_logger = logging.getLogger(__name__)


class Outcome(Enum):
    """RUNS: it computed; CRASHED: the child died of a signal; UNKNOWN: it ended otherwise, nothing was learnt."""

    RUNS = "runs"
    CRASHED = "crashed"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class ProbeResult:
    """What a trial of this build on this CPU gave. `detail` names the signal, or why nothing was learnt."""

    outcome: Outcome
    detail: str
    is_remembered: bool


def safe_settings(settings: LoadSettings) -> LoadSettings:
    """`settings` with what crashes here switched off; EngineUnsupportedError when nothing runs.

    Without a `cache_dir` nothing is tried, and nothing is repacked.
    """
    if settings.cache_dir is None or not settings.path.is_file():
        return replace(settings, extra_buffers=False)
    result = probe(settings)
    if result.outcome is Outcome.CRASHED and settings.extra_buffers:
        _logger.warning("weights are not repacked for this CPU: a trial ended with %s", result.detail)
        settings = replace(settings, extra_buffers=False)
        result = probe(settings)
    if result.outcome is Outcome.CRASHED:
        raise EngineUnsupportedError(
            f"this build of llama.cpp crashes on this CPU: a trial ended with {result.detail}. Install it again with "
            'CMAKE_ARGS="-DGGML_NATIVE=OFF" and the instruction sets that this CPU has'
        )
    return settings


def probe(settings: LoadSettings) -> ProbeResult:
    """Try `settings.path` in a child process, unless this build was tried on this CPU before."""
    answers = Answers(settings.cache_dir, ANSWERS_FILE)
    key = f"{build_id()}:{cpu_id()}:{'extra' if settings.extra_buffers else 'plain'}"
    known = answers.get(key)
    if known == "":
        return ProbeResult(Outcome.RUNS, "", is_remembered=True)
    if isinstance(known, str):
        return ProbeResult(Outcome.CRASHED, known, is_remembered=True)
    result = _try(settings.path, extra_buffers=settings.extra_buffers)
    if result.outcome is not Outcome.UNKNOWN:
        answers.put(key, result.detail)
    return result


def _try(path: Path, *, extra_buffers: bool) -> ProbeResult:
    command = [sys.executable, trial.__file__, os.fspath(path), "1" if extra_buffers else "0"]
    try:
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return ProbeResult(Outcome.UNKNOWN, str(error), is_remembered=False)
    if ended.returncode == 0:
        return ProbeResult(Outcome.RUNS, "", is_remembered=False)
    if ended.returncode < 0 and -ended.returncode in _CRASHES:
        return ProbeResult(Outcome.CRASHED, signal.Signals(-ended.returncode).name, is_remembered=False)
    last_line = ended.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
    return ProbeResult(Outcome.UNKNOWN, " ".join(last_line) or f"exit code {ended.returncode}", is_remembered=False)


_CRASHES = {signal.SIGILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE} if os.name == "posix" else set()
"""SIGABRT is not among them: llama.cpp aborts over a model that it does not like, which says nothing of the CPU."""

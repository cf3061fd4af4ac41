"""How many threads are worth starting here. Knows the process's limits, no setting."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import psutil


def default_threads() -> int:
    """The physical cores that this process may use: hyper-threads slow the matrix kernels down."""
    try:
        available = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no affinity
        available = os.cpu_count() or 1
    return max(1, min(available, _physical_cores(), _cgroup_cores() or available))


@lru_cache(maxsize=1)
def _physical_cores() -> int:
    return psutil.cpu_count(logical=False) or os.cpu_count() or 1


def _cgroup_cores() -> int | None:
    """Whole cores of a container's CPU quota, None where there is none (cgroup v2, `cpu.max`)."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()[:2]
        return max(1, int(quota) // int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return None

"""Memory of a process that is nobody else's: without pages of mapped files, which come and go as they are read."""

from __future__ import annotations

from pathlib import Path

import psutil

KIB = 1024


def own_bytes() -> int:
    """Anonymous memory of this process, in RAM or swapped out; where the system does not tell, all that is resident."""
    status = Path("/proc/self/status")
    if not status.exists():
        return int(psutil.Process().memory_info().rss)
    fields = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines() if ":" in line)
    return sum(int(fields[name].split()[0]) * KIB for name in ("RssAnon", "VmSwap") if name in fields)

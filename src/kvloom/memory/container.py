"""What else than the machine's memory limits this process: control groups of both versions, and `ulimit -v`.

Formats: the kernel's admin-guide, `cgroup-v1/memory` and `cgroup-v2`; `proc_pid_cgroup(5)`, `proc_pid_mountinfo(5)`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

__all__ = ["MemoryLimit", "address_space_limit", "cgroup_limits"]

UNLIMITED_BYTES = 1 << 60
"""Version 1 writes "no limit" as the largest number of pages: some 2⁶³ bytes, and no machine has 2⁶⁰."""


@dataclass(frozen=True)
class MemoryLimit:
    """At most `total_bytes`, of which `used_bytes` cannot be given back (cached files that nobody uses can)."""

    source: str
    total_bytes: int
    used_bytes: int

    @property
    def available_bytes(self) -> int:
        """Never negative: a limit may be lowered below what is used already."""
        return max(0, self.total_bytes - self.used_bytes)


@dataclass(frozen=True)
class _Version:
    """Where one version of the control groups keeps its numbers."""

    name: str
    file_system: str
    limit: str
    usage: str
    reclaimable: str


V1 = _Version("cgroup v1", "cgroup", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = _Version("cgroup v2", "cgroup2", "memory.max", "memory.current", "inactive_file")


@dataclass(frozen=True)
class _Mount:
    """A line of `mountinfo`: the folder `root` of a file system is seen at `point`."""

    file_system: str
    root: str
    point: str
    options: tuple[str, ...]


def cgroup_limits(root: Path = Path("/")) -> list[MemoryLimit]:
    """The limits of this process's control group and of all above it that can be seen; `root` is for tests.

    A file that is missing or unreadable limits nothing: containers hide some.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text(errors="replace").splitlines()
        mounts = [_mount(line) for line in (root / "proc/self/mountinfo").read_text(errors="replace").splitlines()]
    except OSError:
        return []
    limits: list[MemoryLimit] = []
    for line in groups:
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        version = V2 if number == "0" and not controllers else V1
        if version is V1 and "memory" not in controllers.split(","):
            continue
        mount = next((mount for mount in mounts if mount is not None and _carries(mount, version)), None)
        if mount is not None:
            for folder in _folders(mount, group):
                limit = _limit(root / folder.relative_to("/"), folder, version)
                limits += [] if limit is None else [limit]
    return limits


def address_space_limit(used_bytes: int) -> MemoryLimit | None:
    """The limit that `ulimit -v` set, of a process with `used_bytes` of addresses in use; None where there is none."""
    if sys.platform == "win32" or sys.platform == "darwin":  # no such limit, or one that the system ignores
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else MemoryLimit("ulimit -v", int(soft), used_bytes)


def _mount(line: str) -> _Mount | None:
    left, _, right = line.partition(" - ")
    fields, rest = left.split(), right.split()
    if len(fields) < 5 or len(rest) < 3:
        return None
    return _Mount(rest[0], _unescaped(fields[3]), _unescaped(fields[4]), tuple(rest[2].split(",")))


def _unescaped(path: str) -> str:
    """Spaces and the like stand as octal numbers in `mountinfo`."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)


def _carries(mount: _Mount, version: _Version) -> bool:
    return mount.file_system == version.file_system and (version is V2 or "memory" in mount.options)


def _folders(mount: _Mount, group: str) -> Iterator[PurePosixPath]:
    """The group's folder as it is seen here, and those above it, up to the mount point.

    Inside a container the group may be named by the host's path while only its own folder is mounted.
    """
    point, path = PurePosixPath(mount.point), PurePosixPath(group)
    inside = path.relative_to(mount.root) if path.is_relative_to(mount.root) else PurePosixPath()
    folder = point if ".." in inside.parts else point / inside
    while folder != point:
        yield folder
        folder = folder.parent
    yield point


def _limit(folder: Path, shown: PurePosixPath, version: _Version) -> MemoryLimit | None:
    total, used = _number(folder / version.limit), _number(folder / version.usage)
    if total is None or used is None or not 0 < total < UNLIMITED_BYTES:
        return None
    cached = _statistic(folder / "memory.stat", version.reclaimable)
    return MemoryLimit(f"{version.name} {shown}", total, max(0, used - cached))


def _number(file: Path) -> int | None:
    """None for a missing file and for "max"."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _statistic(file: Path, name: str) -> int:
    try:
        found = re.search(rf"^{name} (\d+)$", file.read_text(errors="replace"), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0

"""The processor's memory and what limits it, on control groups laid out as kernel, Docker and systemd do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from kvloom.memory.container import MemoryLimit, cgroup_limits
from kvloom.memory.host import HostProbe, by_psutil, by_sysconf
from kvloom.memory.probe import read_memory
from kvloom.memory.reading import MemoryReading

GIB = 1024**3
V1_UNLIMITED = 9223372036854771712
V1_MOUNT = "35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory"
V2_MOUNT = "41 31 0:38 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"


class Machine:
    """A root folder with /proc/self and control groups."""

    def __init__(self, root: Path, groups: str, mounts: str) -> None:
        self.root = root
        self.write("proc/self/cgroup", groups)
        self.write("proc/self/mountinfo", f"22 1 259:1 / / rw - ext4 /dev/root rw\n{mounts}\n")

    def write(self, path: str, text: str | int) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def v1(self, group: str, limit: int, usage: int, inactive: int = 0) -> None:
        folder = f"sys/fs/cgroup/memory{group}"
        self.write(f"{folder}/memory.limit_in_bytes", limit)
        self.write(f"{folder}/memory.usage_in_bytes", usage)
        self.write(f"{folder}/memory.stat", f"cache 9\ninactive_file 1\ntotal_cache 9\ntotal_inactive_file {inactive}")

    def v2(self, group: str, limit: int | str, usage: int, inactive: int = 0) -> None:
        folder = f"sys/fs/cgroup{group}"
        self.write(f"{folder}/memory.max", limit)
        self.write(f"{folder}/memory.current", usage)
        self.write(f"{folder}/memory.stat", f"anon 5\nfile 9\ninactive_file {inactive}\nactive_file 2")

    def read(self, total: int = 64 * GIB, available: int = 48 * GIB) -> MemoryReading:
        probe = HostProbe([("test", lambda: (total, available))], self.root, lambda: False)
        picture = read_memory([probe])
        assert picture.failures == ()
        [reading] = picture.readings
        return reading


def test_a_version_2_limit_is_the_memory_and_unused_cached_files_are_available(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "0::/", V2_MOUNT.format(root="/"))
    machine.v2("", 8 * GIB, 5 * GIB, inactive=2 * GIB)
    reading = machine.read()
    assert (reading.total_bytes, reading.used_bytes, reading.available_bytes) == (8 * GIB, 3 * GIB, 5 * GIB)
    assert reading.source == "cgroup v2 /sys/fs/cgroup"


def test_a_version_1_limit_is_the_memory_and_unused_cached_files_are_available(tmp_path: Path) -> None:
    groups = "12:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n1:name=systemd:/docker/abc"
    machine = Machine(tmp_path, groups, V1_MOUNT.format(root="/docker/abc"))
    machine.v1("", 4 * GIB, 3 * GIB, inactive=GIB)
    reading = machine.read()
    assert (reading.total_bytes, reading.used_bytes, reading.available_bytes) == (4 * GIB, 2 * GIB, 2 * GIB)
    assert reading.source == "cgroup v1 /sys/fs/cgroup/memory"


def test_of_nested_groups_the_tightest_counts(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "0::/user.slice/app.scope/job", V2_MOUNT.format(root="/"))
    machine.v2("/user.slice", 6 * GIB, 5 * GIB)
    machine.v2("/user.slice/app.scope", "max", 3 * GIB)
    machine.v2("/user.slice/app.scope/job", 4 * GIB, GIB)
    reading = machine.read()
    assert (reading.total_bytes, reading.available_bytes) == (6 * GIB, GIB)
    assert reading.source == "cgroup v2 /sys/fs/cgroup/user.slice"


def test_a_group_named_by_the_hosts_path_is_found_where_it_is_mounted(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "4:memory:/kubepods/pod1/box", V1_MOUNT.format(root="/"))
    machine.v1("", 2 * GIB, GIB)
    assert machine.read().total_bytes == 2 * GIB


def test_a_group_outside_of_the_namespace_falls_back_to_the_mount(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "0::/../other", V2_MOUNT.format(root="/"))
    machine.v2("", 3 * GIB, GIB)
    assert machine.read().total_bytes == 3 * GIB


def test_both_versions_at_once_are_read_and_a_mount_point_may_hold_spaces(tmp_path: Path) -> None:
    mounts = "\n".join(
        [
            r"35 31 0:32 / /sys/fs/c\040group rw - cgroup cgroup rw,memory",
            V2_MOUNT.format(root="/").replace("/sys/fs/cgroup ", "/sys/fs/unified "),
        ]
    )
    machine = Machine(tmp_path, "4:memory:/\n0::/", mounts)
    machine.write("sys/fs/c group/memory.limit_in_bytes", 5 * GIB)
    machine.write("sys/fs/c group/memory.usage_in_bytes", GIB)
    machine.write("sys/fs/unified/memory.max", 7 * GIB)
    machine.write("sys/fs/unified/memory.current", GIB)
    assert [limit.total_bytes for limit in cgroup_limits(tmp_path)] == [5 * GIB, 7 * GIB]


@pytest.mark.parametrize(
    ("limit", "usage"), [(V1_UNLIMITED, GIB), (2**63 - 1, GIB), (0, GIB), (-1, GIB), (128 * GIB, GIB)]
)
def test_no_limit_or_one_above_the_machine_leaves_the_machine(tmp_path: Path, limit: int, usage: int) -> None:
    machine = Machine(tmp_path, "4:memory:/", V1_MOUNT.format(root="/"))
    machine.v1("", limit, usage)
    reading = machine.read()
    assert (reading.total_bytes, reading.available_bytes, reading.source) == (64 * GIB, 48 * GIB, "test")


def test_a_machine_that_has_less_left_than_the_container_is_what_counts(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "0::/", V2_MOUNT.format(root="/"))
    machine.v2("", 8 * GIB, GIB)
    reading = machine.read(available=2 * GIB)
    assert (reading.total_bytes, reading.available_bytes) == (64 * GIB, 2 * GIB)


def test_a_group_over_its_limit_has_nothing_available(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "0::/", V2_MOUNT.format(root="/"))
    machine.v2("", 2 * GIB, 3 * GIB)
    reading = machine.read()
    assert (reading.used_bytes, reading.available_bytes) == (2 * GIB, 0)
    assert MemoryLimit("x", 5, 9).available_bytes == 0


@pytest.mark.parametrize("text", ["", "junk\n:::\n0:\n", "0::/a"])
def test_damaged_or_missing_files_limit_nothing(tmp_path: Path, text: str) -> None:
    assert cgroup_limits(tmp_path) == []
    machine = Machine(tmp_path, text, "junk\n- -\n1 2 3 - cgroup2\n" + V2_MOUNT.format(root="/"))
    machine.write("sys/fs/cgroup/a/memory.max", "lots")
    assert cgroup_limits(tmp_path) == []


def test_a_source_that_lies_gives_way_to_the_next(tmp_path: Path) -> None:
    probe = HostProbe([("psutil", lambda: (0, 0)), ("sysconf", by_sysconf)], tmp_path, lambda: False)
    picture = read_memory([probe])
    assert [reading.source for reading in picture.readings] == ["sysconf"]
    assert [failure.source for failure in picture.failures] == ["psutil"]
    assert by_sysconf()[0] == pytest.approx(by_psutil()[0], rel=0.02)


def test_this_machine_is_read_within_what_the_kernel_says() -> None:
    [reading] = read_memory([HostProbe()]).readings
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total = int(fields["MemTotal"].split()[0]) * 1024
    assert reading.total_bytes <= total
    assert reading.held_bytes == pytest.approx(psutil.Process().memory_info().rss, rel=0.1)


HOG = """
import resource, sys
from pathlib import Path
from kvloom.memory.host import HostProbe
from kvloom.memory.probe import read_memory
import psutil
limit = psutil.Process().memory_info().vms + 256 * 1024**2
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
# The limit is the tightest, however little the machine has free.
probe = HostProbe([("test", lambda: (1 << 50, 1 << 50))], Path("/nowhere"), lambda: False)
[before] = read_memory([probe]).readings
hog = bytearray(100 * 1024**2)
[after] = read_memory([probe]).readings
print(limit, before.total_bytes, before.available_bytes, after.available_bytes, after.source)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to this limit")
def test_a_limit_of_addresses_is_read_and_what_is_taken_shows() -> None:
    done = subprocess.run([sys.executable, "-c", HOG], capture_output=True, text=True, check=True)
    limit, total, before, after = (int(word) for word in done.stdout.split()[:4])
    assert limit == total
    assert before <= 256 * 1024**2
    assert before - after == pytest.approx(100 * 1024**2, rel=0.05)
    assert done.stdout.strip().endswith("ulimit -v")

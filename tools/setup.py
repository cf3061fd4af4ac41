"""Makes .venv and installs kvloom into it, with llama.cpp built for this CPU; does nothing where that is done already.

Knows nothing of kvloom's code; runs on any Python 3.11+ without installed packages. It never asks anything.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from tools import cpu_flags  # noqa: E402 - the folder has to be on the path first

VENV = ROOT / ".venv"
STAMP = VENV / "kvloom-setup.json"
CONSTRAINTS = ROOT / "constraints.txt"
LLAMA = "llama-cpp-python"
BEAT_S = 15.0
"""How often a long step says that it is alive where the output is no terminal."""


class SetupError(Exception):
    """What went wrong and what to do, for the person at the terminal."""


@dataclass(frozen=True)
class Build:
    """How llama.cpp is built here. `key` is equal where a wheel can be shared."""

    version: str
    cmake_args: str
    given_by_user: bool
    key: str


@dataclass(frozen=True)
class Stamp:
    """What the last setup installed; equal to what is wanted now means that nothing is to be done."""

    recipe: str
    python: str
    build: Build
    extras: tuple[str, ...]


def read_stamp() -> Stamp | None:
    try:
        raw = json.loads(STAMP.read_text(encoding="utf-8"))
        return Stamp(raw["recipe"], raw["python"], Build(**raw["build"]), tuple(raw["extras"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write_stamp(stamp: Stamp) -> None:
    STAMP.write_text(json.dumps(asdict(stamp), indent=1) + "\n", encoding="utf-8")


def recipe_hash() -> str:
    """Changes when what has to be installed changes: not with the settings of the linters."""
    import tomllib  # here, so that an older Python still gets as far as the message about its age

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = json.dumps([project["project"], project["build-system"], str(ROOT)], sort_keys=True)
    return hashlib.sha256(wanted.encode() + CONSTRAINTS.read_bytes()).hexdigest()


def wanted_build(before: Stamp | None) -> Build:
    pinned = re.search(rf"^{LLAMA}==(\S+)$", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE)
    if pinned is None:
        raise SetupError(f"constraints.txt pins no {LLAMA}")
    environ = dict(os.environ)
    # A build that the user asked for once (say, for a GPU) is not replaced because a later call does not repeat it.
    if not environ.get("CMAKE_ARGS", "").strip() and before is not None and before.build.given_by_user:
        environ["CMAKE_ARGS"] = before.build.cmake_args
    features, machine = cpu_flags.cpu_features(), platform.machine()
    args = cpu_flags.cmake_args(machine, features, environ)
    given = bool(environ.get("CMAKE_ARGS", "").strip())
    return Build(pinned[1], args, given, cpu_flags.build_key(args, machine, features))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def venv_python() -> Path:
    return VENV / "bin" / "python"


def python_version(python: Path) -> str | None:
    """Major.minor.micro of an interpreter, None where it does not run."""
    command = [str(python), "-c", "import platform; print(platform.python_version())"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def make_venv() -> str:
    """Makes .venv where there is none that runs. Returns its Python's version."""
    version = python_version(venv_python())
    if version is not None and (VENV / "bin" / "pip").exists():
        return version
    say(f"making {VENV} with Python {platform.python_version()}")
    done = subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=False)
    if done.returncode != 0:
        raise SetupError(
            "Python could not make a virtual environment. On Debian and Ubuntu: apt-get install python3-venv"
        )
    return platform.python_version()


def installed_version(package: str) -> str | None:
    code = (
        "import importlib.metadata as m, sys\ntry: print(m.version(sys.argv[1]))\nexcept m.PackageNotFoundError: pass"
    )
    done = subprocess.run([str(venv_python()), "-c", code, package], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def pip(*args: str) -> list[str]:
    return [str(venv_python()), "-m", "pip", "--disable-pip-version-check", *args]


def pip_environ() -> dict[str, str]:
    """The environment for pip: no questions, and the pinned versions for build tools as well."""
    pinned = {"PIP_NO_INPUT": "1", "PIP_CONSTRAINT": str(CONSTRAINTS), "PIP_BUILD_CONSTRAINT": str(CONSTRAINTS)}
    return {**os.environ, **pinned}


def cache_folder() -> Path:
    """This user's cache of finished wheels, shared by all clones."""
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "kvloom" / "wheels"


def llama_wheel(build: Build) -> Path:
    """The wheel of llama-cpp-python for this build: from our cache, else built.

    pip's own wheel cache is left out on purpose: it knows nothing of CMAKE_ARGS or the CPU, so a home folder that
    moves to another machine would hand over a library that dies of an illegal instruction.
    """
    folder = cache_folder() / f"{build.version}-{build.key}"
    for wheel in sorted(folder.glob("llama_cpp_python-*.whl")):
        say(f"using the llama.cpp that was built before: {wheel}")
        return wheel
    if shutil.which("c++") is None and shutil.which("g++") is None and shutil.which("clang++") is None:
        raise SetupError("llama.cpp needs a C++ compiler to build. On Debian and Ubuntu: apt-get install g++")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="build-", dir=folder.parent) as temporary:
        scratch = Path(temporary)
        build_wheel(build, scratch)
        made = list(scratch.glob("llama_cpp_python-*.whl"))
        if len(made) != 1:
            raise SetupError(f"the build left {len(made)} wheels in {scratch}, expected one")
        folder.mkdir(exist_ok=True)
        target = folder / made[0].name
        made[0].replace(target)
    return target


def build_wheel(build: Build, scratch: Path) -> None:
    cores = os.cpu_count() or 1
    say(f"building llama.cpp ({LLAMA} {build.version}) on {cores} cores; on 2 cores this takes 4 to 7 minutes, once")
    say(f"  CMAKE_ARGS={build.cmake_args or '(the compiler decides)'}")
    # -v: the only way to see the compiler's progress; --no-cache-dir: see llama_wheel.
    command = pip("wheel", "-v", "--no-cache-dir", "--no-deps", "--no-binary", LLAMA, "--wheel-dir", str(scratch))
    command += ["-c", str(CONSTRAINTS), f"{LLAMA}=={build.version}"]
    environ = {**pip_environ(), "CMAKE_ARGS": build.cmake_args}
    log = cache_folder() / "last-build.log"
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with (
        log.open("w", encoding="utf-8") as sink,
        subprocess.Popen(command, env=environ, text=True, errors="replace", **pipes) as process,
    ):
        assert process.stdout is not None
        try:
            Progress().follow(process.stdout, sink)
        except BaseException:
            process.terminate()
            raise
    code = process.returncode
    if code != 0:
        tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-25:])
        raise SetupError(f"llama.cpp did not build (pip ended with {code}). The end of {log}:\n{tail}")


class Progress:
    """Shows how far a build is: one line that changes on a terminal, a line every BEAT_S elsewhere."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.state = "fetching the source"
        self.done = threading.Event()

    def follow(self, source: IO[str], sink: IO[str]) -> None:
        beat = threading.Thread(target=self._beat, daemon=True)
        beat.start()
        try:
            for line in source:
                sink.write(line)
                self._read(line)
        finally:
            self.done.set()
            beat.join()

    def _read(self, line: str) -> None:
        if found := re.search(r"\[(\d+)/(\d+)\]", line):
            self.state = f"compiling, step {found[1]} of {found[2]}"
        elif "Installing build dependencies" in line:
            self.state = "fetching cmake and ninja"
        elif "Configuring CMake" in line:
            self.state = "configuring"

    def _beat(self) -> None:
        terminal = sys.stderr.isatty()
        while not self.done.wait(1.0 if terminal else BEAT_S):
            minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
            text = f"  {self.state} ({minutes} min {seconds:02d} s)"
            print(f"\r{text:<70}" if terminal else text, end="" if terminal else "\n", file=sys.stderr, flush=True)
        if terminal:
            print(file=sys.stderr)


def run_pip(*args: str) -> None:
    # What pip prints goes to stderr, so that a target's own output stays clean.
    done = subprocess.run(pip(*args), env=pip_environ(), stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)
    if done.returncode != 0:
        raise SetupError(
            f"pip ended with {done.returncode}; its message is above. Without a network nothing new installs"
        )


def install_llama(build: Build, before: Stamp | None) -> None:
    same_build = before is None or before.build.key == build.key
    if same_build and installed_version(LLAMA) == build.version:
        return
    wheel = llama_wheel(build)
    run_pip("install", "--quiet", "--force-reinstall", "--no-deps", str(wheel))


def check_imports() -> None:
    done = subprocess.run(
        [str(venv_python()), "-c", "import kvloom, llama_cpp"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SetupError(f"the installation does not import (exit {done.returncode}):\n{done.stderr.strip()}")


def setup(extras: set[str]) -> None:
    before = read_stamp()
    build = wanted_build(before)
    python = make_venv()
    if before is not None and before.python != python:
        before = None
    recipe = recipe_hash()
    kept = set(before.extras) if before is not None else set()
    wanted = Stamp(recipe, python, build, tuple(sorted(kept | extras)))
    if before == wanted:
        return
    install_llama(build, before)
    # From here on until the end the stamp says what llama.cpp is there, and that the rest is not.
    write_stamp(replace(wanted, recipe="unfinished"))
    say("installing kvloom" + (f" with {', '.join(wanted.extras)}" if wanted.extras else ""))
    target = f"{ROOT}[{','.join(wanted.extras)}]" if wanted.extras else str(ROOT)
    run_pip("install", "--quiet", "--progress-bar", "on", "-c", str(CONSTRAINTS), "-e", target)
    check_imports()
    write_stamp(wanted)
    say(f"ready: {VENV / 'bin' / 'kvloom'}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extra", action="append", default=[], choices=["dev", "bench"], help="install this as well")
    arguments = parser.parse_args()
    try:
        setup(set(arguments.extra))
    except SetupError as error:
        say(f"setup: {error}")
        return 1
    except KeyboardInterrupt:
        say("setup: stopped; run it again to go on")
        return 130
    return 0


if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036 - the system's Python may be older than what the project needs
        sys.exit(f"kvloom needs Python 3.11 or newer, this is {platform.python_version()}; set PYTHON=python3.11")
    sys.exit(main())

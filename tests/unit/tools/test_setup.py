from __future__ import annotations

import io
import json
import platform
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tools import cpu_flags, setup


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone whose .venv is this one's Python; what setup would run is recorded instead."""
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((setup.ROOT / name).read_text())
    (tmp_path / ".venv").mkdir()
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    monkeypatch.setattr(setup, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(setup, "STAMP", tmp_path / ".venv" / "stamp.json")
    monkeypatch.setattr(setup, "CONSTRAINTS", tmp_path / "constraints.txt")
    monkeypatch.setattr(setup, "make_venv", lambda: "3.11.7")
    monkeypatch.setattr(setup, "check_imports", lambda: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    return tmp_path


@pytest.fixture
def ran(clone: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was built and installed, in order."""
    done: list[str] = []

    def build(build: setup.Build, scratch: Path) -> None:
        done.append(f"build {build.cmake_args.split(' ', maxsplit=1)[0]}")
        (scratch / f"llama_cpp_python-{build.version}-py3-none-any.whl").write_bytes(b"wheel")

    def run_pip(*args: str) -> None:
        done.append(f"pip {Path(args[-1]).name}")
        if args[-1].endswith(".whl"):
            monkeypatch.setattr(setup, "installed_version", lambda _: setup.wanted_build(None).version)

    monkeypatch.setattr(setup, "installed_version", lambda _: None)
    monkeypatch.setattr(setup, "build_wheel", build)
    monkeypatch.setattr(setup, "run_pip", run_pip)
    return done


def test_a_second_setup_does_nothing(clone: Path, ran: list[str]) -> None:
    setup.setup({"dev"})
    assert [line.split()[0] for line in ran] == ["build", "pip", "pip"]
    ran.clear()
    setup.setup({"dev"})
    setup.setup(set())
    assert ran == []


def test_another_extra_keeps_those_that_are_there(clone: Path, ran: list[str]) -> None:
    setup.setup({"dev"})
    ran.clear()
    setup.setup({"bench"})
    assert ran == [f"pip {clone.name}[bench,dev]"]


def test_a_changed_pin_installs_again_and_a_changed_linter_setting_does_not(clone: Path, ran: list[str]) -> None:
    setup.setup(set())
    ran.clear()
    project = clone / "pyproject.toml"
    project.write_text(project.read_text().replace("max-complexity = 14", "max-complexity = 15"))
    setup.setup(set())
    assert ran == []
    pins = clone / "constraints.txt"
    pins.write_text(pins.read_text() + "another==1.0\n")
    setup.setup(set())
    assert ran != []


def test_a_second_clone_takes_the_wheel_that_the_first_built(
    clone: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    setup.setup(set())
    setup.STAMP.unlink()
    monkeypatch.setattr(setup, "installed_version", lambda _: None)
    ran.clear()
    setup.setup(set())
    assert not any(line.startswith("build") for line in ran)


def test_a_venv_that_has_llama_cpp_already_is_taken_over(
    clone: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    version = setup.wanted_build(None).version
    monkeypatch.setattr(setup, "installed_version", lambda _: version)
    setup.setup(set())
    assert ran == [f"pip {clone.name}"]


def test_a_gpu_build_stays_where_a_later_call_does_not_repeat_its_flags(
    clone: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    setup.setup(set())
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_CUDA=on")
    setup.setup(set())
    assert "build -DGGML_CUDA=on" in ran
    monkeypatch.delenv("CMAKE_ARGS")
    ran.clear()
    setup.setup({"dev"})
    assert ran == [f"pip {clone.name}[dev]"]


def test_a_home_on_another_cpu_builds_again(clone: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    setup.setup(set())
    ran.clear()
    monkeypatch.setattr(cpu_flags, "cpu_features", lambda: frozenset({"sse4_2"}))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    setup.setup(set())
    assert ran[0].startswith("build")


def test_an_interrupted_setup_goes_on(clone: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: str) -> None:
        ran.append("pip fails")
        if "-e" in args:
            raise setup.SetupError("no network")

    with monkeypatch.context() as patch:
        patch.setattr(setup, "run_pip", fail)
        with pytest.raises(setup.SetupError):
            setup.setup(set())
    ran.clear()
    wheel_is_in = setup.wanted_build(None).version
    monkeypatch.setattr(setup, "installed_version", lambda _: wheel_is_in)
    setup.setup(set())
    assert ran == [f"pip {clone.name}"]


def test_a_damaged_stamp_counts_as_none(clone: Path) -> None:
    stamp = setup.Stamp("r", "3.11.7", setup.wanted_build(None), ("dev",))
    setup.write_stamp(stamp)
    assert setup.read_stamp() == stamp
    for damage in ("", "{", "[]", "{}", json.dumps(asdict(stamp) | {"build": 3})):
        setup.STAMP.write_text(damage)
        assert setup.read_stamp() is None


def test_pins_without_llama_cpp_are_told(clone: Path) -> None:
    (clone / "constraints.txt").write_text("numpy==2.0\n")
    with pytest.raises(setup.SetupError, match="llama-cpp-python"):
        setup.wanted_build(None)


def test_a_build_says_that_it_is_alive(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real child process whose output is that of a build, and that stays at a step until it was told."""
    monkeypatch.setattr(setup, "BEAT_S", 0.05)
    code = (
        "import select, sys\n"
        "for i in range(1, 5):\n"
        "    if i == 4: select.select([sys.stdin], [], [], 60)\n"
        "    print(f'  [{i}/4] Building CXX object')"
    )
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stdin = process.stdin

    class Told(io.StringIO):
        def write(self, text: str) -> int:
            if "step 3 of 4" in text:
                stdin.close()
            return super().write(text)

    told = Told()
    monkeypatch.setattr(sys, "stderr", told)
    with process, (clone / "log").open("w") as log:
        setup.Progress().follow(process.stdout, log)
    assert "compiling, step 3 of 4" in told.getvalue()
    assert "[4/4]" in (clone / "log").read_text()


def test_a_build_that_fails_shows_the_end_of_its_log(
    clone: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cache" / "kvloom" / "wheels").mkdir(parents=True)
    code = "print('fatal error: no such header'); raise SystemExit(3)"
    monkeypatch.setattr(setup, "pip", lambda *_: [sys.executable, "-c", code])
    with pytest.raises(setup.SetupError, match=r"(?s)ended with 3.*no such header"):
        setup.build_wheel(replace(setup.wanted_build(None), cmake_args=""), tmp_path)

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tools.cpu_flags import X86_SWITCHES, build_key, cmake_args, cpu_features, parse_cpuinfo

AVX512 = frozenset({"avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"})
AMX = frozenset({"amx_tile", "amx_int8", "amx_bf16"})
SANDY_BRIDGE = frozenset({"sse4_2", "avx"})
ALDER_LAKE = SANDY_BRIDGE | {"avx2", "fma", "f16c", "bmi2", "avx_vnni"}
SAPPHIRE_RAPIDS = ALDER_LAKE | AVX512 | AMX | {"avx512vbmi", "avx512_vnni", "avx512_bf16"}


def test_every_feature_is_named_and_amx_never() -> None:
    args = cmake_args("x86_64", SAPPHIRE_RAPIDS, {})
    assert args.startswith("-DGGML_NATIVE=OFF ")
    assert {word for word in args.split() if word.endswith("=ON")} == {f"-D{name}=ON" for name in X86_SWITCHES}
    assert "AMX" not in args


def test_what_an_old_cpu_lacks_is_switched_off_since_llama_cpp_would_switch_it_on() -> None:
    args = cmake_args("x86_64", SANDY_BRIDGE, {}).split()
    assert {word for word in args if word.endswith("=ON")} == {"-DGGML_SSE42=ON", "-DGGML_AVX=ON"}
    for name in ("AVX2", "FMA", "F16C", "BMI2"):
        assert f"-DGGML_{name}=OFF" in args
    assert not any("FLAGS" in word for word in args)


def test_f16_scales_are_converted_by_the_cpu_where_it_can_and_the_flags_survive_two_shells() -> None:
    args = shlex.split(cmake_args("x86_64", ALDER_LAKE, {}))  # as the build back end splits them
    flags = {name: value for name, _, value in (word.removeprefix("-DCMAKE_").partition("=") for word in args)}
    assert flags["C_FLAGS"] == flags["CXX_FLAGS"]
    assert shlex.split(flags["C_FLAGS"]) == ["-funroll-loops", "-DGGML_CPU_FP16_TO_FP32(x)=_cvtsh_ss(x)"]


def test_avx512_needs_all_of_its_five_parts() -> None:
    args = cmake_args("x86_64", SAPPHIRE_RAPIDS - {"avx512dq"}, {}).split()
    assert "-DGGML_AVX512=OFF" in args
    assert "-DGGML_AVX512_VNNI=OFF" in args
    assert "-DGGML_AVX_VNNI=ON" in args


def test_what_the_user_set_is_left_as_it_is() -> None:
    assert cmake_args("x86_64", SAPPHIRE_RAPIDS, {"CMAKE_ARGS": " -DGGML_CUDA=on "}) == "-DGGML_CUDA=on"


@pytest.mark.parametrize(("machine", "features"), [("aarch64", SAPPHIRE_RAPIDS), ("x86_64", frozenset[str]())])
def test_elsewhere_the_compiler_decides(machine: str, features: frozenset[str]) -> None:
    assert cmake_args(machine, features, {}) == ""


def test_only_features_of_all_cores_count() -> None:
    text = "processor: 0\nflags\t\t: avx avx2\n\nprocessor: 1\nflags\t\t: AVX fma\n"
    assert parse_cpuinfo(text) == {"avx"}
    assert parse_cpuinfo("Features : fp asimd\n") == {"fp", "asimd"}
    assert parse_cpuinfo("nothing") == frozenset()


def test_a_wheel_is_shared_only_where_it_runs() -> None:
    named = cmake_args("x86_64", SANDY_BRIDGE, {})
    # All that matters is in the flags: another CPU with the same ones shares the wheel …
    assert build_key(named, "x86_64", SANDY_BRIDGE) == build_key(named, "x86_64", SANDY_BRIDGE | {"rdrand"})
    # … but where the compiler decides, another CPU needs its own.
    assert build_key("", "aarch64", frozenset({"sve"})) != build_key("", "aarch64", frozenset({"sve2"}))
    assert build_key(named, "x86_64", SANDY_BRIDGE) != build_key(named + " -DX=1", "x86_64", SANDY_BRIDGE)


def test_it_prints_the_flags_of_this_machine() -> None:
    script = Path(__file__).parents[3] / "tools" / "cpu_flags.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, env={})
    if cpu_features() and done.stdout.strip():
        assert done.stdout.startswith("-DGGML_NATIVE=OFF")

"""Chooses llama.cpp's build flags from this machine's CPU and prints them as CMAKE_ARGS.

Knows nothing of kvloom; runs on any Python 3.11+ without installed packages.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

# ggml's x86 switch: the CPU flags that all have to be there, as Linux and macOS spell them (lower case).
X86_SWITCHES: dict[str, tuple[str, ...]] = {
    "GGML_SSE42": ("sse4_2",),
    "GGML_AVX": ("avx",),
    "GGML_AVX2": ("avx2",),
    "GGML_FMA": ("fma",),
    "GGML_F16C": ("f16c",),
    "GGML_BMI2": ("bmi2",),
    "GGML_AVX_VNNI": ("avx_vnni",),
    # ggml compiles its AVX-512 code with these five together.
    "GGML_AVX512": ("avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"),
    "GGML_AVX512_VBMI": ("avx512vbmi",),
    "GGML_AVX512_VNNI": ("avx512_vnni",),
    "GGML_AVX512_BF16": ("avx512_bf16",),
}

# ggml's dot products look f16 scales up in a table of 256 KiB; a CPU with F16C converts them in one instruction, to the
# same value. With that and the loops unrolled, decoding is 7 to 10 % faster (docs/benchmarks.md). The parentheses reach
# a shell twice: CMAKE_ARGS is split like a command line, and the compiler's command is one.
F16C_FLAGS = r"-funroll-loops -DGGML_CPU_FP16_TO_FP32\(x\)=_cvtsh_ss\(x\)"

# macOS names some features differently.
MACOS_NAMES = {"sse4.2": "sse4_2", "avx1.0": "avx", "avx512vnni": "avx512_vnni", "avx512bf16": "avx512_bf16"}


def cpu_features() -> frozenset[str]:
    """The CPU's features in lower case; of several cores, those that all of them have. Empty where unknown."""
    if sys.platform == "darwin":
        return _macos_features()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return frozenset()
    return parse_cpuinfo(text)


def parse_cpuinfo(text: str) -> frozenset[str]:
    lines = re.findall(r"^(?:flags|Features)\s*:\s*(.*)$", text, flags=re.MULTILINE)
    if not lines:
        return frozenset()
    return frozenset.intersection(*(frozenset(line.lower().split()) for line in lines))


def _macos_features() -> frozenset[str]:
    keys = ("machdep.cpu.features", "machdep.cpu.leaf7_features", "machdep.cpu.leaf7_subfeatures")
    done = subprocess.run(["sysctl", "-n", *keys], capture_output=True, text=True, check=False)
    return frozenset(MACOS_NAMES.get(word, word) for word in done.stdout.lower().split())


def cmake_args(machine: str, features: frozenset[str], environ: Mapping[str, str]) -> str:
    """The user's own CMAKE_ARGS where set, else flags that name what this CPU has.

    AMX is never among them: inside some virtual machines its first instruction kills the process, and on the others
    a build without it decodes faster. Elsewhere than on x86 the compiler's own choice for the machine is right.
    """
    given = environ.get("CMAKE_ARGS", "").strip()
    if given:
        return given
    if machine.lower() not in ("x86_64", "amd64") or not features:
        return ""
    avx512 = X86_SWITCHES["GGML_AVX512"]
    needed = {n: flags + (avx512 if n.startswith("GGML_AVX512") else ()) for n, flags in X86_SWITCHES.items()}
    switches = {name: features.issuperset(flags) for name, flags in needed.items()}
    named = ["-DGGML_NATIVE=OFF", *(f"-D{name}={'ON' if on else 'OFF'}" for name, on in switches.items())]
    if switches["GGML_F16C"]:
        named += [f"-DCMAKE_{language}_FLAGS='{F16C_FLAGS}'" for language in ("C", "CXX")]
    return " ".join(named)


def build_key(args: str, machine: str, features: frozenset[str]) -> str:
    """Names a build: equal keys mean that a wheel built here runs here. 16 hex digits."""
    # Where the flags leave the choice to the compiler, its choice follows the CPU.
    cpu = "" if "-DGGML_NATIVE=OFF" in args else " ".join(sorted(features))
    return hashlib.sha256(f"{sys.platform}\0{machine}\0{args}\0{cpu}".encode()).hexdigest()[:16]


def main() -> None:
    print(cmake_args(platform.machine(), cpu_features(), os.environ))


if __name__ == "__main__":
    main()

"""Writes constraints.txt: the version in .venv of every package that kvloom or one of its extras needs.

Knows nothing of registries: it reads what is installed. Run it with .venv's Python after an upgrade.
"""

from __future__ import annotations

import importlib.metadata
import tomllib
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
HEADER = "# The versions that kvloom is tested with. Written by tools/pin.py from .venv; not edited by hand.\n"
BUILD_TOOLS = {"cmake": "4.4.4", "ninja": "1.13.2", "scikit-build-core": "1.1.2"}
"""What builds llama.cpp in an environment of its own, hence not in .venv."""
BUILD_BACKEND = "hatchling"


def applies(requirement: Requirement, extras: set[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in {"", *extras})


def needs(requirement: Requirement) -> list[Requirement]:
    """What an installed package asks for, on this Python, with the extras that the requirement names."""
    texts = importlib.metadata.requires(requirement.name) or ()
    return [need for need in map(Requirement, texts) if applies(need, requirement.extras)]


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [*project["dependencies"], BUILD_BACKEND, *chain(*project["optional-dependencies"].values())]
    waiting = [requirement for requirement in map(Requirement, texts) if applies(requirement, set())]
    pins = dict(BUILD_TOOLS)
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        identity = (requirement.name, frozenset(requirement.extras))
        if identity in seen:
            continue
        seen.add(identity)
        pins[canonicalize_name(requirement.name)] = importlib.metadata.version(requirement.name)
        waiting += needs(requirement)
    lines = [f"{name}=={version}\n" for name, version in sorted(pins.items())]
    (ROOT / "constraints.txt").write_text(HEADER + "".join(lines), encoding="utf-8")
    print(f"{len(pins)} packages pinned")


if __name__ == "__main__":
    main()

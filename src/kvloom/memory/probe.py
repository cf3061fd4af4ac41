"""The seam for memory probes, the registry of those there are, and `read_memory`, which asks them all.

A probe is one file and one line in `make_probes`. Knows no vendor's library: those are imported where they are asked.
"""

from __future__ import annotations

import logging
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvloom.memory.reading import MemoryPicture, MemoryReading, ProbeFailure, ServedModel, fault

__all__ = ["Answer", "Probe", "Run", "Source", "make_probes", "read_memory", "run_command"]

log = logging.getLogger(__name__)

COMMAND_TIMEOUT_S = 5.0
"""Vendors' tools answer within a second; one that hangs (a lost GPU) must not hold up the monitor."""

Run = Callable[[Sequence[str]], str]
"""Runs a command and gives its standard output; raises OSError or subprocess.SubprocessError."""


@dataclass(frozen=True)
class Answer:
    """What a source said. `absent`: why there is nothing to read here, which is no failure; else empty.

    `failures` are reasons, one for each device that could not be read while others could.
    """

    readings: tuple[MemoryReading, ...] = ()
    served: tuple[ServedModel, ...] = ()
    absent: str = ""
    failures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """One way to read a probe's devices. `read` may raise anything: that is a failure of this source."""

    name: str
    read: Callable[[], Answer]


class Probe(ABC):
    """Reads one kind of memory. Its sources are asked in order, until one gives a true answer.

    A probe is used by one thread at a time, and may keep a library open between two readings until `close`.
    """

    name: str

    def absence(self) -> str:
        """Why there is nothing to ask here; empty where there may be. Costs nothing: no library, no process."""
        return ""

    @abstractmethod
    def sources(self) -> Sequence[Source]:
        """The ways to read, the best first."""

    def close(self) -> None:  # noqa: B027 - most probes keep nothing open
        """Lets go of what the probe keeps open. Idempotent; the probe may be asked again."""


def make_probes() -> tuple[Probe, ...]:
    """A new probe of every kind, accelerators first."""
    from kvloom.memory.amd import AmdProbe
    from kvloom.memory.apple import AppleProbe
    from kvloom.memory.host import HostProbe
    from kvloom.memory.nvidia import NvidiaProbe
    from kvloom.memory.ollama import OllamaProbe

    return (NvidiaProbe(), AmdProbe(), AppleProbe(), HostProbe(), OllamaProbe())


def read_memory(probes: Sequence[Probe] | None = None) -> MemoryPicture:
    """Ask `probes` (by default one of each kind, made for this reading). Raises nothing: failures are in the picture.

    Whoever reads again and again keeps the probes of `make_probes` and closes them: opening a vendor's library is
    what costs.
    """
    if probes is None:
        made = make_probes()
        try:
            return read_memory(made)
        finally:
            for probe in made:
                probe.close()
    answers = [_ask(probe) for probe in probes]
    return MemoryPicture(
        readings=tuple(reading for answer in answers for reading in answer.readings),
        served=tuple(model for answer in answers for model in answer.served),
        failures=tuple(failure for answer in answers for failure in answer.failures),
    )


def _ask(probe: Probe) -> MemoryPicture:
    """The part of the picture that one probe gives."""
    failures: list[ProbeFailure] = []
    reason = probe.absence()
    if reason:
        log.debug("%s: %s", probe.name, reason)
        return MemoryPicture()
    for source in probe.sources():
        try:
            answer = source.read()
        except Exception as error:  # noqa: BLE001 - the edge to vendors' libraries and tools: whatever they do is an answer
            what = str(error) or type(error).__name__
            failures.append(ProbeFailure(probe.name, source.name, what))
            continue
        if answer.absent:
            log.debug("%s: %s", source.name, answer.absent)
            continue
        reasons = [*answer.failures, *filter(None, map(fault, answer.readings))]
        failures += [ProbeFailure(probe.name, source.name, reason) for reason in reasons]
        true = tuple(reading for reading in answer.readings if not fault(reading))
        if true or answer.served or not reasons:
            return MemoryPicture(true, answer.served, tuple(failures))
    return MemoryPicture(failures=tuple(failures))


def run_command(arguments: Sequence[str]) -> str:
    """A command's standard output. Raises OSError or subprocess.SubprocessError, with what it said where it failed."""
    done = subprocess.run(
        arguments, capture_output=True, text=True, errors="replace", timeout=COMMAND_TIMEOUT_S, check=False
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().partition("\n")[0]
        raise subprocess.SubprocessError(f"`{' '.join(arguments)}` ended with code {done.returncode}: {said}")
    return done.stdout

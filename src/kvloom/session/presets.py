"""Brings profiles into sessions and makes them out of sessions. Knows what a session holds, no engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kvloom.chunk.profiles import Profile, expand
from kvloom.context.placing import standing
from kvloom.session.values import Chunk

if TYPE_CHECKING:
    from kvloom.session.loom import Loom
    from kvloom.session.session import Session

FIDELITY = "fidelity"


def profile_of(loom: Loom, name: str, session: Session, sources: Sequence[str] | None) -> Profile:
    """The session's chunks (their files, where they came from files), system prompt and fidelity under a name."""
    if sources is None:
        brought = set(standing(session.manifest))
        active = [chunk for chunk in session.manifest.active_chunk_ids if chunk not in brought]
        sources = [loom.shelf.status(chunk).source or chunk for chunk in active]
    return Profile(name, tuple(sources), session.system, {FIDELITY: session.fidelity.value})


def bring_in(loom: Loom, profile: Profile, session: Session) -> list[Chunk]:
    """A filled profile's chunks, read afresh, its system prompt and settings into a session."""
    chunks = []
    for source in profile.sources:
        paths = expand(source, Path.cwd())
        if paths:
            chunks += [session.load(path) for path in paths]
        else:
            session.activate(source)
            status = loom.shelf.status(loom.resolve(source))
            chunks.append(Chunk(status.id, status.name, status.num_tokens, 1, status.size_bytes, is_new=False))
    if profile.system != session.system:
        session.set_system(profile.system)
    if FIDELITY in profile.settings:
        session.set_fidelity(profile.settings[FIDELITY])
    return chunks

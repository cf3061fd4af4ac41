"""One process of `bench restart`: stores a context and ends, or takes a stored one up and asks. Prints one JSON line.

Knows the façade; what is compared with what is its parent's business.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvloom.bench.documents import Questions, documents
from kvloom.bench.setting import SYSTEM, Request, open_loom, peer_settings, settings_for, setup_of
from kvloom.session.probe import Probe
from kvloom.types import SessionId

if TYPE_CHECKING:
    from kvloom.session.loom import Loom


def store(loom: Loom, job: Mapping[str, Any]) -> dict[str, Any]:
    """Documents into a session, computed and stored."""
    size = job["size"]
    began = time.perf_counter()
    with loom.session(system=SYSTEM, fidelity=job["fidelity"]) as session:
        for doc in documents(loom.count, size["num_documents"], size["document_tokens"]):
            session.activate(loom.load_text(doc.text, name=doc.name).id)
        session.warm()
        question = Questions(loom.count, job["question_tokens"], seed=2).next()
        prompt = Probe(session).question_tokens(question)
        session.rename(f"restart-{job['fidelity']}")
        found = {"session": session.id, "tokens": session.tokens(), "question": prompt}
    loom.flush()
    seconds = time.perf_counter() - began
    peer = asdict(peer_settings(loom, size["context"], slot_save_path=job["slots"]))
    return {**found, "seconds": seconds, "setup": setup_of(loom, {}), "peer": peer}


def ask(loom: Loom, job: Mapping[str, Any]) -> dict[str, Any]:
    """A stored session to its first token. The tail is given as token ids, so that both sides compute the same."""
    began = time.perf_counter()
    session = loom.session(id=SessionId(job["session"]))
    resumed = time.perf_counter()
    warmed = session.warm()
    woven = time.perf_counter()
    logits = Probe(session).logits_behind(job["question"])
    int(logits.argmax())
    ended = time.perf_counter()
    return {
        "ttft_s": ended - began,
        "resume_s": resumed - began,
        "weave_s": woven - resumed,
        "question_s": ended - woven,
        "loaded_tokens": warmed.loaded_tokens,
        "rotated_tokens": warmed.rotated_tokens,
        "computed_tokens": warmed.computed_tokens + len(job["question"]),
    }


def main(job: Mapping[str, Any]) -> dict[str, Any]:
    request = Request(model=job["model"], threads=job["threads"])
    settings = settings_for(request, context=job["size"]["context"], fidelity=job["fidelity"])
    began = time.perf_counter()
    with open_loom(settings, Path(job["home"])) as loom:
        load_s = time.perf_counter() - began
        found = store(loom, job) if job["job"] == "store" else ask(loom, job)
    return {**found, "load_s": load_s}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))  # noqa: T201 - the parent reads it

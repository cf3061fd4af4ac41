"""`bench serve`: clients at once on our server and on llama.cpp's, with the same file, threads and KV type.

Knows HTTP and the peer; nothing of either server's inside.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from kvloom.bench.documents import Document, documents
from kvloom.bench.llama_server import LlamaServer
from kvloom.bench.load import Answer, Call, Load, drive
from kvloom.bench.load import run as run_load
from kvloom.bench.overhead import one_client_row, overhead_row
from kvloom.bench.peer import Peer, require_peer
from kvloom.bench.report import Report, Row
from kvloom.bench.served import Served, environment_of
from kvloom.bench.setting import Request, open_loom, own_home, peer_settings, settings_for, setup_of
from kvloom.bench.sharing import sharing_rows
from kvloom.bench.streams import stream_rows
from kvloom.bench.teller import Teller
from kvloom.errors import UsageError

if TYPE_CHECKING:
    from kvloom.bench.peer import PeerSettings
    from kvloom.config import Settings

CLIENTS = 8
SHORTEST, LONGEST = 50, 1500
"""Tokens of the mixed prompts."""
REPLY_TOKENS = 128
DOCUMENT_REPLY_TOKENS = 16
NUM_DOCUMENTS, DOCUMENTS_A_TURN = 20, 3
WINDOW = 4096

OURS, WHEEL, SAME_BUILD = "kvloom", "llama.cpp's server (wheel)", "llama.cpp's server (same build)"
LOADS = ("mixed", "same-documents", "any-documents")
CASES = (*LOADS, "one-client", "sharing", "streams")

MIXED_TARGET, SAME_BUILD_TARGET = 1.1, 0.97
"""Against the wheel's server, which is built for any machine, and against one that was built like ours."""
EXACT_TARGET, SPLICE_TARGET = 3.0, 8.0


@dataclass(frozen=True)
class Size:
    """How much is asked."""

    mixed_turns: int
    document_turns: int
    document_tokens: int


FULL = Size(3, 3, 512)
QUICK = Size(1, 1, 128)


@dataclass(frozen=True)
class Target:
    """A server to drive, and how its model is named."""

    name: str
    url: str
    model: str


def mixed_calls(model: str, texts: Sequence[str]) -> list[list[Call]]:
    """One list of calls for each client: raw completions, so that both servers read the same ids."""
    turns = len(texts) // CLIENTS
    body = {"model": model, "max_tokens": REPLY_TOKENS, "temperature": 0.0, "stream": True}
    body["stream_options"] = {"include_usage": True}
    return [
        [Call("/v1/completions", {**body, "prompt": texts[client * turns + turn]}) for turn in range(turns)]
        for client in range(CLIENTS)
    ]


def mixed_texts(count: Callable[[str], int], turns: int) -> list[str]:
    """Prompts of 50 to 1,500 tokens, evenly spread and shuffled; no two begin alike."""
    number = CLIENTS * turns
    sizes = [round(SHORTEST + (LONGEST - SHORTEST) * place / max(1, number - 1)) for place in range(number)]
    random.Random("kvloom-serve").shuffle(sizes)
    found = []
    for place, size in enumerate(sizes):
        document = documents(count, 1 + place % 20, LONGEST + 100, start=place // 20)[-1]
        lines = f"# {place}: {document.name}\n{document.text}".splitlines(keepends=True)
        text = ""
        for line in lines:
            if count(text + line) > size:
                break
            text += line
        found.append(text or lines[0])
    return found


def document_calls(
    model: str, chosen: Sequence[Sequence[Document]], ids: Mapping[str, str] | None, kvloom: Mapping[str, Any] | None
) -> list[list[Call]]:
    """Chat turns about documents: `chosen[turn * CLIENTS + client]`; by reference where `ids` are given."""
    turns = len(chosen) // CLIENTS
    body: dict[str, Any] = {"model": model, "max_tokens": DOCUMENT_REPLY_TOKENS, "temperature": 0.0, "stream": True}
    body["stream_options"] = {"include_usage": True}
    if kvloom is not None:
        body["kvloom"] = dict(kvloom)

    def call(client: int, turn: int) -> Call:
        found = chosen[turn * CLIENTS + client]
        question = f"\n\nQuestion {client}-{turn}: what is the first of these files for?"
        content: Any = "".join(wrapped(one) for one in found) + question
        if ids is not None:
            parts = [{"type": "kvloom_chunk", "id": ids[one.name]} for one in found]
            content = [*parts, {"type": "text", "text": question}]
        return Call("/v1/chat/completions", {**body, "messages": [{"role": "user", "content": content}]})

    return [[call(client, turn) for turn in range(turns)] for client in range(CLIENTS)]


def wrapped(document: Document) -> str:
    """A document as a chunk stands in a prompt."""
    end = "" if document.text.endswith("\n") else "\n"
    return f'\n\n<file name="{document.name}">\n{document.text}{end}</file>'


def compared(
    case: str,
    ours: Load,
    theirs: Load,
    value: Callable[[Load], float],
    target: float,
    peer: str,
    fidelity: str = "exact",
) -> Row:
    """A row of a rate: what is faster has the larger `speedup`."""
    shown = {
        f"{who}_{name}": round(number, 4)
        for who, load in (("ours", ours), ("peer", theirs))
        for name, number in (
            ("tokens_per_s", load.tokens_per_s),
            ("reply_tokens_per_s", load.reply_tokens_per_s),
            ("requests_per_min", load.requests_per_min),
            ("ttft_median_s", load.median_ttft_s),
            ("gap_p95_s", load.gap_p95_s),
            ("cached_share", _cached_share(load)),
        )
    }
    return Row(case, fidelity, ours.seconds, peer, theirs.seconds, value(ours) / value(theirs), target, shown)


def _cached_share(load: Load) -> float:
    return sum(a.cached_tokens for a in load.answers) / max(1, sum(a.prompt_tokens for a in load.answers))


class Bench:
    """One run: what is asked of whom."""

    def __init__(self, request: Request, size: Size, home: Path, tell: Teller) -> None:
        self.size, self.home, self.tell = size, home, tell
        self.settings: Settings = settings_for(request, context=WINDOW)
        with open_loom(self.settings, home, tell) as loom:
            self.setup = setup_of(loom, {"clients": CLIENTS, "window": WINDOW, "reply_tokens": REPLY_TOKENS})
            self.peer_settings: PeerSettings = peer_settings(loom, CLIENTS * WINDOW, slots=CLIENTS)
            self.texts = mixed_texts(loom.count, size.mixed_turns)
            self.documents = documents(loom.count, NUM_DOCUMENTS, size.document_tokens)

    @contextmanager
    def ours(self) -> Iterator[Target]:
        environment = environment_of(self.settings) | {"KVLOOM_SERVER__SLOTS": str(CLIENTS)}
        with Served(self.home, environment) as served:
            yield Target(OURS, served.url, served.model)

    @contextmanager
    def peer(self) -> Iterator[Target]:
        with Peer(self.peer_settings) as peer:
            yield Target(WHEEL, peer.url, "any")

    @contextmanager
    def same_build(self, binary: Path) -> Iterator[Target]:
        with LlamaServer(binary, self.peer_settings) as server:
            yield Target(SAME_BUILD, server.url, "any")

    def case(self, case: str, target: Target) -> Load:
        """One case on one server, behind its warm-up."""
        if case == "mixed":
            return self.load(case, target, mixed_calls(target.model, self.texts))
        is_ours, is_same = target.name == OURS, case == "same-documents"
        ids = self.uploaded(target) if is_ours else None
        options = {"fidelity": "exact" if is_same else "splice"} if is_ours else None
        if not is_same:  # both sides have seen the documents
            self.load(f"{case}, warm-up", target, document_calls(target.model, self.every_document(), ids, options))
        chosen = self.documents_for(is_same=is_same, seed=case)
        return self.load(case, target, document_calls(target.model, chosen, ids, options))

    def load(self, case: str, target: Target, calls: Sequence[Sequence[Call]]) -> Load:
        total, done = sum(map(len, calls)), 0

        def on_answer(_: Answer) -> None:
            nonlocal done
            done += 1
            self.tell.say(f"{case}, {target.name}: {done} of {total} replies")

        found = run_load(lambda: drive(target.url, calls, on_answer))
        self.tell.step(
            f"{case}, {target.name}: {found.seconds:.1f} s, {found.tokens_per_s:.0f} tokens/s, first token "
            f"{found.median_ttft_s:.2f} s, gap {found.gap_p95_s:.3f} s"
        )
        return found

    def every_document(self) -> list[list[Document]]:
        """Each document once at least, three at a time, one turn of every client."""
        turn = range(CLIENTS * DOCUMENTS_A_TURN)
        found = [self.documents[place % NUM_DOCUMENTS] for place in turn]
        return [found[first : first + DOCUMENTS_A_TURN] for first in turn[::DOCUMENTS_A_TURN]]

    def documents_for(self, *, is_same: bool, seed: str) -> list[list[Document]]:
        """Three documents for each turn of each client: everybody's the same, or anything in any order."""
        draw, found = random.Random(f"kvloom-serve-{seed}"), []
        for _ in range(self.size.document_turns):
            common = draw.sample(self.documents, DOCUMENTS_A_TURN)
            found += [common if is_same else draw.sample(self.documents, DOCUMENTS_A_TURN) for _ in range(CLIENTS)]
        return found

    def uploaded(self, target: Target) -> dict[str, str]:
        """The documents as chunks of the server, by name."""
        ids = {}
        with httpx.Client(base_url=target.url, timeout=600.0, trust_env=False) as client:
            for document in self.documents:
                answer = client.post("/v1/kvloom/chunks", json={"name": document.name, "text": document.text})
                answer.raise_for_status()
                ids[document.name] = str(answer.json()["id"])
        return ids


def run(request: Request, server: str | None = None, cases: str | None = None) -> Report:
    """Run the benchmark: about half an hour on 2 cores with the default model, 8 minutes of it `mixed`.

    `server`: a `llama-server` that was built like our llama.cpp, measured beside the wheel's.
    """
    require_peer()
    size = QUICK if request.quick else FULL
    if request.repeats:
        size = replace(size, mixed_turns=request.repeats, document_turns=request.repeats)
    chosen = CASES if cases is None else tuple(name for name in CASES if name in cases.split(","))
    if not chosen:
        raise UsageError(f"--cases takes {', '.join(CASES)}")
    loaded = [name for name in chosen if name in LOADS]
    tell = request.teller("serve", len(loaded) * (3 if server else 2) + 8)
    loads: dict[tuple[str, str], Load] = {}
    with own_home() as home:
        bench = Bench(request, size, home, tell)
        peers: list[Callable[[], AbstractContextManager[Target]]] = [bench.ours, bench.peer]
        if server:
            peers.append(lambda: bench.same_build(Path(server)))
        for opened in peers if loaded else []:
            with opened() as target:
                for case in loaded:
                    loads[case, target.name] = bench.case(case, target)
        rows = [row for case in loaded for row in _rows(case, loads)]
        if "one-client" in chosen:
            rows += [overhead_row(), one_client_row(request, home / "one", tell)]
        if "sharing" in chosen:
            rows += sharing_rows(request, home / "sharing", tell)
        if "streams" in chosen:
            rows += stream_rows(request, home / "streams", tell)
    closing = request.closing("serve", server=server, cases=cases)
    return Report("serve", bench.setup | closing, tuple(rows), columns=COLUMNS, notes=NOTES)


def _rows(case: str, loads: Mapping[tuple[str, str], Load]) -> Iterator[Row]:
    ours = loads[case, OURS]
    for (other, name), theirs in loads.items():
        if other != case or name == OURS:
            continue
        if case == "mixed":
            target = MIXED_TARGET if name == WHEEL else SAME_BUILD_TARGET
            yield compared("mixed", ours, theirs, lambda load: load.tokens_per_s, target, name)
            yield compared("mixed-first-token", ours, theirs, lambda load: 1 / load.median_ttft_s, 1 / 1.1, name)
            yield compared("mixed-gap", ours, theirs, lambda load: 1 / load.gap_p95_s, 1.0, name)
        else:
            target, fidelity = (EXACT_TARGET, "exact") if case == "same-documents" else (SPLICE_TARGET, "splice")
            yield compared(case, ours, theirs, lambda load: load.requests_per_min, target, name, fidelity)


COLUMNS = ("ours_tokens_per_s", "peer_tokens_per_s", "ours_ttft_median_s", "peer_ttft_median_s", "ours_gap_p95_s",
           "peer_gap_p95_s", "ours_requests_per_min", "peer_requests_per_min")  # fmt: skip

NOTES = (
    "added-first-token: what HTTP and scheduling add, on the deterministic engine; one-client: tokens per second of a "
    "long reply over HTTP beside the bare native loop.",
    "shared-sessions, shared-requests: cells that 8 conversations over one document take, over those of one.",
    "step-of-8: a step of 8 replies behind so many tokens each, in one pool of cells and in separate streams.",
    "8 clients at once, each sends its next request when its last one has ended; both servers have 8 slots.",
    "mixed: completions of prompts of 50 to 1,500 tokens, replies of up to 128; total tokens per second.",
    "mixed-first-token, mixed-gap: the peer's median time to the first token over ours; its 95th percentile of the "
    "gaps between tokens over ours.",
    "same-documents: each turn everybody asks about the same 3 of 20 documents in the same order (exact); "
    "any-documents: anything in any order (splice), behind a turn that asks about each document once.",
    "both: requests per minute.",
)

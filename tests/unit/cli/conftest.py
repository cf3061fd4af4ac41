"""A tiny model, a home and files for the CLI's tests, and the program run in this process."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kvloom.cli import slash
from kvloom.cli.chat import Chat
from kvloom.cli.main import run
from kvloom.cli.options import Options
from kvloom.cli.screen import JsonScreen
from tests.tiny_gguf import TinyModel, write_tiny
from tests.unit.session.fakes import fake_loom


@dataclass(frozen=True)
class Ran:
    """What a run of the program left."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Standard output as the one JSON document that it has to be."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """Standard output as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


def results(ran: Ran) -> list[Any]:
    """The results of a script's lines; every line has to have been carried out."""
    assert ran.code == 0, ran.out + ran.err
    assert all(line["ok"] for line in ran.lines)
    return [line["result"] for line in ran.lines]


Kvloom = Callable[..., Ran]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real GGUF with random weights: loads in milliseconds, says nothing sensible."""
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf", TinyModel())


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Three small files in the current folder."""
    folder = tmp_path / "files"
    folder.mkdir()
    monkeypatch.chdir(folder)
    texts = {"a.py": "def a():\n    return 1\n", "b.py": "def b():\n    return 2\n", "c d.txt": "the cat\n"}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


@pytest.fixture
def kvloom(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Kvloom:
    """Runs `kvloom …` with the tiny model and a home of this test's own; `stdin` is what it reads."""
    # Random weights may take long to end a reply by themselves.
    monkeypatch.setenv("KVLOOM_SAMPLING__MAX_TOKENS", "6")
    # Two threads spin while they wait for each other: on a busy machine one is faster for a model this small.
    monkeypatch.setenv("KVLOOM_THREADS", "1")

    def call(*words: str | Path, stdin: str = "", loom: bool = True) -> Ran:
        shared: Sequence[str | Path] = ()
        if loom:
            shared = ("--model", tiny_model, "--home", tmp_path / "home", "--context", "1024")
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        capsys.readouterr()
        code = run([str(word) for word in (*words, *shared)])
        shown = capsys.readouterr()
        return Ran(code, shown.out, shown.err)

    return call


@pytest.fixture
def chat(tmp_path: Path) -> Iterator[Chat]:
    """A chat over the deterministic engine, three turns long."""
    assert slash.__all__
    with fake_loom(tmp_path / "home") as loom:
        session = loom.session()
        for number in range(3):
            session.generate(f"question {number}", max_tokens=4, temperature=0.0)
        yield Chat(Options(), loom, session, JsonScreen())

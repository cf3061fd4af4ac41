"""The chat in a real pseudo-terminal: Ctrl-C stops a reply, Ctrl-D leaves, `\"\"\"`, completion, history."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.tiny_gguf import TinyModel, write_tiny

if sys.platform == "win32":
    pytest.skip("pseudo-terminals are a matter of POSIX systems", allow_module_level=True)

import pexpect

pytestmark = pytest.mark.e2e

WAIT_S = 60
"""For one answer of the program on a busy machine."""

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]")

Start = Callable[..., "pexpect.spawn[str]"]


@pytest.fixture(scope="module")
def endless_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights that never end a reply: whoever stops it is the test."""
    return write_tiny(tmp_path_factory.mktemp("model") / "endless.gguf", TinyModel(context=65_536))


@pytest.fixture
def start(endless_model: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts `kvloom chat` in a terminal of 100 columns."""
    running: list[pexpect.spawn[str]] = []

    def spawn(*words: str, max_tokens: int = 60_000) -> pexpect.spawn[str]:
        environment = {
            **os.environ,
            "TERM": "xterm-256color",
            "NO_COLOR": "1",
            "PROMPT_TOOLKIT_NO_CPR": "1",
            "KVLOOM_THREADS": "1",
            "KVLOOM_SAMPLING__MAX_TOKENS": str(max_tokens),
        }
        arguments = ["-m", "kvloom.cli.main", "chat", "--model", str(endless_model), "--home", str(tmp_path / "home")]
        child = pexpect.spawn(
            sys.executable,
            [*arguments, "--context", "65536", *words],
            env=environment,
            encoding="utf-8",
            timeout=WAIT_S,
            dimensions=(40, 100),
            cwd=str(tmp_path),
        )
        running.append(child)
        child.expect("Ctrl-D leaves")
        at_prompt(child)
        return child

    yield spawn
    for child in running:
        child.close(force=True)


def at_prompt(child: pexpect.spawn[str]) -> None:
    """The prompt line is drawn: it switches bracketed paste on and puts its mark."""
    child.expect(r"\x1b\[\?2004h")
    child.expect(r"> ?")


def leave(child: pexpect.spawn[str]) -> int | None:
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    return child.exitstatus


def test_ctrl_d_leaves_with_0(start: Start) -> None:
    assert leave(start()) == 0


def test_ctrl_c_stops_a_reply_and_the_context_is_as_it_was_before(start: Start) -> None:
    child = start()
    child.sendline("tell me everything")
    # Some of the reply is on the screen before it is stopped.
    child.expect(r"everything[\s\S]{200,}")
    child.sendintr()
    child.expect("stopped: the context is as it was before the question")
    child.sendline("/context")
    child.expect(r"Context\s+(\S+) / 65,536 tokens")
    found = child.match
    assert isinstance(found, re.Match)
    before = found[1]
    child.expect("reserve for the reply")
    child.sendline("/undo")
    child.expect("nothing to undo")
    assert int(before) < 20
    assert leave(child) == 0


def test_ctrl_c_at_the_prompt_leaves_nothing_and_nobody(start: Start) -> None:
    child = start()
    child.send("half a questio")
    child.sendintr()
    child.expect("Ctrl-D or /quit leaves")
    child.sendline("/quit")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_three_quotes_take_many_lines(start: Start) -> None:
    child = start("--session", "s", max_tokens=4)
    child.sendline('"""')
    child.expect("… ")
    child.sendline("first line")
    child.expect("… ")
    child.sendline('/second"""')
    child.expect("4 tokens")
    child.sendline("/context prompt")
    child.expect("first line")
    child.expect("/second")
    assert leave(child) == 0


def test_tab_completes_commands_and_files(start: Start, tmp_path: Path) -> None:
    (tmp_path / "unmistakable.py").write_text("x = 1\n", encoding="utf-8")
    child = start(max_tokens=4)
    child.send("/relo\t")
    child.expect("ad")
    child.sendintr()
    child.expect("leaves")
    child.send("/load unmis\t")
    child.expect("takable.py")
    child.send("\r")
    child.expect(r"loaded [0-9a-f]{12} unmistakable\.py: \d+ tokens, positions")
    assert leave(child) == 0


def test_an_error_keeps_the_chat_going_and_shows_no_traceback(start: Start) -> None:
    child = start()
    child.sendline("/contxt")
    child.expect("did you mean /context")
    child.sendline("/load nosuch.py")
    child.expect("error: .*nosuch.py")
    assert "Traceback" not in ESCAPES.sub("", child.before or "")
    assert leave(child) == 0


def test_lines_are_remembered_for_the_next_chat_by_their_owner_alone(start: Start, tmp_path: Path) -> None:
    child = start()
    child.sendline("/help move")
    child.expect("Put a chunk at place N")
    assert leave(child) == 0
    history = tmp_path / "home" / "chat_history"
    assert "/help move" in history.read_text(encoding="utf-8")
    assert history.stat().st_mode & 0o077 == 0

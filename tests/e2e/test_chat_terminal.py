"""The chat in a real pseudo-terminal: Ctrl-C stops a reply, Ctrl-D leaves, `\"\"\"`, completion, history."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.tiny_gguf import TinyModel, write_tiny

if sys.platform == "win32":
    pytest.skip("pseudo-terminals are a matter of POSIX systems", allow_module_level=True)

import pexpect
import pyte

pytestmark = pytest.mark.e2e

WAIT_S = 60
"""For one answer of the program on a busy machine."""

Start = Callable[..., "pexpect.spawn[str]"]


LONG_QUESTION = "Write a long story about a lighthouse, the sea and a storm."
"""SmolLM2 answers it with some hundred tokens: seconds in which to stop it."""


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights: loads in milliseconds."""
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf", TinyModel())


@pytest.fixture
def start(tiny_model: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts `kvloom chat` in a terminal of 100 columns."""
    running: list[pexpect.spawn[str]] = []

    def spawn(model: Path = tiny_model, max_tokens: int = 4) -> pexpect.spawn[str]:
        environment = {
            **os.environ,
            "TERM": "xterm-256color",
            "NO_COLOR": "1",
            "PROMPT_TOOLKIT_NO_CPR": "1",
            "KVLOOM_THREADS": "1",
            "KVLOOM_SAMPLING__MAX_TOKENS": str(max_tokens),
            "KVLOOM_SAMPLING__TEMPERATURE": "0",
        }
        arguments = ["-m", "kvloom.cli.main", "chat", "--model", str(model), "--home", str(tmp_path / "home")]
        child = pexpect.spawn(
            sys.executable,
            [*arguments, "--context", "4096"],
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
    """The prompt line is drawn and reads keys: what is typed before that is the terminal's, not the chat's."""
    child.expect(r"\x1b\[\?2004h[\s\S]*?\x1b\[\?12l\x1b\[\?25h")


def say(child: pexpect.spawn[str], line: str, *answers: str) -> None:
    """Types a line, waits for the answers in their order, then for the next prompt."""
    child.sendline(line)
    for answer in answers:
        child.expect(answer)
    at_prompt(child)


def leave(child: pexpect.spawn[str]) -> int | None:
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    return child.exitstatus


def test_ctrl_d_leaves_with_0(start: Start) -> None:
    assert leave(start()) == 0


def test_ctrl_c_stops_a_reply_and_the_context_is_as_it_was_before(start: Start, smollm2_path: Path) -> None:
    child = start(smollm2_path, max_tokens=2000)
    child.sendline(LONG_QUESTION)
    # The prompt line is left, and some words of the reply are on the screen before it is stopped.
    child.expect(r"\x1b\[\?2004l")
    child.expect(r"\w+ \w+ \w+ \w+")
    child.sendintr()
    child.expect("stopped: the context is as it was before")
    at_prompt(child)
    child.sendline("/context")
    child.expect(r"(\d+) / 4,096 tokens \(\d")
    found = child.match
    assert isinstance(found, re.Match)
    at_prompt(child)
    say(child, "/undo", "nothing to undo")
    assert int(found[1]) < 50
    assert leave(child) == 0


def test_ctrl_c_at_the_prompt_leaves_nothing_and_nobody(start: Start) -> None:
    child = start()
    child.send("half a questio")
    child.sendintr()
    child.expect("Ctrl-D or /quit leaves")
    at_prompt(child)
    child.sendline("/quit")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_three_quotes_take_many_lines(start: Start) -> None:
    child = start()
    say(child, '"""')
    say(child, "first line")
    say(child, '/second"""', "4 tokens")
    say(child, "/context prompt", "first line", "/second")
    assert leave(child) == 0


def test_tab_completes_commands_and_files(start: Start, tmp_path: Path) -> None:
    (tmp_path / "unmistakable.py").write_text("x = 1\n", encoding="utf-8")
    child = start()
    child.send("/relo\t")
    child.expect("ad")
    child.sendintr()
    child.expect("leaves")
    at_prompt(child)
    child.send("/load unmis\t")
    child.expect(r"takable\.py")
    say(child, "", r"loaded [0-9a-f]{12} unmistakable\.py: \d+ tokens, positions")
    assert leave(child) == 0


def test_an_error_keeps_the_chat_going_and_shows_no_traceback(start: Start) -> None:
    child = start()
    say(child, "/contxt", "did you mean /context")
    child.sendline("/load nosuch.py")
    child.expect("error: .*nosuch.py")
    at_prompt(child)
    assert "Traceback" not in (child.before or "")
    assert leave(child) == 0


class Watched:
    """The screen of a child as a person sees it: 40 lines of 100 columns."""

    def __init__(self, child: pexpect.spawn[str]) -> None:
        self._child = child
        self._screen = pyte.Screen(100, 40)
        self._stream = pyte.Stream(self._screen)

    def until(self, shows: Callable[[str], bool]) -> str:
        """The screen once it shows that. Fails with what it shows where it never does."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            with suppress(pexpect.TIMEOUT):
                self._stream.feed(self._child.read_nonblocking(65_536, timeout=0.2))
            text = "\n".join(line.rstrip() for line in self._screen.display)
            if shows(text):
                return text
        raise AssertionError(text)


def selected(screen: str) -> str:
    """The row of the picker where the cursor is."""
    rows = [line for line in screen.splitlines() if line.startswith("> ") and "tokens" in line]
    return rows[0] if rows else ""


def test_the_picker_filters_previews_restores_and_leaves(start: Start) -> None:
    child = start()
    for number, title in enumerate(("whales", "tides", "ropes"), 1):
        say(child, f"question about {title}", "4 tokens")
        say(child, f"/context snapshot {title}", f"{number} turns?,")

    watched = Watched(child)
    child.sendline("/context restore")
    first = watched.until(
        lambda screen: "Esc leaves" in screen and "ropes" in selected(screen)
        and "user: question about ropes" in screen
    )  # fmt: skip
    rows = [line for line in first.splitlines() if "restore" in line and "tokens" in line]
    assert [row.split()[-1] for row in rows] == ["ropes", "tides", "whales"]
    assert all("turn" in row and "KiB" in row for row in rows), rows
    child.send("\x1b[B")
    # A screen comes in pieces: what it is to show in the end is waited for, all of it.
    watched.until(
        lambda screen: "tides" in selected(screen) and "user: question about tides" in screen
        and "user: question about ropes" not in screen
    )  # fmt: skip
    child.send("whal")
    watched.until(
        lambda screen: "whales" in selected(screen) and "tides" not in screen and "Filter: whal" in screen
    )  # fmt: skip
    child.send("\r")
    watched.until(lambda screen: "(whales): 1 turn," in screen)

    child.sendline("/context restore")
    watched.until(lambda screen: "Esc leaves" in screen)
    child.send("\x1b")
    watched.until(lambda screen: "nothing was changed" in screen)
    child.sendline("/context restore")
    watched.until(lambda screen: "Esc leaves" in screen)
    child.send("\x03")
    watched.until(lambda screen: "Esc leaves" not in screen and "nothing was changed" in screen)
    say(child, "/context show whales", "question about whales")
    assert leave(child) == 0


def test_ctrl_c_stops_a_compression_and_the_conversation_stays(start: Start, smollm2_path: Path) -> None:
    child = start(smollm2_path, max_tokens=40)
    for number in range(3):
        say(child, f"Tell me something about the sea, part {number}.", r"\d tokens at")
    child.sendline("/context compress --strategy summarize")
    child.expect(r"\x1b\[\?2004l")
    child.expect("summarize")
    child.sendintr()
    child.expect("stopped: the context is as it was before")
    at_prompt(child)
    say(child, "/ledger", "everything that was ever given is in the prompt")
    assert leave(child) == 0


def test_lines_are_remembered_for_the_next_chat_by_their_owner_alone(start: Start, tmp_path: Path) -> None:
    child = start()
    say(child, "/help move", "Put a chunk at place N")
    assert leave(child) == 0
    history = tmp_path / "home" / "chat_history"
    assert "/help move" in history.read_text(encoding="utf-8")
    assert history.stat().st_mode & 0o077 == 0

"""The registry of slash commands: what is in it, how it finds them, how it says what is wrong."""

from __future__ import annotations

import pytest

from kvloom.cli import slash
from kvloom.cli.registry import COMMANDS, Arguments, choose, find_command
from kvloom.errors import UsageError

PROMISED = {
    "load", "reload", "context", "activate", "deactivate", "offload", "save", "restore",
    "erase", "purge", "move", "pin", "unpin", "clear", "retry", "undo",
    "recompute", "ledger", "recall", "session", "profile", "fidelity", "model", "help", "quit",
}  # fmt: skip


def test_every_promised_command_is_there() -> None:
    assert slash.__all__
    assert set(COMMANDS) >= PROMISED


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_says_how_it_is_used_and_what_it_does_in_one_line(name: str) -> None:
    command = COMMANDS[name]
    assert command.usage.startswith(f"/{name}")
    assert command.help.endswith(".")
    assert "\n" not in command.help


@pytest.mark.parametrize(
    ("typed", "meant"), [("contxt", "/context"), ("deact", "/deactivate"), ("sesion", "/session"), ("hlep", "/help")]
)
def test_an_unknown_command_names_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(UsageError, match=rf"no command /{typed} \(did you mean .*{meant}"):
        find_command(typed)


def test_an_unknown_command_near_nothing_points_to_help() -> None:
    with pytest.raises(UsageError, match="no command /zzzzqq; /help lists them all"):
        find_command("zzzzqq")


def test_wrong_arguments_show_the_usage() -> None:
    args = Arguments(("a", "b"), "a b", "/pin ID")
    with pytest.raises(UsageError, match="takes one chunk, got 2; usage: /pin ID"):
        args.one("chunk")
    with pytest.raises(UsageError, match="takes no argument, got 2"):
        args.none()
    with pytest.raises(UsageError, match="takes at least one file"):
        Arguments((), "", "/load FILE…").some("file")


def test_a_wrong_subcommand_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"'swich' is not one of list, switch .did you mean switch"):
        choose("swich", ("list", "switch"), Arguments(("swich",), "swich", "/session …"))

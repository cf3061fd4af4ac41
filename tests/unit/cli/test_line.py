"""Chat lines: questions, commands, quotes, fences, scripts."""

from __future__ import annotations

import pytest

from kvloom.cli.line import Command, Question, opens_fence, parse_line, read_script, unfence
from kvloom.errors import UsageError


def test_plain_text_is_a_question_without_the_blanks_around_it() -> None:
    assert parse_line("  What does it do?  ") == Question("What does it do?")


def test_a_slash_starts_a_command_whatever_its_case() -> None:
    assert parse_line("/Load a.py  b.py") == Command("load", ("a.py", "b.py"), "a.py  b.py")


def test_quotes_keep_blanks_and_a_backslash_keeps_a_quote() -> None:
    line = parse_line(r"""/load "my file.py" 'other file.py' it\'s.py""")
    assert isinstance(line, Command)
    assert line.words == ("my file.py", "other file.py", "it's.py")


def test_an_open_quote_is_an_error_that_shows_the_text() -> None:
    with pytest.raises(UsageError, match=r"quote is not closed in: it's\.py"):
        parse_line("/load it's.py")


def test_two_slashes_start_a_question_that_begins_with_one() -> None:
    assert parse_line("//etc/passwd: what is it?") == Question("/etc/passwd: what is it?")


@pytest.mark.parametrize(
    ("line", "opens"),
    [('"""', True), ('"""first', True), ('"""all on one line"""', False), ('what """ is this', False), ('"""""', True)],
)
def test_a_fence_opens_where_a_line_starts_with_it_and_does_not_close_it(line: str, opens: bool) -> None:
    assert opens_fence(line) is opens


def test_a_fenced_text_keeps_its_inner_lines_and_blanks() -> None:
    assert unfence('"""\n  a\n\nb\n"""') == "  a\n\nb"


def script(text: str) -> list[object]:
    return [unit.parse() for unit in read_script(iter(text.splitlines(keepends=True)))]


def test_a_script_is_a_line_a_unit_with_empty_lines_left_out() -> None:
    assert script("/help\n\n   \nWhy?\n") == [Command("help", (), ""), Question("Why?")]


@pytest.mark.parametrize("line", ["caf\udce9?", '"""\ncaf\udce9?\n"""'])
def test_a_line_that_is_no_text_fails_in_its_turn_and_can_be_shown(line: str) -> None:
    first, second = read_script(iter(f"Why?\n{line}\n".splitlines(keepends=True)))
    assert first.parse() == Question("Why?")
    second.shown.encode()
    with pytest.raises(UsageError, match=r"is not UTF-8 text: byte 3 \(0xe9\)"):
        second.parse()


def test_a_fenced_text_in_a_script_is_one_question_and_may_hold_slashes() -> None:
    assert script('"""\n/not a command\n\nsecond\n"""\n/quit') == [
        Question("/not a command\n\nsecond"),
        Command("quit", (), ""),
    ]


def test_a_fence_on_one_line_is_its_text() -> None:
    assert script('"""/what is this"""\n') == [Question("/what is this")]


def test_what_stands_before_an_unclosed_fence_is_still_run() -> None:
    units = list(read_script(iter(['"ok"\n', '"""\n', "never closed\n"])))
    assert units[0].parse() == Question('"ok"')
    with pytest.raises(UsageError, match="ended inside"):
        units[1].parse()
    assert len(units) == 2

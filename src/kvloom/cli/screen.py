"""What a chat shows, three ways: a terminal, plain text, one JSON line per command. Knows no command and no session."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from kvloom.cli import amounts
from kvloom.cli.library_view import sources_line
from kvloom.cli.output import (
    Output,
    ProgressView,
    error_document,
    error_text,
    jsonable,
    show_traceback,
    write_json,
)

if TYPE_CHECKING:
    from kvloom.cli.registry import Result
    from kvloom.session.values import Delta, Reply

PROMPT = "> "


class Screen(ABC):
    """Where a chat's lines and replies go."""

    def __init__(self, output: Output) -> None:
        self.output = output

    def progress(self) -> ProgressView:
        return self.output.progress()

    @abstractmethod
    def echo(self, line: str) -> None:
        """A line that is about to be run and that nobody typed."""

    @abstractmethod
    def delta(self, delta: Delta) -> None:
        """A piece of a running reply."""

    @abstractmethod
    def reply_ended(self, reply: Reply | None) -> None:
        """The reply ended; None where it was cancelled or failed."""

    @abstractmethod
    def result(self, line: str, result: Result) -> None:
        """What a line did."""

    @abstractmethod
    def failed(self, line: str, error: BaseException) -> None:
        """Why a line was not carried out."""

    @abstractmethod
    def say(self, text: str) -> None:
        """A remark of the chat itself: a greeting, a hint."""


class TextScreen(Screen):
    """For people. On a terminal reasoning and usage are dim; elsewhere the same text is plain."""

    def __init__(self, output: Output, *, echoes: bool, way_on: str = "/retry, or ask it to go on") -> None:
        super().__init__(output)
        self._way_on = way_on
        self._echoes = echoes
        self._is_reasoning = False
        self._column_zero = True

    def echo(self, line: str) -> None:
        if self._echoes:
            self.output.console.print(PROMPT + amounts.printable(line), soft_wrap=True)

    def delta(self, delta: Delta) -> None:
        if not delta.text:
            return
        if self._is_reasoning and not delta.is_reasoning and not self._column_zero:
            self.output.console.print()
        self._is_reasoning = delta.is_reasoning
        style = "dim italic" if delta.is_reasoning else None
        self.output.console.print(amounts.printable(delta.text), style=style, end="", soft_wrap=True)
        self.output.console.file.flush()
        self._column_zero = delta.text.endswith("\n")

    def reply_ended(self, reply: Reply | None) -> None:
        from kvloom.cli.panels import usage_line

        console = self.output.console
        if not self._column_zero:
            console.print()
        self._column_zero = True
        self._is_reasoning = False
        if reply is None:
            return
        if reply.finish_reason == "length":
            console.print(f"(the reply reached its longest length; {self._way_on})", style="dim")
        for notice in reply.notices:
            console.print(amounts.printable(notice), style="dim", soft_wrap=True)
        if reply.sources:
            console.print(amounts.printable(sources_line(reply.sources)), style="dim", soft_wrap=True)
        console.print(usage_line(reply.usage), style="dim", soft_wrap=True)

    def result(self, line: str, result: Result) -> None:
        if result.view is not None:
            is_text = isinstance(result.view, str)
            view = amounts.printable(result.view) if isinstance(result.view, str) else result.view
            self.output.console.print(view, soft_wrap=is_text)
        for failure in result.failures:
            self.failed(line, failure)

    def failed(self, line: str, error: BaseException) -> None:  # noqa: ARG002 - the line was echoed
        from rich.text import Text

        show_traceback(error)
        message = Text.assemble(("error: ", "bold red"), amounts.printable(error_text(error)))
        # In a script the message belongs to both: the log on stdout shows where, stderr carries the error.
        self.output.notes.print(message, soft_wrap=True)

    def say(self, text: str) -> None:
        self.output.console.print(amounts.printable(text), style="dim", soft_wrap=True)


class JsonScreen(Screen):
    """For programs: `{"line", "ok", "result" | "error"}`, one to a line."""

    def __init__(self) -> None:
        super().__init__(Output(json=True))

    def echo(self, line: str) -> None:
        """Each line is part of its result."""

    def delta(self, delta: Delta) -> None:
        """The reply comes whole."""

    def reply_ended(self, reply: Reply | None) -> None:
        """The reply is the line's result."""

    def result(self, line: str, result: Result) -> None:
        document = {"line": line, "ok": not result.failures, "result": jsonable(result.data)}
        if result.failures:
            document["errors"] = [error_document(failure)["error"] for failure in result.failures]
        write_json(document, indent=None)

    def failed(self, line: str, error: BaseException) -> None:
        write_json({"line": line, "ok": False, **error_document(error)}, indent=None)

    def say(self, text: str) -> None:
        """Remarks are for people."""

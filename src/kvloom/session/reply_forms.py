"""The forms that an edge may ask of a reply: JSON by a schema, tool calls. Joins what makes, checks and reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvloom.engine.grammar import check_grammar
from kvloom.errors import EngineUnsupportedError
from kvloom.text.grammar import from_schema
from kvloom.text.tools import FunctionCall, ToolCallSplitter, ToolChoice, ToolForm, ToolText, detect, grammar_of

__all__ = ["FunctionCall", "ToolCallSplitter", "ToolPlan", "ToolText", "json_grammar", "tool_form", "tool_plan"]


def json_grammar(schema: Mapping[str, Any]) -> str:
    """The grammar of the JSON that a schema allows, tried out. Raises UsageError for what cannot be held to."""
    grammar = from_schema(schema)
    check_grammar(grammar)
    return grammar


def tool_form(template_source: str) -> str:
    """The name of the form in which a template's tool calls can be forced and read; "" where they cannot."""
    form = detect(template_source)
    return form.value if form.is_supported else ""


@dataclass(frozen=True)
class ToolPlan:
    """How one request's calls are forced, and what reads them out of a reply."""

    grammar: str

    def reader(self) -> ToolCallSplitter:
        """One for each reply."""
        return ToolCallSplitter()


def tool_plan(
    template_source: str,
    tools: Sequence[Mapping[str, Any]],
    *,
    must_call: bool = False,
    only: str = "",
    parallel: bool = True,
) -> ToolPlan:
    """Raises EngineUnsupportedError for a template whose form is not supported, UsageError for a tool that cannot be
    held to."""
    form = detect(template_source)
    if form is ToolForm.NONE:
        raise EngineUnsupportedError("the model's chat template knows no tools; ask another model")
    if not form.is_supported:
        raise EngineUnsupportedError(
            f"the model's chat template writes tool calls in the form {form.value}; only {ToolForm.HERMES.value} is"
            " supported"
        )
    choice = ToolChoice.REQUIRED if must_call else ToolChoice.AUTO
    grammar = grammar_of(tools, choice, name=only, parallel=parallel)
    check_grammar(grammar)
    return ToolPlan(grammar)

"""Compiles a model's chat template in jinja2's sandbox, as model authors expect it. Knows no tokens and no marks.

Templates come with model files and are not trusted: the sandbox is immutable, and no loader is given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError as JinjaError
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from kvloom.errors import TemplateError


class _GenerationBlock(Extension):
    """`{% generation %}…{% endgeneration %}` marks what a model is trained to write: here it is just its body."""

    tags = frozenset({"generation"})  # type: ignore[assignment]  # jinja2 only looks words up in it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Refused(JinjaError):
    """The template called `raise_exception`."""


def _raise_exception(message: str) -> NoReturn:
    raise _Refused(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is, without the HTML escapes of jinja2's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class JinjaTemplate:
    """One compiled template. `now` is the time it sees: fixed, so that a render never depends on the clock."""

    def __init__(self, source: str, now: datetime) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = now.strftime
        try:
            self._template = environment.from_string(source)
        except JinjaError as exc:
            raise TemplateError(f"the model's chat template cannot be compiled: {exc}") from exc

    def render(self, messages: Sequence[Mapping[str, Any]], **values: object) -> str:
        """The prompt for `messages`. Raises TemplateError whatever the template does."""
        try:
            return self._template.render(messages=[dict(m) for m in messages], **values)
        except JinjaError as exc:
            raise TemplateError(f"the model's chat template refuses this conversation: {exc}") from exc
        # A template is a program of someone else's: it may fail in any way that Python can.
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as exc:
            reason = f"{type(exc).__name__}: {exc}"
            raise TemplateError(f"the model's chat template fails on this conversation: {reason}") from exc

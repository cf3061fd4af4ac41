"""The options that commands share, and how a command turns them into an open loom. Knows no command.

A command takes `options: Options` as its first parameter; the decorator replaces it with the options by name.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from kvloom.cli.output import Output
from kvloom.errors import UsageError

if TYPE_CHECKING:
    from kvloom.config import Paths, Settings
    from kvloom.session.libraries import ReadLimits
    from kvloom.session.loom import Loom
    from kvloom.session.values import ProgressCallback

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", metavar="MODEL", help="A GGUF file, a registry id (see `kvloom models`) or user/repo[:quant]."
    ),
]


def num_tokens(least: int = 0) -> Callable[[str], int]:
    """What reads an option that is a number of tokens, as `/context size` reads it."""

    def parse(text: str) -> int:
        from kvloom.config import TOKEN_FORMS, parse_tokens

        count = parse_tokens(text)
        if count is None:
            raise typer.BadParameter(f"expected {TOKEN_FORMS}, got {text!r}")
        if count < least:
            raise typer.BadParameter(f"expected {least} tokens or more, got {text!r}")
        return count

    return parse


def file_path(given: str) -> Path:
    """What reads an argument that is a file or folder: the path of an empty name would be that of the current folder.

    Raises UsageError.
    """
    if not given:
        raise UsageError("an empty name is no file or folder: is the variable set that it was to come from?")
    return Path(given)


ContextOption = Annotated[
    int | None,
    typer.Option(
        "--context", "-c", metavar="TOKENS", parser=num_tokens(), help="Window of the context, in tokens (16384, 16k)."
    ),
]
HomeOption = Annotated[
    Path | None,
    typer.Option("--home", metavar="DIR", file_okay=False, help="Folder of chunks, KV entries and sessions."),
]
KvTypeOption = Annotated[
    str | None, typer.Option("--kv-type", metavar="TYPE", help="How K and V are held on the device: f16, q8_0 or q4_0.")
]
FidelityOption = Annotated[
    str | None,
    typer.Option("--fidelity", metavar="MODE", help="Which stored KV may be placed: exact, blend or splice."),
]
PolicyOption = Annotated[
    str | None,
    typer.Option(
        "--policy",
        metavar="POLICY",
        help="What leaves a full window: stop, clear, fifo, sliding_window, keep_first or adaptive.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, and nothing else.")]


@dataclass(frozen=True)
class Options:
    """The shared options as they were given; None where the settings decide."""

    model: ModelOption = None
    context: ContextOption = None
    home: HomeOption = None
    kv_type: KvTypeOption = None
    fidelity: FidelityOption = None
    policy: PolicyOption = None
    json: JsonOption = False

    @property
    def output(self) -> Output:
        return Output(json=self.json)

    @property
    def paths(self) -> Paths:
        from kvloom.config import paths

        return paths(self.home)

    def open_loom(self, progress: ProgressCallback | None = None, model: str | None = None) -> Loom:
        """The loom that these options name; `model` in place of the given one."""
        import kvloom

        return kvloom.open(settings=self.settings(model), home=self.home, progress=progress)

    def open_stored(self, progress: ProgressCallback | None = None) -> Loom:
        """The same without loading the model, for looking at what is stored; with it where that cannot be."""
        from kvloom.session.stored import open_stored

        return open_stored(self.settings(), self.home) or self.open_loom(progress)

    def settings(self, model: str | None = None) -> Settings:
        """The settings with these options over them."""
        from kvloom.config import load_settings

        given = {
            "model": model or self.model,
            "context": self.context,
            "kv_type": self.kv_type,
            "fidelity": self.fidelity,
            "overflow": {"policy": self.policy},
        }
        return load_settings(given, home=self.home)

    def read_limits(self) -> ReadLimits:
        """What files may have to be read for libraries and as long texts, by the settings."""
        from kvloom.session.libraries import read_limits

        return read_limits(self.settings().recall)

    @property
    def is_interactive(self) -> bool:
        """Whether a person sits at a terminal."""
        return sys.stdin.isatty() and sys.stdout.isatty() and not self.json


LOOM = ("model", "context", "home", "kv_type", "fidelity", "json")
"""For commands that load a model."""

TALK = (*LOOM[:-1], "policy", LOOM[-1])
"""For commands that ask the model."""

HOME = ("home", "json")
"""For commands that look at folders only."""

JSON_ONLY = ("json",)


def takes(
    names: tuple[str, ...], kind: type[Options] = Options
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command these shared options, fields of `kind`; it gets them as one object in its first parameter."""
    annotations = get_type_hints(kind, include_extras=True)
    defaults = {field.name: field.default for field in fields(kind)}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(command, include_extras=True)
        own = [
            parameter.replace(annotation=hints[parameter.name])
            for parameter in list(inspect.signature(command).parameters.values())[1:]
        ]
        shared = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=annotations[name]
            )
            for name in names
        ]
        keyword_only = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]

        @functools.wraps(command)
        def wrapper(**given: Any) -> None:
            options = kind(**{name: given.pop(name) for name in names})
            command(options, **given)

        signature = inspect.Signature([*keyword_only, *shared])
        wrapper.__signature__ = signature  # type: ignore[attr-defined]
        wrapper.__annotations__ = {name: p.annotation for name, p in signature.parameters.items()}
        return wrapper

    return decorate

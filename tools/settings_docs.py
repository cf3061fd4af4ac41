"""Writes docs/settings.md from the settings themselves, or with --check says whether it is still the same.

Knows the settings' models and the names of another program; no setting by itself.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ByteSize, SecretStr
from pydantic.fields import FieldInfo

from kvloom.config import Settings
from kvloom.config.foreign import FOREIGN_KEYS, FOREIGN_VARIABLES
from kvloom.config.mistakes import groups_of, named_groups_of

TARGET = Path(__file__).resolve().parent.parent / "docs" / "settings.md"

INTRODUCTION = """\
# Settings

Written by `tools/settings_docs.py` from the settings themselves; not edited by hand.

One YAML file, the environment, and the command line; what is set in none of them has its default. Where several set the
same thing, the first of these wins:

1. an option of the command (`--context 16384`), or a keyword of `kvloom.open`;
2. a variable `KVLOOM_` with the name in capitals, `__` between a group and its key: `KVLOOM_CONTEXT_TARGET`,
   `KVLOOM_SAMPLING__TEMPERATURE`;
3. a variable of another program that means the same ([below](#names-of-another-program));
4. the YAML file: `kvloom paths` says where it is, `KVLOOM_CONFIG` moves it, `KVLOOM_HOME` moves it with all else.

```yaml
model: qwen2.5-coder-0.5b
context: 16384
ram_budget_bytes: 4GiB
compression:
  strategy: hybrid
  threshold: 0.8
guard:
  soft: 0.75
```

Groups are merged key by key over all four. A size is a number of bytes or carries a unit (`512MiB`, `2GB`). A number
of tokens of a context or a reply may be written `16k` (k stands for 1,024) or `16,384`; limits of the server's keys are
plain numbers. `–` stands for no value of its own: the description says what decides then, and `null` in the file is the
same. A name that there is not, or a value that makes no sense, is an error with the file, the line and the nearest
valid name; nothing is passed over in silence.
"""

FOREIGN = """\
## Names of another program

Variables and keys of a program whose context manager has the same settings are understood as they are. In the YAML
file, a number under `context` is the window; a mapping is that program's group, and is translated key by key. To set
one thing under both names in one file is an error.

| variable | ours |
|---|---|
{variables}

| key | ours |
|---|---|
{keys}

`vramBuffer` and `OLLM_CONTEXT_VRAM_BUFFER` are megabytes where they are plain numbers. `preserveRecent` and
`summaryMaxTokens` are upper bounds: both shrink with a window that is too small for them.
"""

HEADER = ("| key | value | default | what it does |", "|---|---|---|---|")
TITLE = "Model, window, memory, tiers"
LIMITS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


def value_of(field: FieldInfo) -> str:
    """What a setting takes: its choices, or its type and limits."""
    kinds = [kind for kind in _alternatives(field.annotation) if kind is not NoneType]
    text = " or ".join(_kind(kind) for kind in kinds)
    limits = [
        f"{sign} {getattr(limit, name)}"
        for limit in field.metadata
        for name, sign in LIMITS.items()
        if getattr(limit, name, None) is not None
    ]
    return ", ".join([text, *limits])


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _kind(kind: Any) -> str:
    if get_origin(kind) is dict:
        return "groups by name, below"
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    if issubclass(kind, Enum):
        return ", ".join(f"`{one.value}`" for one in kind)
    names = {
        bool: "`true`, `false`",
        int: "whole number",
        float: "number",
        str: "text",
        ByteSize: "size",
        SecretStr: "text",
        Path: "path",
    }
    return names[kind]


def default_of(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if isinstance(value, dict):
        return ", ".join(f"`{name}`" for name in value)
    if value is None:
        return "–"
    if isinstance(value, ByteSize):
        return f"`{value.human_readable(separator='').replace('.0', '')}`"
    if isinstance(value, Enum):
        return f"`{value.value}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def table(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The rows of one group, without the groups in it."""
    yield from HEADER
    groups = groups_of(model)
    for name, field in model.model_fields.items():
        if name not in groups:
            yield f"| `{prefix}{name}` | {value_of(field)} | {default_of(field)} | {field.description} |"


def render() -> str:
    lines = [INTRODUCTION, f"## {TITLE}", "", *table(Settings), ""]
    for name, model in groups_of(Settings).items():
        about = " ".join((model.__doc__ or "").split())
        lines += [f"## {name}", "", about, "", *table(model, f"{name}."), ""]
    for name, model in named_groups_of(Settings).items():
        about = " ".join((model.__doc__ or "").split())
        lines += [f"## {name}", "", about, "", *table(model, f"{name}.NAME."), ""]
    variables = [f"| `{variable}` | `{name}` |" for variable, name in FOREIGN_VARIABLES.items()]
    keys = [f"| `context.{'.'.join(theirs)}` | `{'.'.join(ours)}` |" for theirs, ours in FOREIGN_KEYS.items()]
    lines.append(FOREIGN.format(variables="\n".join(variables), keys="\n".join(keys)))
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    fresh = render()
    if "--check" not in sys.argv[1:]:
        TARGET.write_text(fresh, encoding="utf-8")
        return 0
    stored = TARGET.read_text(encoding="utf-8") if TARGET.exists() else ""
    if stored == fresh:
        return 0
    print(
        "\n".join(difflib.unified_diff(stored.splitlines(), fresh.splitlines(), TARGET.name, "settings", lineterm=""))
    )
    print("docs/settings.md is not what the settings are; write it again: python tools/settings_docs.py")
    return 1


if __name__ == "__main__":
    sys.exit(main())

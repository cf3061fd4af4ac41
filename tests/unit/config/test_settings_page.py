"""docs/settings.md against the settings themselves: every key, with what it takes, its default and what it does."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pydantic import BaseModel

from kvloom.config import Settings
from kvloom.config.foreign import FOREIGN_KEYS
from kvloom.config.mistakes import groups_of, valid_names
from tools import settings_docs


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    groups = groups_of(model)
    for name in model.model_fields:
        yield from keys(groups[name], f"{name}.") if name in groups else [prefix + name]


def test_the_page_is_what_the_settings_are() -> None:
    stored = settings_docs.TARGET.read_text(encoding="utf-8")
    assert stored == settings_docs.render(), "write it again: python tools/settings_docs.py"


def test_every_setting_has_one_row_and_says_what_it_does() -> None:
    rows = re.findall(r"^\| `([a-z_.]+)` \| .+ \| .+ \| (.+) \|$", settings_docs.render(), re.MULTILINE)
    assert [name for name, _ in rows] == list(keys(Settings))
    assert all(len(description.split()) > 1 for _, description in rows)


def test_every_name_of_another_program_is_a_setting_of_ours() -> None:
    for ours in FOREIGN_KEYS.values():
        assert ours[-1] in valid_names(Settings, ours[:-1])

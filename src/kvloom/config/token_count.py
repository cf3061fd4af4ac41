"""A number of tokens as people write it: 16384, 16,384, 16k. Knows no setting."""

from __future__ import annotations

import re

from pydantic_core import PydanticCustomError

THOUSAND = 1024
"""What k stands for: windows are counted in powers of two."""
FORMS = "a number of tokens (16384, 16,384, 16k)"
"""How one may be written; k stands for 1,024."""

_COUNT = re.compile(r"([0-9][0-9_,]{0,19})(k?)")


def parse_tokens(text: str) -> int | None:
    """The number; None where the text is none."""
    found = _COUNT.fullmatch(text.strip().lower())
    return int(re.sub("[_,]", "", found[1])) * (THOUSAND if found[2] else 1) if found else None


def token_setting(value: object) -> object:
    """A setting's value before it is checked: a text becomes the number that it stands for."""
    if not isinstance(value, str):
        return value
    count = parse_tokens(value)
    if count is None:
        raise PydanticCustomError("token_count", "expected {forms}", {"forms": FORMS})
    return count

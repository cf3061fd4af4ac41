"""What a text defines, and what a question writes as a name. Knows no index and no model.

A passage that gives a name its value says more about it than many that use the name. Told by signs and a few words that
programs, settings and notes have in common: no grammar of any language is known here, so both miss and err at times.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

WORD = re.compile(r"[^\W\d]\w*|\d+")
_QUOTED = re.compile(r"`([^`\n]+)`|\"([^\"\n]+)\"|“([^“”\n]+)”|(?<!\w)'([^'\n]+)'(?!\w)")
_IDENTIFIER = re.compile(r".*(?:_|\d|[a-z][A-Z])")
_DEFINING_WORDS = "def class function func fn fun struct enum interface trait type const let var macro define"
DEFINING = frozenset(_DEFINING_WORDS.split())
"""What follows one of these is being defined."""
_BY_WORD = re.compile(rf"\b(?:{'|'.join(sorted(DEFINING))})[ \t]+(\w+)")
_BY_SIGN = re.compile(
    # name = …, name: type = …, name := …, with up to three words in front (int, static const) and a way (self., a.b.)
    r"""(?m)^[ \t]*(?:[A-Za-z][\w<>\[\]*&]*[ \t]+){0,3}(?:\w+[.-])*(\w+)[ \t]*(?::(?![:=])[^=\n]{1,40})?:?=(?![=>~])"""
    # name: …, the first of a line, a time of day is none
    r"""|^[ \t]*(?:[-*][ \t]+)?(?:\w+[.-])*([^\W\d]\w*):(?=\s|$)"""
    # "key": …, with something behind it in the line: else it may be `if mode == "key":`
    r"""|["'](?:[^"'\n]*[^"'\w\n])?(\w+)["'][ \t]*:[ \t]*(?=\S)"""
)
_NO_FUNCTIONS = (
    "if constexpr for while switch catch return else elif elsif elseif do with match when until unless lock using "
    "foreach synchronized new go defer guard assert throw case in not await yield"
).replace(" ", "|")
"""What a body in braces may follow, and words behind which a function is called."""
_BY_BODY = re.compile(
    # int main(…) {, void List::add(…) const {, public int size() throws X {, static int\nadd (…)\n{: C and its kin
    rf"""(?m)^[ \t]*(?:(?!(?:{_NO_FUNCTIONS})\b)[A-Za-z_][\w:<>,\[\]]*[ \t*&]+){{0,5}}(?:\w+::)*~?"""
    rf"""(?!(?:{_NO_FUNCTIONS})\b)([A-Za-z_]\w*)[ \t]*"""
    r"""\([^();]{0,300}\)[^\n;={}()]{0,60}\n?[ \t]*\{"""
)
_HEAD = re.compile(
    r"(?m)^[ \t]*(?:(?:async|export|pub|public|private|static)[ \t]+){0,3}(?:def|function|func|fn|fun)\b.*"
)
_DEFAULT = re.compile(r"[(,][ \t]*\*{0,2}(\w+)(?::[^=\n,]{1,40})?[ \t]*=(?![=>])")


def names_in(question: str) -> frozenset[str]:
    """Words that are quoted, or that look like identifiers, in lower case."""
    return frozenset(word for name in _names(question) for word in _words(name))


def defined_names_in(question: str) -> frozenset[str]:
    """The names that a question writes, as `defined_in` gives them: of several words the last, and no mere numbers."""
    last = (_words(name)[-1:] for name in _names(question))
    return frozenset(word for words in last for word in words if not word.isdecimal())


def given_values(text: str) -> Iterator[tuple[int, str]]:
    """Where each name stands that is given a value or an explanation, and the name in lower case; of one of several
    words (`a.b`, `max-size`) the last."""
    for match in _BY_SIGN.finditer(text):
        group = match.lastindex or 0
        yield match.start(group), match.group(group).lower()
    for head in _HEAD.finditer(text):
        for match in _DEFAULT.finditer(text, head.start(), head.end()):
            yield match.start(1), match.group(1).lower()


def defined_in(text: str) -> frozenset[str]:
    """Names that are given a value, declared by a word such as `def`, or functions whose body follows in braces, in
    lower case; of several words the last."""
    declared = (match.group(1).lower() for sign in (_BY_WORD, _BY_BODY) for match in sign.finditer(text))
    return frozenset((*declared, *(name for _, name in given_values(text))))


def _names(question: str) -> Iterator[str]:
    for match in _QUOTED.finditer(question):
        yield "".join(group or "" for group in match.groups())
    for match in WORD.finditer(question):
        if _IDENTIFIER.match(match.group()):
            yield match.group()


def _words(name: str) -> list[str]:
    return [match.group().lower() for match in WORD.finditer(name)]

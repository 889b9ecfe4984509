"""Globs over the names of tables, and the one name that such a pattern may stand for. Pure.

They are those of the shell: *, ? and [abc]. In brackets a wildcard is an ordinary character, as in every shell and in Python:
`public.a[*]b` stands for the table `a*b`, and for no other. The trap: `]` is none, and stands for itself outside of brackets.

https://docs.python.org/3/library/fnmatch.html
"""

from __future__ import annotations

import re
from typing import Final

_WILDCARD: Final = re.compile(r"[*?\[]")
_IN_BRACKETS: Final = re.compile(r"\[([*?\[])\]")


def literal(pattern: str) -> str | None:
    """Return the only name that matches; None if there may be others."""
    return None if _WILDCARD.search(_IN_BRACKETS.sub("", pattern)) else _IN_BRACKETS.sub(r"\1", pattern)


def prefix(pattern: str) -> str:
    """Return what every name that matches begins with."""
    return _WILDCARD.split(pattern, maxsplit=1)[0]


def matching(name: str) -> str:
    """Return the pattern that matches this name only."""
    return _WILDCARD.sub(r"[\g<0>]", name)

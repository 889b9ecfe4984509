r"""Reading a piece of SQL without a server: which names an expression may refer to. Pure.

Strings, dollar-quoted ones and comments are passed over; what is left is identifiers, the quoted ones as they are written, the
others in lower case. Which of them are columns, types or functions is not known here, so the answer is one of "may".

https://www.postgresql.org/docs/current/sql-syntax-lexical.html
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

_TOKEN: Final = re.compile(
    r"""
      (?P<escaped>[eE]'(?:[^'\\]|\\.|'')*')
    | (?P<string>'(?:[^']|'')*')
    | (?P<comment>--[^\n]*|/\*.*?\*/)
    | (?P<dollar>\$(?P<tag>(?:[^\W\d]\w*)?)\$.*?\$(?P=tag)\$)
    | "(?P<quoted>(?:[^"]|"")+)"
    | (?P<word>[^\W\d][\w$]*)
    | (?P<other>\d[\w.]*|\s+|.)
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Name:
    """An identifier, and what stands next to it: blanks and comments don't count."""

    text: str
    quoted: bool
    before: str
    #: after a dot also what follows that
    after: str


def names(expression: str) -> Iterator[Name]:
    """Give the identifiers of an expression, keywords included, in their order."""
    tokens = [m for m in _TOKEN.finditer(expression) if m["comment"] is None and not (m["other"] or "x").isspace()]
    texts = [m[0] for m in tokens]
    for i, match in enumerate(tokens):
        before = texts[i - 1] if i else ""
        after = "".join(texts[i + 1 : i + 3]) if texts[i + 1 : i + 2] == ["."] else "".join(texts[i + 1 : i + 2])
        if match["word"] is not None:
            yield Name(_folded(match[0]), False, before, after)
        elif match["quoted"] is not None:
            yield Name(match["quoted"].replace('""', '"'), True, before, after)


def _folded(word: str) -> str:
    return word.encode().lower().decode()  # bytes: ASCII letters only, as PostgreSQL does in UTF-8


def takes_whole_row(expression: str, table: str, columns: Collection[str]) -> bool:
    """Whether the expression may take the row of `table` as one value, as in `t IS NULL` or `f(t.*)`; `columns` are the table's."""
    return any(name.after == ".*" or (table not in columns and _is_value(name)) for name in names(expression) if name.text == table)


def _is_value(name: Name) -> bool:
    """Whether the name may be a value by itself: no schema, type or function, nor what a subquery reads."""
    return name.before.upper() not in (".", ":", "FROM", "JOIN") and not name.after.startswith((".", "("))

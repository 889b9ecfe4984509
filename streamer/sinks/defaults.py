"""Defaults of the source's columns as far as another engine has the same: constants, and the current time. Pure.

Replicated rows bring a value for every column; a default serves those who write to the target themselves. What is not understood is
left out.

https://www.postgresql.org/docs/current/ddl-default.html
"""

from __future__ import annotations

import re
from typing import Final

_QUOTED: Final = re.compile(r"'((?:[^']|'')*)'(?:::[\w\s.\"(),\[\]]+)?")
_NUMBER: Final = re.compile(r"\(?(-?\d+(?:\.\d+)?)\)?(?:::[\w\s(),]+)?")
_BOOLEANS: Final = {"true": "t", "false": "f"}
_NOW: Final = ("now()", "CURRENT_TIMESTAMP", "transaction_timestamp()", "statement_timestamp()", "clock_timestamp()")


def constant(expression: str) -> str | None:
    """Return the value that the expression of a default stands for, as PostgreSQL's text; None if it is not a constant."""
    if expression in _BOOLEANS:
        return _BOOLEANS[expression]
    if match := _QUOTED.fullmatch(expression):
        return match[1].replace("''", "'")
    match = _NUMBER.fullmatch(expression)
    return match[1] if match else None


def is_now(expression: str) -> bool:
    """Whether the default is the time of the transaction, or near it."""
    return expression in _NOW

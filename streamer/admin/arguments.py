"""What people type as arguments of commands: tables, times, ids. Pure.

The trap: a dot may be part of a table's name; the schema ends at the first one, as in the config.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from streamer.errors import UsageError
from streamer.model import TableName

UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def table_name(text: str) -> TableName:
    """Return the table that a person means; without a schema it is one of public."""
    schema, _, name = (text if "." in text else f"public.{text}").partition(".")
    return TableName(schema, name)


def moment(text: str) -> datetime:
    """Return the moment that a person means by `2h` (ago) or an ISO date or time, in UTC unless it says otherwise.

    Raises UsageError.
    """
    try:
        if match := re.fullmatch(r"(\d+)([smhdw])", text):
            return datetime.now(UTC) - timedelta(**{UNITS[match[2]]: int(match[1])})
        told = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise UsageError(f'"{text}" is not a time', "write for example --since 2h, 30m, 7d or 2026-01-31T12:00") from None
    return told if told.tzinfo else told.replace(tzinfo=UTC)


def node_and_number(text: str, what: str, remedy: str) -> tuple[str, int]:
    """Return the parts of an id NODE:NUMBER of `what`. Raises UsageError with the remedy."""
    node, _, number = text.partition(":")
    if not number.isdecimal() or len(number) > 18:
        raise UsageError(f'"{text}" is not the id of {what}', remedy)
    return node, int(number)

"""Lengths of time as the config writes them: a number and a unit, like "10m"."""

from __future__ import annotations

import re
from typing import Final

LONGEST: Final = 366 * 86400
"""Seconds: a year, so that no time overflows."""
_PERIOD: Final = re.compile(r"([0-9]{1,9}) ?([smhd])")
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(period: str) -> int | None:
    """Return the seconds of a period; None if it is written otherwise."""
    match = _PERIOD.fullmatch(period)
    return int(match[1]) * _UNITS[match[2]] if match else None


def is_sensible(length: int) -> bool:
    """Whether something may happen every so many seconds."""
    return 1 <= length <= LONGEST

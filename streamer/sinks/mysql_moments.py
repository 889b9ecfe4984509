"""Dates and times as columns of MySQL and MariaDB hold them. The session's time zone is UTC, and so is what is written.

PostgreSQL's years reach from 4714 BC to 294276 and know infinity, those here from 1 to 9999 and do not. The trap: a moment with
more decimal places than the column is cut or rounded without an error, and one of year 0 is taken, though it is no date.

https://dev.mysql.com/doc/refman/8.4/en/date-and-time-types.html
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from streamer.sinks.unrepresentable import Unrepresentable

FIRST_DAY: Final = "0001-01-01"
LAST_DAY: Final = "9999-12-31"
#: what TIMESTAMP holds; MariaDB's later versions hold more
FIRST_TIMESTAMP: Final = "1970-01-01 00:00:01"
LAST_TIMESTAMP: Final = "2038-01-19 03:14:07"

_DAY: Final = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}")
_MOMENT: Final = re.compile(
    r"(?P<day>(?P<year>\d{4,})-\d\d-\d\d)"
    r"(?: (?P<time>\d\d:\d\d:\d\d)(?:\.(?P<fraction>\d{1,6}))?)?"
    r"(?P<zone>[+-]\d\d(?::\d\d){0,2})?(?P<bc> BC)?"
)
_TIME: Final = re.compile(r"(?P<time>\d\d:\d\d:\d\d)(?:\.(?P<fraction>\d{1,6}))?")

Moment = Callable[[str], str]


def date(text: str) -> str:
    """Return a day, or a moment at its beginning, as a DATE column takes it. Raises Unrepresentable."""
    if _DAY.fullmatch(text):
        return text
    try:
        day, _, time = _moment(text, FIRST_DAY, f"{LAST_DAY} 23:59:59.999999").partition(" ")
    except Unrepresentable as problem:
        raise Unrepresentable(text, problem.reason, problem.nearest and str(problem.nearest)[:10]) from None
    if time.strip("0:."):
        raise Unrepresentable(text, "has a time of the day", day)
    return day


def date_time(places: int, first: str, last: str) -> Moment:
    """Return the conversion to a DATETIME or TIMESTAMP column of so many decimal places, between two moments."""
    last_moment = f"{last}.{'9' * places}".rstrip(".")
    fraction = rf"(?:\.[0-9]{{1,{places}}})?" if places else ""
    usual = re.compile(rf"([0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}} [0-9]{{2}}:[0-9]{{2}}:[0-9]{{2}}{fraction})(?:\+00)?")

    def convert(text: str) -> str:
        match = usual.fullmatch(text)
        if match is not None and first <= match[1] <= last_moment:
            return match[1]
        return _rounded(text, _moment(text, first, last_moment), places)

    return convert


def time(places: int) -> Moment:
    """Return the conversion to a TIME column of so many decimal places."""

    def convert(text: str) -> str:
        match = _TIME.fullmatch(text)
        if match is None:
            raise Unrepresentable(text, "is not a time of the day without a zone")
        return _rounded(text, text, places)

    return convert


def _moment(text: str, first: str, last: str) -> str:
    """The moment in UTC, without a zone. What lies outside of `first` and `last` comes nearest to them."""
    if text in ("infinity", "-infinity"):
        raise Unrepresentable(text, "is infinite", last if text == "infinity" else first)
    match = _MOMENT.fullmatch(text)
    if match is None:
        raise Unrepresentable(text, "is not a date or time that the column's type knows")
    if match["bc"] or match["year"] < first[:4]:
        raise Unrepresentable(text, f"lies before {first}", first)
    if len(match["year"]) > 4:
        raise Unrepresentable(text, f"lies after {last}", last)
    moment = f"{match['day']} {match['time'] or '00:00:00'}" + (f".{match['fraction']}" if match["fraction"] else "")
    if match["zone"] and match["zone"].strip("+-0:"):
        raise Unrepresentable(text, "is not in UTC", moment)
    if not first <= moment <= last:
        raise Unrepresentable(text, f"is not within {first} and {last}", min(max(moment, first), last))
    return moment


def _rounded(text: str, moment: str, places: int) -> str:
    """The moment, if it has no more than so many decimal places; nearest to it lies what is left when they are cut."""
    whole, _, fraction = moment.partition(".")
    if fraction[places:].strip("0"):
        raise Unrepresentable(text, f"has more than {places} decimal places", f"{whole}.{fraction[:places]}".rstrip("."))
    return moment

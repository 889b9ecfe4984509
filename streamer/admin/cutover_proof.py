"""What the daemon knows of the rows that are to be moved: whether they are equal, and since when. Pure.

A comparison without end tells it, or whoever ran `streamer verify`. Who compares all rows now, and again when
the writers are kept out, needs none of it. To who leaves that out, rows that differ are an error, and not to know a warning.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from streamer.admin.findings import Finding, error, ok, warning
from streamer.admin.printing import counted
from streamer.model import EdgeName

RECENT: Final = timedelta(days=1)
"""How old a proof may be that stands for a comparison."""


def proven(proof: Mapping[str, Any] | None, edge: EdgeName, now: datetime, *, again: bool) -> Finding:
    """Judge what the daemon tells of an edge; with `again` all rows are compared now."""
    what, verify = f"rows of {edge}", f"streamer verify {edge.sync} --target {edge.target}"
    if proof is not None and proof["different"]:
        told, remedy = f"{counted(proof['different'], 'row')} differed when they were compared last", f"see which: {verify}"
        return warning(what, f"{told}; they are compared again now", remedy) if again else error(what, told, f"{remedy} --repair")
    if proof is None or proof["since"] is None:
        told = "were not compared since the daemon was started" if proof is None else "were not all compared yet"
    else:
        age = timedelta(seconds=round((now - datetime.fromisoformat(proof["since"])).total_seconds()))
        told = f"were equal when they were compared last: {counted(proof['rows'], 'row')}, the oldest part {age} ago"
        if age <= RECENT:
            return ok(what, told)
    if again:
        return ok(what, f"{told}; they are now")
    return warning(what, f"{told}, and --skip-verify leaves that out", f"run: {verify}")

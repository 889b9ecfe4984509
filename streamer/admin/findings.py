"""What `streamer check` finds: how bad, about what, why, and what to do. Printed as a table on a terminal, else one line each."""

from __future__ import annotations

import enum
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from streamer.admin.printing import counted, on_terminal, print_table


class Severity(enum.StrEnum):
    """How bad a finding is."""

    #: replication will not work, or would harm the source
    ERROR = "error"
    #: it works with less than one might expect
    WARNING = "warning"
    #: good to know
    OK = "ok"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `remedy` is the exact statement or command, empty where there is nothing to do."""

    severity: Severity
    object: str
    reason: str
    remedy: str = ""


def error(object: str, reason: str, remedy: str) -> Finding:
    """Return a finding that must be cured."""
    return Finding(Severity.ERROR, object, reason, remedy)


def warning(object: str, reason: str, remedy: str) -> Finding:
    """Return a finding that one should know of."""
    return Finding(Severity.WARNING, object, reason, remedy)


def ok(object: str, reason: str) -> Finding:
    """Return a finding that is good."""
    return Finding(Severity.OK, object, reason)


def failed(findings: Sequence[Finding]) -> bool:
    """Return whether anything must be cured."""
    return any(f.severity is Severity.ERROR for f in findings)


def print_findings(findings: Sequence[Finding], *, as_json: bool) -> None:
    """Print the findings, the worst last, where the eye is; then how many there are of each severity."""
    order = list(Severity)
    ordered = sorted(findings, key=lambda f: -order.index(f.severity))
    if as_json:
        print(json.dumps({"findings": [asdict(f) for f in ordered]}, indent=2, ensure_ascii=False))
        return
    if on_terminal():
        print_table(("", "object", "finding", "remedy"), [[str(f.severity), f.object, f.reason, f.remedy] for f in ordered])
    else:
        for f in ordered:
            print(f"{f.severity}: {f.object}: {f.reason}" + (f"; {f.remedy}" if f.remedy else ""))
    counts = Counter(f.severity for f in findings)
    print(f"{counted(counts[Severity.ERROR], 'error')}, {counted(counts[Severity.WARNING], 'warning')}")

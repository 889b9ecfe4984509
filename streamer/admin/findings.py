"""What `streamer check` finds: how bad, about what, why, and what to do. One line each; on a terminal the remedy has a line
of its own, which only the terminal wraps, so that it can be copied.
"""

from __future__ import annotations

import enum
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

from rich.console import Console
from rich.text import Text

from streamer.admin.printing import counted, on_terminal, printable


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


def narrower(object: str, column: str, type_name: str, problem: ValueError, remedy: str) -> Finding:
    """Return the finding of a column that does not hold all values of the source's."""
    reason = f"{column}, narrower than {type_name} on the source: {problem}"
    return warning(object, reason, f"there: {remedy}; else on_unrepresentable says what happens to such values (docs/types.md)")


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
    for f in ordered:
        if on_terminal():
            _show(f)
        else:
            print(printable(f"{f.severity}: {f.object}: {f.reason}" + (f"; {f.remedy}" if f.remedy else "")))
    counts = Counter(f.severity for f in findings)
    print(f"{counted(counts[Severity.ERROR], 'error')}, {counted(counts[Severity.WARNING], 'warning')}")


_COLOURS: Final = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.OK: "green"}


def _show(finding: Finding) -> None:
    console = Console(soft_wrap=True)
    told = printable(f": {finding.object}: {finding.reason}")
    console.print(Text.assemble((finding.severity, _COLOURS[finding.severity]), told))
    if finding.remedy:
        console.print(Text(f"    {printable(finding.remedy)}"))

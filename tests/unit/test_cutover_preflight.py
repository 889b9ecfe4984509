"""What cutover looks at before it begins, where no server is needed."""

from __future__ import annotations

from streamer.admin.cutover_preflight import unmade
from streamer.admin.findings import Severity
from streamer.model import EdgeName

EDGE = EdgeName("forth", "old", "new")


def test_indexes_that_are_being_made_are_waited_for_and_refused_ones_are_named() -> None:
    refused = {"what": "index i of public.t", "reason": "no such function", "statement": "CREATE INDEX i ON public.t (f(x))"}
    told = {"waiting": 2, "building": [{"what": "index j of public.t", "since": "2026-01-01T00:00:00Z"}], "refused": [refused]}
    error, warning = unmade(EDGE, told)
    assert (error.severity, error.reason) == (Severity.ERROR, "3 of the indexes and constraints of its tables are still to be made")
    assert (warning.severity, warning.reason) == (Severity.WARNING, 'index i of public.t is refused by "new": no such function')
    assert warning.remedy.endswith("CREATE INDEX i ON public.t (f(x))")
    assert list(unmade(EDGE, {"waiting": 0, "building": [], "refused": []})) == []

"""What statements must not use, because servers that streamer still serves do not know it."""

from __future__ import annotations

import re
from pathlib import Path

import streamer

PACKAGE = Path(streamer.__file__).parent
NAMED = re.compile(r"\w+ => ")
"""https://www.postgresql.org/docs/9.4/sql-syntax-calling-funcs.html: := is what all versions take."""


def test_old_conflicts_can_be_purged_on_9_4_which_does_not_know_the_arrow_of_named_arguments() -> None:
    files = [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "sql").rglob("*.sql")]
    assert len(files) > 100
    found = {path.name: match[0] for path in files if (match := NAMED.search(path.read_text(encoding="utf-8")))}
    assert found == {}

"""The conflicts of the demo, as the nodes have recorded them.

The same is told by `streamer conflicts list` and `show`, for any config.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from streamer.session import Connection

_QUERY: Final = """\
SELECT resolved, target, kind, table_name, key, coalesce(current_origin, ''), coalesce(incoming_origin, ''), coalesce(winner, '')
FROM streamer.conflict ORDER BY id"""


@dataclass(frozen=True, slots=True)
class Recorded:
    """One conflict: where and how it was resolved."""

    resolved: datetime
    node: str
    kind: str
    row: str
    current_origin: str
    incoming_origin: str
    winner: str

    @property
    def winning_node(self) -> str:
        """Whose write stayed."""
        return self.incoming_origin if self.winner == "incoming" else self.current_origin


def read(nodes: Iterable[Connection]) -> list[Recorded]:
    """Return the conflicts of all nodes, in the order in which they were resolved."""
    return sorted((_recorded(*row) for node in nodes for row in node.execute(_QUERY)), key=lambda conflict: conflict.resolved)


def _recorded(resolved: datetime, node: str, kind: str, table: str, key: str, *rest: str) -> Recorded:
    values = ", ".join(json.loads(key).values())
    return Recorded(resolved, node, kind, f"{table} {values}", *rest)


def by_kind(conflicts: Iterable[Recorded]) -> dict[str, int]:
    """Return how many there are of each kind, the most frequent first."""
    return dict(Counter(conflict.kind for conflict in conflicts).most_common())


def examples(conflicts: Iterable[Recorded], number: int) -> list[Recorded]:
    """Return some conflicts, of as many kinds as there are."""
    found = list(conflicts)
    kinds = {conflict.kind: conflict for conflict in reversed(found)}
    others = [conflict for conflict in found if conflict is not kinds[conflict.kind]]
    return sorted([*kinds.values(), *others][:number], key=lambda conflict: conflict.resolved)

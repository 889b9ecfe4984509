"""Which transactions an edge carries: the forwarding rule, and what one edge remembers of it. Pure.

Within a sync a transaction comes straight from the node that it was first made on, if an edge leads from there; else whoever
received it hands it on. `forwards` is the one place that says so, for the running stream and the topology check alike. Tables are
chosen in the capture already (publication, plugin options).

The trap: the rule alone prevents echoes between two nodes and in a mesh, not in every graph. It needs `topology.check`.
"""

from __future__ import annotations

from collections.abc import Collection

from streamer.model import Transaction


def forwards(*, source: str, target: str, origin: str, via: str, feeders: Collection[str]) -> bool:
    """Return whether the edge source -> target of a sync carries a transaction first made on `origin`.

    `via` is the node that handed it to the source (the source itself if it was made there); `feeders` are the sources of the sync
    that have an edge to the target.
    """
    if target in (origin, via):
        return False
    if origin == source:
        return True
    # the target gets it from its origin directly, or from the feeder that it came in by
    return origin not in feeders and via not in feeders


class Route:
    """One edge's answer to the forwarding rule, worked out once for each way that transactions come."""

    def __init__(self, source: str, target: str, feeders: Collection[str]) -> None:
        self._source = source
        self._target = target
        self._feeders = frozenset(feeders)
        self._known: dict[tuple[str, str], bool] = {}

    def accepts(self, transaction: Transaction) -> bool:
        """Return whether the edge carries the transaction."""
        way = transaction.origin.node, transaction.via
        answer = self._known.get(way)
        if answer is None:
            answer = self._known[way] = forwards(
                source=self._source,
                target=self._target,
                origin=transaction.origin.node,
                via=transaction.via,
                feeders=self._feeders,
            )
        return answer

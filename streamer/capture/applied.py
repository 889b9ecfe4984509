"""What a node had seen of others when it made a transaction, told by the ids of deltas. Pure.

A local transaction L counts as having seen an applied one A if A's last delta has a lesser id than L's last. Where both wrote a
row, that is exact: the second of them waited for the first one's commit, and drew its id for that row, and so its last, afterwards.
Where they did not, it matters to nobody.

The trap: not the order of commit times, which differ from node to node and go back when a clock is set.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable
from datetime import datetime

from streamer.model import NOTHING_SEEN, Seen


class Applied:
    """What was applied in one batch; `before` is what was known of the time before it.

    `found` gives, for each applied transaction, the id of its last delta, the node that it was made on, and its commit time there,
    in the order of ids.
    """

    def __init__(self, before: Seen, found: Iterable[tuple[int, str, datetime]]) -> None:
        self._before = before
        #: by node: the ids, and the newest commit time up to each of them
        self._ids: dict[str, list[int]] = {}
        self._times: dict[str, list[datetime]] = {}
        for last, node, time in found:
            ids, times = self._ids.setdefault(node, []), self._times.setdefault(node, [before.get(node, time)])
            ids.append(last)
            times.append(max(time, times[-1]))
        #: what was asked for last: transactions that had seen the same share it
        self._known: tuple[Collection[int], Seen] = ((), NOTHING_SEEN)

    def by(self, last: int) -> Seen:
        """Return what the node had seen when it made the transaction with this last id."""
        places = [bisect_left(ids, last) for ids in self._ids.values()]
        if self._known[0] != places:
            seen = dict(self._before)
            for (node, times), place in zip(self._times.items(), places, strict=True):
                if place:
                    seen[node] = times[place]
            self._known = places, seen
        return self._known[1]

    def all(self) -> Seen:
        """Return what it had seen in the end."""
        return self._before if not self._ids else {**self._before, **{node: times[-1] for node, times in self._times.items()}}

"""From what the queue holds to groups, each of which a sink writes into one target transaction. Pure.

A lone transaction is a group of its own and goes at once; when more is waiting, whole transactions of the same origin share a
group. Only the last piece may be of an unfinished transaction: then the group is incomplete and its target transaction stays
open.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime

from streamer.model import LSN, Change, Group, Origin, Piece


def groups(pieces: Iterable[Piece]) -> Iterator[Group]:
    """Return the pieces as groups, in order; a group never mixes origins."""
    run: list[Piece] = []
    for piece in pieces:
        if run and not _together(run[-1], piece):
            yield _group(run)
            run = []
        run.append(piece)
    if run:
        yield _group(run)


def idle_group(source: str, position: LSN, now: datetime) -> Group:
    """Return the group that only moves progress to `position`: nothing that matters to the target was committed before it."""
    return Group(Origin(source, position, now), (), position, complete=True, transactions=0)


def _together(last: Piece, piece: Piece) -> bool:
    """Whether the piece continues the last one's transaction, or may share its target transaction."""
    return piece.transaction is last.transaction or piece.transaction.origin.node == last.transaction.origin.node


def _group(run: list[Piece]) -> Group:
    last = run[-1]
    changes: list[Change] = run[0].changes if len(run) == 1 else [c for piece in run for c in piece.changes]
    # the end of an unfinished transaction is not known; any position past its commit record tells that it is in the target
    position = last.end if last.end is not None else LSN(last.transaction.position + 1)
    return Group(last.transaction.origin, changes, position, last.end is not None, sum(p.end is not None for p in run))

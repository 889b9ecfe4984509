"""From what the queue holds to groups, each of which a sink writes into one target transaction. Pure.

A lone transaction is a group of its own and goes at once; when more is waiting, whole transactions share a group, as far as the
sink lets them: where a target transaction is tagged with its origin, it has one. Only the last piece may be of an unfinished
transaction: then the group is incomplete and its target transaction stays open.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate

from streamer.model import LSN, Change, Group, Idle, Origin, Piece, Sharing


def groups(pieces: Iterable[Piece], sharing: Sharing) -> Iterator[Group]:
    """Return the pieces as groups, in order."""
    run: list[Piece] = []
    for piece in pieces:
        if run and not _together(run[-1], piece, sharing):
            yield _group(run)
            run = []
        run.append(piece)
    if run:
        yield _group(run)


def idle_group(last: Origin, idle: Idle) -> Group:
    """Return the group that only moves progress: nothing that matters to the target was committed meanwhile.

    It is tagged like the `last` transaction applied: a reader of the target's WAL learns nothing new from it.
    """
    return Group(last, (), idle.position, complete=True, transactions=0, seen=idle.seen)


def _together(last: Piece, piece: Piece, sharing: Sharing) -> bool:
    """Whether the piece continues the last one's transaction, or may share its target transaction."""
    if piece.transaction is last.transaction or sharing is Sharing.ANY:
        return True
    return sharing is Sharing.ONE_ORIGIN and piece.transaction.origin.node == last.transaction.origin.node


def _group(run: list[Piece]) -> Group:
    last = run[-1]
    changes: list[Change] = run[0].changes if len(run) == 1 else [c for piece in run for c in piece.changes]
    # the end of an unfinished transaction is not known; any position past its commit record tells that it is in the target
    position = last.end if last.end is not None else LSN(last.transaction.position + 1)
    ends = [end for end, piece in zip(accumulate(len(p.changes) for p in run), run, strict=True) if piece.end is not None]
    whole, origin = last.end is not None, last.transaction.origin
    return Group(origin, changes, position, whole, len(ends), last.seen, last.transaction.position, ends)

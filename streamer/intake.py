"""How far the reader has come with an edge, and whether it still reads the WAL that the edge knows. Pure.

A source that was put back to an older state of its files (a snapshot of the machine, a copy of the disk) is the same cluster on
the same timeline, and soon its WAL is longer again than what the target holds of the old one: by positions nobody can tell. So a
session begins with the last transaction that the edge has, where the slot still gives it, and that must come as it was.
"""

from __future__ import annotations

from dataclasses import dataclass

from streamer.errors import SlotError, start_over
from streamer.model import LSN, EdgeName, Idle, Piece, Seen
from streamer.ports import Landmark, SlotState


@dataclass(slots=True)
class Intake:
    """What the reader has done for an edge."""

    #: everything committed before it is in the queue or the target
    next: LSN
    #: what the source had applied of others by `next`
    seen: Seen
    #: what the source has sent of it, for the lag
    sent: LSN
    #: the last position that was queued for its own sake
    idle: LSN
    #: the last transaction that is in the queue or the target, if it is known
    last: Landmark | None = None
    #: the last transaction in the queue is not whole
    unfinished: bool = False
    #: what has to come in this session before anything later does
    awaited: Landmark | None = None

    @property
    def since(self) -> LSN:
        """From where on a session is to be read."""
        return self.next if self.last is None else min(self.last[0], self.next)

    def begin_session(self, state: SlotState) -> None:
        """Await the last transaction if the slot, of which nothing has been confirmed in this session yet, still gives it."""
        given = self.last is not None and state.exact and not state.batches and self.last[0] >= state.confirmed
        self.awaited = self.last if given else None

    def recognise(self, edge: EdgeName, item: Piece | Idle) -> None:
        """Compare what comes with what is awaited. Raises SlotError if the source has another history than the target knows."""
        if self.awaited is None:
            return
        at, _ = self.awaited
        if isinstance(item, Idle):
            if item.position <= at:
                return
        elif item.transaction.position < at:
            return
        elif (item.transaction.position, item.transaction.origin.commit_time) == self.awaited:
            self.awaited = None
            return
        raise SlotError(
            f'"{edge.source}" does not have the transaction that was committed there at {at}, and that "{edge.target}" holds: '
            "the source was restored from a backup",
            start_over(edge.sync),
        )

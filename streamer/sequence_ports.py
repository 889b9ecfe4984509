"""What keeping the sequences of a target in step needs of both ends; as for rows, neither knows the other (ports.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from streamer.model import TableName


@dataclass(frozen=True, slots=True)
class SequenceState:
    """Where a sequence stands."""

    name: TableName
    #: the last value that it has given or, if it was not called since, the one that it gives next
    last: int
    called: bool
    #: negative for one that counts down
    increment: int

    @property
    def next(self) -> int:
        """What it gives next, but for the end of its range."""
        return self.last + self.increment if self.called else self.last

    def is_behind(self, other: SequenceState) -> bool:
        """Whether it would still give a number that `other` has given, in the direction of that one."""
        return self.next > other.next if other.increment < 0 else self.next < other.next


class SequenceSource(Protocol):
    """Tells how far the sequences of a sync are on its source."""

    def read(self) -> Sequence[SequenceState]:
        """Return where they stand. Raises SourceError for one that may not be read, ConnectError."""

    def close(self) -> None:
        """Disconnect; the next question connects again. Never raises."""


class SequenceTarget(Protocol):
    """Has the sequences of a target follow."""

    def advance(self, states: Sequence[SequenceState]) -> int:
        """Set those that are behind to these states, and return how many were; the others are never set back.

        Raises TargetError if that fails for one, after all others are done, ConnectError.
        """

    def close(self) -> None:
        """Disconnect; the next question connects again. Never raises."""

"""Which of the rows that differ at a first look are really different, while both sides go on being written. Pure.

A row that the target has not got yet differs too. So one look proves nothing: between two looks the stream has passed the moment of
the first. What is equal at any look was only on its way. What is at both looks the same on the source, and the same on the target,
and not equal, no stream will ever mend.

The trap: a row that is written all the time never holds still for two looks. What can be said of it is whether it is there at all,
and whether the target's moves; if both are, it is undecided.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from streamer.verify.parts import Key, Rows, Seen

LOOKS: Final = 12
"""How often a row is looked at before it is given up as undecided."""

Kind: TypeAlias = Literal["missing", "extra", "different"]
"""What is wrong with a row of the target."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A row that is not the same on both sides. `source` is how it was seen there when that was proven."""

    key: Key
    kind: Kind
    source: Seen | None


@dataclass(slots=True)
class _Track:
    """One row, over all looks."""

    source: Seen | None
    target: Seen | None
    #: the target's was the same at every look, and the source's another at each
    stale: bool = True
    #: it was there, or not, at every look the same
    presence: bool = True

    def look(self, source: Seen | None, target: Seen | None) -> None:
        self.stale = self.stale and target == self.target and source != self.source
        self.presence = self.presence and (source is None) == (self.source is None) and (target is None) == (self.target is None)
        self.source, self.target = source, target


class Candidates:
    """The rows of one part that differ at a first look."""

    def __init__(self, source: Rows, target: Rows) -> None:
        self._open = {
            key: _Track(source.get(key), target.get(key))
            for key in source.keys() | target.keys()
            if not _equal(source.get(key), target.get(key))
        }
        self._looks = 1
        self.different: list[Difference] = []
        #: rows that were written too often to be compared
        self.undecided: list[Key] = []

    @property
    def open(self) -> int:
        """How many rows need another look."""
        return len(self._open)

    def keys(self) -> Iterator[Key]:
        """Give the rows that need another look."""
        return iter(self._open)

    def look(self, source: Rows, target: Rows) -> None:
        """Take another look: the stream has passed the moment of the last one since."""
        self._looks += 1
        for key, track in list(self._open.items()):
            here, there = source.get(key), target.get(key)
            proven = here == track.source and there == track.target
            track.look(here, there)
            if _equal(here, there):
                del self._open[key]
            elif proven or (self._looks >= LOOKS and self._is_wrong(track)):
                self.different.append(Difference(key, _kind(here, there), here))
                del self._open[key]
            elif self._looks >= LOOKS:
                self.undecided.append(key)
                del self._open[key]

    def _is_wrong(self, track: _Track) -> bool:
        """Whether a row that never held still is different all the same."""
        missing = track.presence and (track.source is None) != (track.target is None)
        return missing or track.stale


def _equal(source: Seen | None, target: Seen | None) -> bool:
    return (source and source.hash) == (target and target.hash)


def _kind(source: Seen | None, target: Seen | None) -> Kind:
    if source is None:
        return "extra"
    return "missing" if target is None else "different"

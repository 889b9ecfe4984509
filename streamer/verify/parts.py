"""The words of a comparison: parts of a table, what is summed up of them, and what a side of the comparison can be asked. Pure.

A part is a range of the first key column, or the whole table; within it rows are told apart into buckets by a hash of their key. A
part whose sums are equal bucket by bucket is equal; a sum does not depend on the order of rows, so nobody needs to sort.

The trap: a bucket is chosen by the key alone, never by the row, so that a row that changes between two looks stays where it was. A
table without a key has nothing else: there the hash of the row is its key, and the number of such rows is what is compared.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

Key: TypeAlias = tuple[str | None, ...]
"""The values of a row's key columns, as text."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of a table whose first key column is greater than `low`, and not greater than `high`; None: without end."""

    low: str | None = None
    high: str | None = None
    #: how many buckets its rows are told apart into
    buckets: int = 1


@dataclass(frozen=True, slots=True)
class Digest:
    """What is compared of many rows: how many they are, and the sum of their hashes."""

    rows: int
    total: int


@dataclass(frozen=True, slots=True)
class Seen:
    """A row at a look. Of one that was rewritten in between the version differs, where the engine has such a thing."""

    hash: int
    version: str = ""


Digests: TypeAlias = Mapping[int, Digest]
"""By bucket; one that has no rows is left out."""
Rows: TypeAlias = Mapping[Key, Seen]


class Side(Protocol):
    """One table on one side of a comparison, over a connection of its own; used by one thread at a time.

    All methods raise StreamerError.
    """

    def digests(self, part: Part) -> Digests:
        """Return what the buckets of a part hold."""

    def rows(self, part: Part, buckets: Collection[int]) -> Rows:
        """Return the rows of some of its buckets."""

    def cancel(self) -> None:
        """Make what another thread has under way here fail soon. Never raises."""


class SourceSide(Side, Protocol):
    """The side that says where the parts end, and whose rows are right."""

    def parts(self, rows: int, within: Part) -> Iterator[Part]:
        """Give consecutive ranges of about so many rows, together all that is `within` a range."""

    def fetch(self, keys: Collection[Key]) -> Mapping[Key, tuple[Seen, tuple[str | None, ...]]]:
        """Return those of the rows that are there, with their values as the target is given them."""


def hash_of(values: Sequence[object]) -> int:
    """Return a hash of a row: 64 bits with a sign, which mean something in this process only. Values are None, text, bytes or
    numbers, and rows differ where these do; of a tuple itself Python would hash -1 and -2, or 1 and 1.0, alike.
    """
    return hash(repr(tuple(values)))


def bucket_of(key: Key, part: Part) -> int:
    """Return the bucket of a row that is hashed here."""
    return hash_of(key) % part.buckets if part.buckets > 1 else 0


def together(seen: Seen | None, more: Seen) -> Seen:
    """Return two rows of one key as if they were one: a key that the config names, or of a table without any, may have several."""
    return more if seen is None else Seen(seen.hash + more.hash, f"{seen.version} {more.version}")

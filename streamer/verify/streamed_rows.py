"""A table whose rows are hashed here, as they stream by: where the other side cannot hash alike, or a function of the user's makes
the rows.

Whatever engine the rows come from, they are brought into one form before they are hashed: what the target's engine makes of a value
and what it gives back for it must be equal. What that form is, is chosen once a column (foreign_values.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from streamer.session import Connection
from streamer.verify.parts import Digest, Digests, Key, Part, Rows, Seen, bucket_of, hash_of, together
from streamer.verify.postgres_rows import VERSION, Reading, batches, break_off, copied, parts


@dataclass(frozen=True, slots=True)
class Made:
    """A row as it is compared, and as a target is given it."""

    key: Key
    values: tuple[object, ...]
    row: tuple[str | None, ...] = ()


Make: TypeAlias = Callable[[Sequence[Any]], Made | None]
"""Makes of a row as it was read what is compared; None if it does not travel."""


class Scan(Protocol):
    """Reads rows of one table as they are, each with a version: "" where the engine has none. Raises StreamerError."""

    def rows(self, part: Part) -> Iterator[tuple[str, Sequence[Any]]]:
        """Give the rows of a range."""

    def cancel(self) -> None:
        """Make what another thread reads fail soon. Never raises."""


class StreamedRows:
    """Implements parts.Side over a scan."""

    def __init__(self, scan: Scan, make: Make) -> None:
        self._scan = scan
        self._make = make

    def digests(self, part: Part) -> Digests:
        """Sum up the buckets of a part."""
        counts, sums = [0] * part.buckets, [0] * part.buckets
        for key, seen in self._hashed(self._scan.rows(part)):
            bucket = bucket_of(key, part)
            counts[bucket] += 1
            sums[bucket] += seen.hash
        return {b: Digest(count, sums[b]) for b, count in enumerate(counts) if count}

    def rows(self, part: Part, buckets: Collection[int]) -> Rows:
        """Hash the rows of some buckets."""
        found: dict[Key, Seen] = {}
        for key, seen in self._hashed(self._scan.rows(part)):
            if bucket_of(key, part) in buckets:
                found[key] = together(found.get(key), seen)
        return found

    def cancel(self) -> None:
        """Break off what is read."""
        self._scan.cancel()

    def _hashed(self, rows: Iterable[tuple[str, Sequence[Any]]]) -> Iterator[tuple[Key, Seen]]:
        """Each row with its hash. Where nothing else tells rows apart, the hash does, and equal rows count."""
        for version, row in rows:
            if (made := self._make(row)) is None:
                continue
            hashed = hash_of(made.values)
            yield (made.key, Seen(hashed, version)) if made.key else ((str(hashed),), Seen(hashed))


class PostgresScan:
    """Implements Scan for a table of PostgreSQL."""

    def __init__(self, node: str, connection: Connection, reading: Reading) -> None:
        self.node = node
        self.connection = connection
        self.reading = reading

    def rows(self, part: Part) -> Iterator[tuple[str, Sequence[Any]]]:
        """Give the rows of a range as text."""
        return self._rows(self.reading.condition(part))

    def of_keys(self, keys: Sequence[Key]) -> Iterator[tuple[str, Sequence[Any]]]:
        """Give the rows that have these keys."""
        return self._rows(self.reading.condition(Part(), self.reading.is_one_of(keys)))

    def _rows(self, condition: str) -> Iterator[tuple[str, Sequence[Any]]]:
        values = ", ".join((VERSION, *self.reading.columns))
        query = f"SELECT {values} FROM {self.reading.name}{condition}"
        return ((row[0] or "", row[1:]) for row in copied(self.node, self.connection, self.reading.table, query))

    def cancel(self) -> None:
        """Have the server break off what it does."""
        break_off(self.connection)


class StreamedSource(StreamedRows):
    """Implements parts.SourceSide: a table of PostgreSQL whose rows are hashed here."""

    def __init__(self, scan: PostgresScan, make: Make) -> None:
        super().__init__(scan, make)
        self._source = scan

    def parts(self, rows: int, within: Part) -> Iterator[Part]:
        """Give ranges of so many rows, in the order of the key."""
        return parts(self._source.node, self._source.connection, self._source.reading, rows, within)

    def fetch(self, keys: Collection[Key]) -> Mapping[Key, tuple[Seen, tuple[str | None, ...]]]:
        """Return rows with their values, by their keys."""
        found = {}
        for chosen in batches(keys):
            for version, row in self._source.of_keys(chosen):
                if (made := self._make(row)) is not None:
                    found[made.key] = Seen(hash_of(made.values), version), made.row
        return found

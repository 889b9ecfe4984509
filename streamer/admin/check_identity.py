"""Which tables of a sync with several sources need REPLICA IDENTITY FULL, why, and which have it.

An update carries a long value that it left alone only if the old row is in the WAL. Without it the nodes keep different ones when
that update wins; and the difference that a delta column adds is told by the old row too. The trap: the identity of a partition is
its own, not that of the table above it.

https://www.postgresql.org/docs/current/sql-altertable.html#SQL-ALTERTABLE-REPLICA-IDENTITY
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from streamer.capture.catalog import SourceTable
from streamer.conflict_config import TableRules
from streamer.model import Identity, TableName
from streamer.session import Connection
from streamer.sinks.postgres_table import quoted


@dataclass(frozen=True, slots=True)
class Part:
    """A table that holds rows, or the partitioned table above it."""

    table: TableName
    identity: Identity
    #: whether a value may be stored outside of the row
    toasted: bool

    @property
    def remedy(self) -> str:
        """The statement that makes the old row travel."""
        return f"ALTER TABLE {quoted(self.table)} REPLICA IDENTITY FULL"


def read_parts(connection: Connection, table: SourceTable) -> list[Part]:
    """Return the table and the partitions that hold its rows. Raises psycopg.Error."""
    parts = []
    for name in dict.fromkeys((table.table, *table.leaves)):
        row: Any = connection.execute(_PART, [name.schema, name.name]).fetchone()
        if row is not None:  # else dropped meanwhile
            parts.append(Part(name, Identity(row[0]), row[1]))
    return parts


_PART: Final = """
SELECT c.relreplident::text, c.reltoastrelid <> 0
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s
"""


def demand(rules: TableRules, parts: Sequence[Part], *, has_key: bool) -> str:
    """Return why the old row has to travel; empty if it need not, as in a table without a key: there are no conflicts. Pure."""
    if rules.merged:
        return f"{', '.join(sorted(rules.merged))} can only be merged if updates carry the old row"
    if has_key and rules.conflict not in ("apply", "keep", "error") and any(part.toasted for part in parts):
        return "an update that wins must carry also the long values that it left unchanged"
    return ""


def lacking(parts: Sequence[Part]) -> list[Part]:
    """Return those without REPLICA IDENTITY FULL. Pure."""
    return [part for part in parts if part.identity is not Identity.FULL]

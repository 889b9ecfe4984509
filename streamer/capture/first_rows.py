"""Tables of a source whose first rows are still to come from another source of the same sync.

Until they are here, changes made here must not be told: whoever hears of them may be the one whose rows are copied here, and they
would come back with these.
"""

from __future__ import annotations

from typing import Final

from streamer.capture.assemble import Interest
from streamer.model import TableName
from streamer.session import Connection

_IS_THERE: Final = """
SELECT 1 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'streamer' AND c.relname = 'first_rows'
"""
_AWAITED: Final = "SELECT DISTINCT schema_name, table_name FROM streamer.first_rows WHERE sync = %s AND target = %s AND by_copy"


def awaited(connection: Connection, sync: str, node: str, interest: Interest) -> set[TableName]:
    """Return the tables of `node` that are still to be copied there: none where a sync has one source, or nothing is written to the
    node. Raises psycopg.Error."""
    if not interest.by_transaction or connection.execute(_IS_THERE).fetchone() is None:
        return set()
    return {TableName(*row) for row in connection.execute(_AWAITED, [sync, node])}

"""`streamer check`, syncs with several sources, and `streamer cutover`: may the application write on each of the nodes.

Tables that `setup` makes belong to the role of the url, and rights do not travel: an application that owns them elsewhere is
refused, and nobody notices before it is sent there.

https://www.postgresql.org/docs/current/ddl-priv.html
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from streamer.admin.findings import Finding, warning
from streamer.admin.printing import counted
from streamer.config import Sync
from streamer.model import TableName
from streamer.session import Connection
from streamer.sinks.postgres_table import quote, quoted

_OWNERS: Final = """
SELECT n.nspname, c.relname, r.rolname, r.rolname = current_user FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace JOIN pg_catalog.pg_roles r ON r.oid = c.relowner
WHERE c.relkind IN ('r', 'p') ORDER BY 1, 2
"""
_DENIED: Final = """
SELECT 1 FROM pg_catalog.pg_roles r JOIN pg_catalog.pg_class c ON true JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE r.rolname = %s AND n.nspname = %s AND c.relname = %s AND NOT has_table_privilege(r.oid, c.oid, 'INSERT')
"""


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose a table is, and whether that is us."""

    role: str
    ours: bool


def read_owners(connection: Connection, sync: Sync) -> dict[TableName, Owner]:
    """Return the owners of a sync's tables. Raises psycopg.Error."""
    rows = connection.execute(_OWNERS).fetchall()
    return {table: Owner(role, ours) for *name, role, ours in rows if sync.selects(table := TableName(*name))}


def judge_owners(node: str, owners: Mapping[str, Mapping[TableName, Owner]], connection: Connection) -> Iterator[Finding]:
    """Yield the node's tables that are ours there, and may not be written by who owns them elsewhere. Raises psycopg.Error."""
    theirs = {table: (owner.role, other) for other, of in owners.items() for table, owner in of.items() if not owner.ours}
    shut: dict[tuple[str, str, str], list[TableName]] = defaultdict(list)
    for table, owner in owners[node].items():
        role, elsewhere = theirs.get(table, ("", ""))
        if owner.ours and role and connection.execute(_DENIED, [role, table.schema, table.name]).fetchone():
            shut[owner.role, role, elsewhere].append(table)
    for (ours, role, elsewhere), tables in shut.items():
        yield warning(
            f'node "{node}"',
            f'role {role}, who owns {counted(len(tables), "table")} on "{elsewhere}", may not write them here: '
            f"they belong to {ours}, who has made them",
            "; ".join(f"ALTER TABLE {quoted(table)} OWNER TO {quote(role)}" for table in tables),
        )

"""What `cutover` leaves on the old node, because no sync of the config brings it: told before, as nobody would notice afterwards.

Tables in a schema that was forgotten, unlogged tables, sequences of their own, large objects; and materialized views that are empty
on the new node, and roles that are not there, or may not write what is theirs on the old one. What `exclude` names, and what an
extension has made, is left behind on purpose. All of it is a warning: an application may do without.

https://www.postgresql.org/docs/current/catalog-pg-class.html
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

from streamer.admin.check_owners import judge_owners, read_owners
from streamer.admin.check_selection import NAMED, named, unselected, wanted
from streamer.admin.cutover_route import Route
from streamer.admin.findings import Finding, warning
from streamer.admin.nodes import session
from streamer.admin.sequences import selection
from streamer.capture.sequences import Selection, find_sequences
from streamer.config import Config, Sync
from streamer.model import TableName
from streamer.session import Connection, version
from streamer.sinks.postgres_table import quoted

LARGE_OBJECTS: Final = 90000  # pg_largeobject_metadata, which everybody may read: version 9.0
POPULATED: Final = 90300  # materialized views: version 9.3
_EMPTY_VIEWS: Final = """
SELECT n.nspname, c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'm' AND NOT c.relispopulated ORDER BY 1, 2
"""


def outside(config: Config, route: Route, *, numbered: bool) -> Iterator[Finding]:
    """Yield what stays behind, sequences only if those of the sync are set (`numbered`). Raises StreamerError."""
    what, sync = f'"{route.old}"', route.forth.sync
    carrying = [config.syncs[name] for name, _, target in config.edges() if target == route.new]
    with session(config, route.old) as connection:
        left = unselected(connection, carrying)
        if logged := wanted(carrying, (table for table, unlogged in left.items() if not unlogged)):
            remedy = f"add to syncs.{sync}.tables, or name in its exclude; then: streamer setup, and reload streamer run"
            yield warning(what, f"no sync brings {named(logged, 'table')}", remedy)
        if unlogged := wanted(carrying, (table for table, unlogged in left.items() if unlogged)):
            yield warning(what, f"keeps the rows of {named(unlogged, 'unlogged table')}", "dump and restore them, if they matter")
        if numbered and (numbers := wanted(carrying, _sequences(connection, config.syncs[sync], left))):
            yield warning(what, f"no sync moves {named(numbers, 'sequence')}", f"add to syncs.{sync}.tables, or set by hand")
        if version(connection) >= LARGE_OBJECTS and _has_large_objects(connection):
            yield warning(what, "has large objects, which are not replicated", "dump and restore them: docs/migration.md")
        owners = {route.old: read_owners(connection, config.syncs[sync])}
    if config.nodes[route.new].kind == "postgresql":
        with session(config, route.new) as connection:
            yield from _empty_views(connection, route.new)
            owners[route.new] = read_owners(connection, config.syncs[sync])
            yield from judge_owners(route.new, owners, connection)
            yield from _missing_roles(connection, route, {owner.role for owner in owners[route.old].values() if not owner.ours})


def _sequences(connection: Connection, sync: Sync, left: Collection[TableName]) -> Iterator[TableName]:
    """The sequences that the sync does not move, but for those of tables that stay as well."""
    of_tables = Selection(left.__contains__, lambda _: False)
    known = {f.name for taken in (selection(sync), of_tables) for f in find_sequences(connection, taken)}
    everything = Selection(lambda _: True, lambda _: False)
    yield from (found.name for found in find_sequences(connection, everything) if found.name not in known)


def _missing_roles(connection: Connection, route: Route, roles: Collection[str]) -> Iterator[Finding]:
    there = {name for (name,) in connection.execute("SELECT rolname FROM pg_catalog.pg_roles").fetchall()}
    for role in sorted(set(roles) - there):
        remedy = "make it, with its rights: pg_dumpall --roles-only, docs/migration.md"
        yield warning(f'"{route.new}"', f'has no role {role}, who owns tables on "{route.old}"', remedy)


def _has_large_objects(connection: Connection) -> bool:
    return connection.execute("SELECT 1 FROM pg_catalog.pg_largeobject_metadata LIMIT 1").fetchone() is not None


def _empty_views(connection: Connection, node: str) -> Iterator[Finding]:
    if version(connection) < POPULATED:
        return
    views = [TableName(*row) for row in connection.execute(_EMPTY_VIEWS).fetchall()]
    if views:
        remedy = "; ".join(f"REFRESH MATERIALIZED VIEW {quoted(view)}" for view in views[:NAMED])
        yield warning(f'"{node}"', f"has no rows in {named(views, 'materialized view')}", f"BEGIN READ WRITE; {remedy}; COMMIT")

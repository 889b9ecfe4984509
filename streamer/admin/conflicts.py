"""`streamer conflicts`: what conflicts there were, and what became of them, from the nodes that have resolved them.

Each node keeps its own in streamer.conflict, for as long as `conflict_days` says; an id is therefore NODE:NUMBER. A node that
cannot be reached is told, and the others are shown.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from streamer.admin import installation
from streamer.admin.arguments import moment, node_and_number, table_name
from streamer.admin.nodes import chosen_syncs, session
from streamer.admin.printing import on_terminal, print_table, printable, shortened
from streamer.config import Config
from streamer.errors import StreamerError, UsageError
from streamer.model import TableName
from streamer.session import Connection
from streamer.sinks.conflict import ConflictKind

Row = dict[str, str | None]

HEADERS: Final = ("time (UTC)", "id", "table", "key", "kind", "winner", "rule")
WIDE: Final = 100
"""From this width of a terminal on, seconds are shown."""
LONGEST: Final = 300
"""How many characters of a value are shown to people."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """One row of streamer.conflict. A row of the table that is None was not there; a column that it lacks did not travel."""

    id: str
    node: str
    resolved: datetime
    sync: str
    source: str
    target: str
    table: str
    key: Row
    kind: str
    change: str
    current_row: Row | None
    current_origin: str | None
    current_commit: datetime | None
    incoming_row: Row | None
    incoming_origin: str | None
    incoming_commit: datetime | None
    incoming_position: str | None
    #: incoming, current or merged; None if it is not resolved
    winner: str | None
    rule: str | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Filter:
    """Which conflicts are wanted."""

    sync: str | None = None
    node: str | None = None
    table: TableName | None = None
    kind: str | None = None
    since: datetime | None = None
    limit: int = 50


@dataclass(frozen=True, slots=True)
class Found:
    """The newest conflicts, whether there are older ones, and what went wrong on the way."""

    conflicts: list[Conflict]
    more: bool
    problems: list[StreamerError]


def make_filter(
    *, sync: str | None, node: str | None, table: str | None, kind: str | None, since: str | None, limit: int
) -> Filter:
    """Return the filter that a person has typed. Raises UsageError."""
    if kind is not None and kind not in list(ConflictKind):
        raise UsageError(f'there is no kind of conflict "{kind}"', f"the kinds are {', '.join(ConflictKind)}")
    return Filter(sync, node, table_name(table) if table else None, kind, moment(since) if since else None, limit)


# -- reading -----------------------------------------------------------------------------------------------------------------------


def find(config: Config, wanted: Filter) -> Found:
    """Return conflicts of all nodes, the newest first. Raises UsageError."""
    conflicts: list[Conflict] = []
    problems: list[StreamerError] = []
    for node in _nodes(config, wanted):
        try:
            conflicts += _read(config, node, wanted)
        except StreamerError as problem:
            problems.append(problem)
    conflicts.sort(key=lambda conflict: conflict.resolved, reverse=True)
    return Found(conflicts[: wanted.limit], len(conflicts) > wanted.limit, problems)


def get(config: Config, name: str) -> Conflict:
    """Return the conflict with the id NODE:NUMBER. Raises StreamerError if there is none."""
    node, number = node_and_number(name, "a conflict", "take one that streamer conflicts list shows, like a:12")
    if node not in _nodes(config, Filter()):
        raise UsageError(f'node "{node}" resolves no conflicts', f"they are resolved on {', '.join(_nodes(config, Filter()))}")
    with session(config, node) as connection:
        _require_table(connection, node)
        row = connection.execute(f"{_SELECT} WHERE id = %s".encode(), [number]).fetchone()
    if row is None:
        raise StreamerError(f'node "{node}" has no conflict {number}', "old ones are removed after conflict_days")
    return _conflict(node, row)


def _nodes(config: Config, wanted: Filter) -> list[str]:
    """The nodes that resolve conflicts. Raises UsageError."""
    syncs = [config.syncs[name] for name in chosen_syncs(config, wanted.sync) if config.syncs[name].multi_master]
    found = dict.fromkeys(node for sync in syncs for node in (*sync.sources, *sync.targets))
    nodes = [node for node in found if config.nodes[node].kind == "postgresql"]
    if not nodes:
        which = "no sync has" if wanted.sync is None else f'sync "{wanted.sync}" has not'
        raise UsageError(f"{which} several sources, so there are no conflicts", "see docs/multi-master.md")
    if wanted.node is None:
        return nodes
    if wanted.node not in nodes:
        raise UsageError(f'node "{wanted.node}" resolves no conflicts', f"they are resolved on {', '.join(nodes)}")
    return [wanted.node]


def _read(config: Config, node: str, wanted: Filter) -> list[Conflict]:
    conditions = {
        "sync = %s": wanted.sync,
        "schema_name = %s": wanted.table and wanted.table.schema,
        "table_name = %s": wanted.table and wanted.table.name,
        "kind = %s": wanted.kind,
        "resolved >= %s": wanted.since,
    }
    chosen = {condition: value for condition, value in conditions.items() if value is not None}
    where = f"WHERE {' AND '.join(chosen)}" if chosen else ""
    with session(config, node) as connection:
        _require_table(connection, node)
        query = f"{_SELECT} {where} ORDER BY resolved DESC, id DESC LIMIT %s"
        return [_conflict(node, row) for row in connection.execute(query.encode(), [*chosen.values(), wanted.limit + 1])]


def _require_table(connection: Connection, node: str) -> None:
    if not installation.has_table(connection, "conflict"):
        raise StreamerError(f'node "{node}" is not set up to keep conflicts', "run: streamer setup")


_SELECT: Final = """
SELECT id, resolved, sync, source, target, schema_name, table_name, key, kind, change, current_row, current_origin, current_commit,
       incoming_row, incoming_origin, incoming_commit, incoming_position, winner, rule, error
FROM streamer.conflict
"""


def _conflict(node: str, row: Sequence[Any]) -> Conflict:
    number, resolved, sync, source, target, schema, name, key, kind, change, current, *rest = row
    current_origin, current_commit, incoming, *last = rest
    return Conflict(
        f"{node}:{number}",
        node,
        resolved,
        sync,
        source,
        target,
        str(TableName(schema, name)),
        json.loads(key),
        kind,
        change,
        _row(current),
        current_origin,
        current_commit,
        _row(incoming),
        *last,
    )


def _row(text: str | None) -> Row | None:
    return None if text is None else json.loads(text)


# -- printing ----------------------------------------------------------------------------------------------------------------------


def print_list(found: Found, *, as_json: bool) -> None:
    """Print a line a conflict."""
    if as_json:
        print(json.dumps({"conflicts": list(map(_plain, found.conflicts)), "more": found.more}, indent=2, ensure_ascii=False))
        return
    if not found.conflicts:
        print("no conflicts" + (" on the other nodes" if found.problems else ""))
        return
    rows = list(map(_cells, found.conflicts))
    if on_terminal():
        _print_narrow(rows)
    else:
        print_table(HEADERS, rows)
    if found.more:
        print("there are older ones: see --limit and --since")


def _print_narrow(rows: Sequence[Sequence[str]]) -> None:
    """Print without frames, and on a narrow terminal without seconds and long rules, so that usual names stay unbroken."""
    console = Console()
    wide = console.width >= WIDE
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold underline")
    for header in HEADERS:
        table.add_column(header, overflow="fold", no_wrap=header not in (("table", "key", "rule") if wide else ("kind",)))
    for time, number, name, key, kind, winner, rule in rows:
        if wide:
            shown = [time[5:], number, name, key, kind, winner, rule]
        else:
            shown = [time[5:16], number, shortened(name, 16), shortened(key, 12), kind, winner, shortened(rule, 8)]
        table.add_row(*map(Text, shown))
    console.print(table)


def _cells(conflict: Conflict) -> list[str]:
    return [
        f"{conflict.resolved.astimezone(UTC):%Y-%m-%d %H:%M:%S}",
        conflict.id,
        conflict.table.removeprefix("public."),
        shortened(_key(conflict.key), 30),
        conflict.kind,
        conflict.winner or "none",
        conflict.rule or "-",
    ]


def print_one(conflict: Conflict, *, as_json: bool) -> None:
    """Print a conflict with both rows side by side; a star marks the columns that differ."""
    if as_json:
        print(json.dumps(_plain(conflict), indent=2, ensure_ascii=False))
        return
    print(f"{conflict.id}: {conflict.kind} in table {conflict.table}, key {_key(conflict.key)}")
    position = f" at {conflict.incoming_position}" if conflict.incoming_position else ""
    for what, told in {
        "resolved": f"{_time(conflict.resolved)} on {conflict.node}, edge {conflict.sync}: {conflict.source} -> {conflict.target}",
        "change": f"{conflict.change}{position}",
        "rule": conflict.rule,
        "winner": conflict.winner or "none: it is not resolved",
        "error": conflict.error,
    }.items():
        if told:
            print(f"{what + ':':9} {told}")
    print_table(("", "", "current", "incoming"), list(_side_by_side(conflict)), side_by_side=True)


def _side_by_side(conflict: Conflict) -> Iterator[list[str]]:
    yield ["", "made on", conflict.current_origin or "-", conflict.incoming_origin or "-"]
    yield ["", "committed", _time(conflict.current_commit), _time(conflict.incoming_commit)]
    rows = conflict.current_row, conflict.incoming_row
    absent = "deleted" if conflict.kind == ConflictKind.UPDATE_DELETED else "no row", "deleted"
    for column in dict.fromkeys(column for row in rows for column in row or ()):
        values = [row[column] for row in rows if row is not None and column in row]
        # what did not travel was left as it was
        mark = "*" if len(values) == 2 and values[0] != values[1] else ""
        yield [mark, column, *(_cell(row, column, if_none) for row, if_none in zip(rows, absent, strict=True))]


def _cell(row: Row | None, column: str, absent: str) -> str:
    if row is None:
        return absent
    if column not in row:
        return "not sent"
    value = row[column]
    return "NULL" if value is None else shortened(printable(value), LONGEST)


def _key(key: Row) -> str:
    return printable(", ".join(f"{column}={value}" for column, value in key.items()))


def _time(moment: datetime | None) -> str:
    return "unknown" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f} UTC"


def _plain(conflict: Conflict) -> dict[str, Any]:
    """The conflict for JSON."""
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in asdict(conflict).items()}

"""From the rows of the schema `bucardo` to values.

The trap: the schema of Bucardo 5 has grown from version to version, and `bucardo upgrade` is run by hand; so a row is read by what
it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final, TypeAlias

from streamer.bucardo.control import Code, Control, Custom, Database, Relation, Sync

TABLES: Final = (
    "bucardo_config",
    "bucardo_custom_trigger",
    "customcode",
    "customcode_map",
    "customcols",
    "customname",
    "db",
    "dbmap",
    "goat",
    "herdmap",
    "sync",
)
"""The tables that are read."""

Row: TypeAlias = Mapping[str, Any]
Rows: TypeAlias = Mapping[str, Sequence[Row]]

_DEFAULTS: Final = {
    "copyextra": "",
    "deletemethod": "delete",
    "rebuild_index": 0,
    "priority": 0,
    "analyze_after_copy": True,
    "vacuum_after_copy": False,
    "strict_checking": True,
    "overdue": timedelta(0),
    "expired": timedelta(0),
    "track_rates": False,
    "lifetime": None,
    "maxkicks": 0,
}
"""Columns of bucardo.sync that say how Bucardo works, and what they hold unless somebody has set them."""
_DEFAULTS_OF_RELATIONS: Final = {
    "rebuild_index": None,
    "analyze_after_copy": True,
    "vacuum_after_copy": True,
    "strict_checking": True,
    "delta_bypass": False,
}
"""The same of bucardo.goat."""


def from_rows(rows: Rows) -> Control:
    """Return what the tables say; `rows` has all of TABLES, in any order of rows."""
    relations = {one.id: one for one in map(_relation, rows["goat"])}
    databases = sorted(map(_database, rows["db"]), key=lambda one: one.name)
    settings = {row["name"]: str(row["setting"]) for row in rows["bucardo_config"] if row["item"] is None}
    strategy = settings.get("default_conflict_strategy", "bucardo_latest")
    syncs = [_sync(row, rows, relations, strategy) for row in rows["sync"]]
    return Control(
        version_of(rows["bucardo_config"]),
        {one.name: one for one in databases},
        tuple(sorted(syncs, key=lambda sync: sync.name)),
        relations,
        tuple(_custom(row, "newname") for row in _by(rows["customname"], "id")),
        tuple(_custom(row, "clause") for row in _by(rows["customcols"], "id")),
        tuple(_codes(rows["customcode"], rows["customcode_map"])),
        tuple(sorted({row["goat"] for row in rows["bucardo_custom_trigger"]})),
        settings.get("flatfile_dir", "."),
        tuple(sorted({row["name"] for row in rows["bucardo_config"] if _is_changed(row)})),
    )


def version_of(settings: Sequence[Row]) -> str:
    """Return the version that bucardo_config tells; empty if it tells none."""
    named = [(row.get("name"), row.get("setting")) for row in settings]
    named += [(row.get("setting"), row.get("value")) for row in settings]  # as Bucardo 4 had it
    return dict(named).get("bucardo_version") or ""


def _is_changed(row: Row) -> bool:
    """Whether somebody has changed a setting, for all or for one sync or table."""
    return "version" not in row["name"] and (row["item"] is not None or row.get("defval") not in (None, row["setting"]))


def _by(rows: Sequence[Row], column: str) -> list[Row]:
    return sorted(rows, key=lambda row: row[column])


def _database(row: Row) -> Database:
    def text(column: str) -> str:
        return str(row.get(column) or "")

    return Database(
        row["name"],
        text("dbtype") or "postgres",
        text("dbdsn"),
        text("dbhost"),
        text("dbport"),
        text("dbname"),
        text("dbuser"),
        text("dbpass"),
        text("dbconn"),
        text("dbservice"),
        text("pgpass"),
        text("status") or "active",
        bool(row.get("makedelta")),
    )


def _relation(row: Row) -> Relation:
    key = tuple(column for column in (row["pkey"] or "").split("|") if column)
    return Relation(
        row["id"],
        row["schemaname"],
        row["tablename"],
        row["reltype"] == "sequence",
        key,
        row["autokick"],
        row["conflict_strategy"] or "",
        str(row.get("makedelta") or ""),
        bool(row.get("ghost")),
        _changed(row, _DEFAULTS_OF_RELATIONS),
    )


def _sync(row: Row, rows: Rows, relations: Mapping[int, Relation], default_strategy: str) -> Sync:
    members = [one for one in rows["herdmap"] if one["herd"] == row["herd"] and one["goat"] in relations]
    roles = {one["db"]: one["role"] for one in rows["dbmap"] if one["dbgroup"] == row["dbs"]}
    checktime = row.get("checktime")
    return Sync(
        row["name"],
        tuple(sorted((relations[one["goat"]] for one in members), key=str)),
        dict(sorted(roles.items())),
        row["conflict_strategy"] or default_strategy,
        row["autokick"],
        checktime.total_seconds() if checktime else 0,
        row["status"],
        int(row["onetimecopy"] or 0),
        _changed(row, _DEFAULTS),
    )


def _changed(row: Row, defaults: Mapping[str, object]) -> tuple[str, ...]:
    """Return the columns that somebody has set; what is empty, 0 or NULL is alike."""
    return tuple(name for name, default in defaults.items() if name in row and (row[name] or None) != (default or None))


def _custom(row: Row, column: str) -> Custom:
    return Custom(row["goat"], row[column] or "", row["db"], row["sync"])


def _codes(codes: Sequence[Row], places: Sequence[Row]) -> list[Code]:
    found = []
    for code in _by(codes, "name"):
        mine = [place for place in places if place["code"] == code["id"]]
        active = code["status"] == "active"
        found += [Code(code["name"], code["whenrun"], active and place["active"], place["sync"], place["goat"]) for place in mine]
        found += [] if mine else [Code(code["name"], code["whenrun"], active)]
    return found

"""customname and customcols as `rename`, `columns`, `rename_columns` and `transform`.

Each may hold for all targets, for a sync, for a database, or for a sync on a database; the last of these that there is holds.
A clause that only names columns is a list of columns here. One that computes something is a function that the user has to write;
until then the config names one that is not there, so that nothing travels in another shape than Bucardo gave it.

The trap: Bucardo puts the new name into its SQL as it stands, so that PostgreSQL folds it to lower case where it is not quoted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

from streamer.bucardo.control import Control, Custom, Relation, Sync
from streamer.bucardo.notes import Notes
from streamer.patterns import matching

Settings: TypeAlias = Mapping[str, object]
"""Keys below `[syncs.NAME.table."TABLE"]`."""

MODULE: Final = "from_bucardo"
"""The module that the user's functions are looked for in."""
UNTIL: Final = "Until it is there, streamer check refuses it and streamer run does not start"

_NAME: Final = r'(?:"(?:[^"]|"")+"|[A-Za-z_][\w$]*)'
_COLUMN: Final = re.compile(rf"\s*({_NAME})(?:\s+(?:AS\s+)?({_NAME}))?\s*", re.IGNORECASE)


def settings_on(control: Control, sync: Sync, table: Relation, database: str, notes: Notes) -> Settings:
    """Return what a table becomes on one target of a sync; nothing if it stays as it is."""
    found: dict[str, object] = {}
    new_name = _value(control.names, sync, table, database)
    kind = control.databases[database].kind
    if new_name:
        found["rename"] = matching(_renamed(new_name, folded=kind == "postgres"))
        notes.add("same", f'customname "{new_name}" of table "{table}" on db "{database}"', f'is rename = "{found["rename"]}"')
    elif kind in ("mysql", "mariadb", "sqlite") and table.schema != "public":
        found["rename"] = matching(f"public.{table.name}")  # Bucardo leaves the schema out
    if clause := _value(control.columns, sync, table, database):
        found |= _columns(clause, f'customcols "{clause}" of table "{table}" on db "{database}"', table, notes)
    return found


def by_table(control: Control, sync: Sync, targets: Sequence[str], notes: Notes) -> dict[str, dict[str, Settings]]:
    """Return the settings of tables that do not stay as they are, by target and table."""
    found = {}
    for target in targets:
        settings = {str(table): settings_on(control, sync, table, target, notes) for table in sync.tables}
        found[target] = _without_clashes({table: keys for table, keys in settings.items() if keys}, control, target, notes)
    return {target: settings for target, settings in found.items() if settings}


def _without_clashes(settings: dict[str, Settings], control: Control, target: str, notes: Notes) -> dict[str, Settings]:
    """Tables of one name in several schemas, which Bucardo would write into one table of an engine without schemas."""
    if control.databases[target].kind == "postgres":
        return settings
    names = [keys.get("rename") for keys in settings.values()]
    kept = dict(settings)
    for table, keys in settings.items():
        name = keys.get("rename")
        if name and names.count(name) > 1:
            kept[table] = {key: value for key, value in keys.items() if key != "rename"}
            text = f'keeps its schema: Bucardo writes several tables into "{str(name).removeprefix("public.")}"'
            notes.add("different", f'table "{table}" on db "{target}"', text)
    return {table: keys for table, keys in kept.items() if keys}


def _value(customs: Sequence[Custom], sync: Sync, table: Relation, database: str) -> str:
    for at_sync, at_database in ((sync.name, database), (None, database), (sync.name, None), (None, None)):
        for custom in customs:
            if (custom.relation, custom.sync, custom.database) == (table.id, at_sync, at_database) and custom.value:
                return custom.value
    return ""


def _renamed(name: str, *, folded: bool) -> str:
    """The whole name of a table, from how SQL would write it; without a schema it is in the first one that is looked through."""
    parts = [_identifier(part, folded=folded) for part in re.findall(r'"(?:[^"]|"")+"|[^."]+', name)]
    return ".".join(parts) if len(parts) > 1 else f"public.{parts[0]}"


def _identifier(text: str, *, folded: bool = True) -> str:
    if text.startswith('"'):
        return text[1:-1].replace('""', '"')
    return text.lower() if folded else text


def _columns(clause: str, thing: str, table: Relation, notes: Notes) -> Settings:
    listed = re.sub(r"^\s*SELECT\s+", "", clause, flags=re.IGNORECASE)
    if listed.strip() == "*":
        return {}
    matches = [_COLUMN.fullmatch(part) for part in listed.split(",")]
    if not all(matches):
        return _ported(thing, table, notes)
    pairs = [(_identifier(match[1]), _identifier(match[2] or match[1])) for match in matches if match]
    notes.add("same", thing, "is columns" + (" and rename_columns" if any(old != new for old, new in pairs) else ""))
    renamed = {old: new for old, new in pairs if old != new}
    return {"columns": [old for old, _ in pairs]} | ({"rename_columns": renamed} if renamed else {})


def _ported(thing: str, table: Relation, notes: Notes) -> Settings:
    function = f"python:{MODULE}:{python_name(str(table))}"
    notes.add(
        "by hand",
        thing,
        f'computes something; the file has transform = "{function}", which you write: it gets a row and returns the one that '
        "travels (docs/shaping.md#rows-of-your-own-making-transform); fewer columns and other names of theirs go into columns and "
        f"rename_columns. {UNTIL}",
    )
    return {"transform": function}


def python_name(text: str) -> str:
    """Return a name of a function, as near to the text as can be."""
    plain = re.sub(r"\W", "_", text)
    return plain if re.match(r"[^\W\d]", plain) else f"_{plain}"

"""Bucardo's control databases for tests, as values, and what becomes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from streamer import config, topology
from streamer.bucardo.control import Control, Database, Relation, Sync
from streamer.bucardo.translation import Translation, translate

VERSION = "5.6.0"
ORDERS = Relation(1, "public", "orders", key=("id",))
LINES = Relation(2, "public", "lines", key=("order_id", "number"))
NUMBERS = Relation(3, "public", "orders_id_seq", is_sequence=True)
ARCHIVE = Relation(4, "old", "orders", key=("id",))


def database(name: str, **values: object) -> Database:
    """A PostgreSQL database, unless `kind` says otherwise."""
    plain = {"kind": "postgres", "host": "10.0.0.1", "dbname": "shop", "user": "bucardo"}
    return Database(name, **(plain | values))  # type: ignore[arg-type]


def sync(
    name: str = "shop", roles: str = "a:source b:target", relations: Sequence[Relation] = (ORDERS, LINES), **values: object
) -> Sync:
    """A sync between the databases that `roles` names, as Bucardo's command does."""
    members = dict(member.split(":") for member in roles.split())
    return Sync(name, tuple(relations), members, **values)  # type: ignore[arg-type]


def control(*syncs: Sync, databases: Sequence[Database] = (), **values: object) -> Control:
    """A control database with these syncs; databases that are not given are plain ones."""
    given = {one.name: one for one in databases}
    wanted = sorted({name for one in syncs for name in one.roles} | given.keys())
    relations = {one.id: one for each in syncs for one in each.relations}
    found = {name: given.get(name) or database(name) for name in wanted}
    return Control(VERSION, found, syncs, relations, **values)  # type: ignore[arg-type]


def loaded(translation: Translation, directory: Path) -> config.Config:
    """The config, by streamer's own loader; the variables that it wants are those of the report."""
    file = directory / "streamer.toml"
    file.write_text(translation.config, encoding="utf-8")
    found = config.load(file, {variable.name: "secret" for variable in translation.notes.variables})
    topology.check(found)
    return found


def imported(directory: Path, found: Control) -> tuple[config.Config, Mapping[str, list[str]]]:
    """The config that it becomes, and the notes by kind, as lines."""
    translation = translate(found)
    notes: dict[str, list[str]] = {}
    for note in translation.notes.notes:
        notes.setdefault(note.kind, []).append(f"{note.object}: {note.text}")
    return loaded(translation, directory), notes

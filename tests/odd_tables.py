"""Tables that a schema designer should not have made: odd names in odd schemas, keys of every kind, and none.

The trap: a name is at most 63 bytes long, not characters, and what makes it longer is cut off by the server without a word.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from psycopg import sql

from streamer.model import TableName
from tests.servers import Database

SCHEMAS = ("public", "Odd Schema", 'a "quoted" one', "über")
NAMES = (
    "plain",
    "Mixed Case",
    'quo"ted',
    "it's",
    "per%cent",
    "dot.ted",
    "back\\slash",
    "ünïcödé",
    "表",
    "select",
    "semi;colon",
    "br{ace}",
    "$1",
    "*",
    "q?[a]",
)
VALUE = 'va"l%ue'
"""A column of each."""
KEYS = {
    "primary": ("id int PRIMARY KEY", ""),
    "composite": ("id int, part text DEFAULT 'x', PRIMARY KEY (part, id)", ""),
    "unique": ("id int NOT NULL UNIQUE", ""),
    "index": (
        "id int NOT NULL",
        "CREATE UNIQUE INDEX {index} ON {table} (id); ALTER TABLE {table} REPLICA IDENTITY USING INDEX {index}",
    ),
    "full": ("id int", "ALTER TABLE {table} REPLICA IDENTITY FULL"),
    "nothing": ("id int", ""),
}
"""The columns, and what follows, of tables with each kind of key."""


def names(rng: random.Random, number: int) -> Iterator[tuple[TableName, str]]:
    """Give so many tables, each with the kind of its key."""
    for ordinal in range(number):
        kind = rng.choice(list(KEYS))
        name = rng.choice(NAMES) if ordinal >= len(NAMES) else NAMES[ordinal]
        if ordinal >= len(NAMES):
            name += f" {ordinal}"
            name += "_" * (rng.choice((0, 63)) - len(name.encode()))  # the longest that there are
        yield TableName(rng.choice(SCHEMAS), name), kind


def make_tables(source: Database, rng: random.Random, number: int) -> dict[TableName, str]:
    """Make so many empty tables; return them with the kinds of their keys."""
    made = dict(names(rng, number))
    with source.connect() as connection:
        for schema in SCHEMAS[1:]:
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
        for ordinal, (name, kind) in enumerate(made.items()):
            table, index = sql.Identifier(name.schema, name.name), sql.Identifier(f"key {ordinal}")
            columns, then = KEYS[kind]
            connection.execute(
                sql.SQL("CREATE TABLE {} ({}, {} text, n numeric)").format(table, sql.SQL(columns), sql.Identifier(VALUE))
            )
            if then:
                connection.execute(sql.SQL(then).format(table=table, index=index))
    return made

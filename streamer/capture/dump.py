"""How tables are defined on the source, as `pg_dump` writes it: closer to the original than what the catalog way makes.

Only entries that belong to a target are taken: no triggers, rules, policies or publications; foreign keys may fail. The traps:
newer pg_dumps write psql commands (`\\restrict`) and settings that older servers don't know, so only the entries between the
headings are taken; with -t it leaves out schemas and types, which come from the catalog; partitions must be named one by one.

https://www.postgresql.org/docs/current/app-pgdump.html
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any, Final

from psycopg import conninfo, sql

from streamer.errors import SourceError
from streamer.model import Creation, TableName
from streamer.session import Connection, version

SECONDS: Final = 120
_OLDEST: Final = 10
"""The first pg_dump with all options below."""
_OPTIONS: Final = (
    "--schema-only",
    "--no-owner",
    "--no-privileges",
    "--no-publications",
    "--no-subscriptions",
    "--no-tablespaces",
    "--no-password",
    "--lock-wait-timeout=30s",
)
_HEADING: Final = re.compile(
    r"^--\n-- Name: (?P<name>.*?); Type: (?P<type>[A-Z ]+); Schema: (?P<schema>.*?); Owner: .*\n--\n", re.M
)
_TAKEN: Final = {
    "TABLE",
    "SEQUENCE",
    "SEQUENCE OWNED BY",
    "DEFAULT",
    "TABLE ATTACH",
    "CONSTRAINT",
    "CHECK CONSTRAINT",
    "INDEX",
    "INDEX ATTACH",
    "FK CONSTRAINT",
}


def dump_creations(connection: Connection, url: str, tables: Sequence[TableName]) -> list[Creation] | None:
    """Return the tables' definitions, partitions included; None if there is no pg_dump here that is new enough.

    Raises SourceError if it fails.
    """
    program = shutil.which("pg_dump")
    if program is None or _major(program) < max(_OLDEST, version(connection) // 10000):
        return None
    named = [f"--table={_pattern(t)}" for t in (*tables, *_partitions(connection, tables))]
    arguments, environment = _connecting(url)
    command = [program, *_OPTIONS, *named, *arguments]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise SourceError(f"pg_dump was not ready within {SECONDS} s") from None
    if done.returncode != 0:
        raise SourceError(f"pg_dump failed: {next(iter(done.stderr.splitlines()), f'exit code {done.returncode}')}")
    return list(_entries(done.stdout))


def _major(program: str) -> int:
    printed = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"\(PostgreSQL\) (\d+)", printed)
    return int(found[1]) if found else 0


def _pattern(table: TableName) -> str:
    return sql.Identifier(table.schema, table.name).as_string()


def _partitions(connection: Connection, tables: Sequence[TableName]) -> Iterator[TableName]:
    """All partitions of these tables, those between root and leaf as well."""
    if version(connection) >= 100000:
        for schema, name in connection.execute(_PARTITIONS, [[t.schema for t in tables], [t.name for t in tables]]):
            yield TableName(schema, name)


def _connecting(url: str) -> tuple[list[str], dict[str, str]]:
    """What pg_dump needs to connect; secrets go through the environment, because everybody may read arguments."""
    parameters: dict[str, Any] = dict(conninfo.conninfo_to_dict(url))
    environment = dict(os.environ, PGCLIENTENCODING="UTF8")
    if password := parameters.pop("password", None):
        environment["PGPASSWORD"] = str(password)
    return [f"--dbname={conninfo.make_conninfo(**parameters)}"], environment


def _entries(dump: str) -> Iterator[Creation]:
    """The entries of a dump in text format that make tables, with what belongs to them."""
    headings = list(_HEADING.finditer(dump))
    ends = [h.start() for h in headings[1:]] + [len(dump)]
    for heading, end in zip(headings, ends, strict=True):
        kind = heading["type"]
        if kind not in _TAKEN:
            continue
        statement = _without_tail(dump[heading.end() : end])
        what = f"{kind.lower()} {heading['name']}"
        name = TableName(heading["schema"], heading["name"])
        if kind == "TABLE":
            yield Creation("table", name, statement, f"table {name}")
        elif kind == "FK CONSTRAINT":
            yield Creation("foreign key", name, statement, what, required=False)
        else:
            yield Creation("detail", name, statement, what)


def _without_tail(entry: str) -> str:
    """The entry without the settings, comments and psql commands that stand between it and the next."""
    lines = entry.splitlines()
    while lines and (not lines[-1] or lines[-1].startswith(("SET default_", "--", "\\"))):
        lines.pop()
    return "\n".join(lines)


_PARTITIONS: Final = """
WITH RECURSIVE part(oid) AS (
    SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN unnest(%s::text[], %s::text[]) AS wanted(schema, name) ON wanted.schema = n.nspname AND wanted.name = c.relname
    WHERE c.relkind = 'p'
    UNION
    SELECT i.inhrelid FROM pg_inherits i JOIN part ON part.oid = i.inhparent
)
SELECT n.nspname, c.relname FROM part JOIN pg_class c ON c.oid = part.oid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relispartition ORDER BY 1, 2
"""

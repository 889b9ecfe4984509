"""How tables are defined on the source, as `pg_dump` writes it: closer to the original than what the catalog way makes.

Only entries that belong to a target are taken: no triggers, rules, policies or publications. Which of them come after the rows is
told by the catalog (`capture.post_data`). The traps: newer pg_dumps write psql commands (`\\restrict`) and settings that older
servers don't know, so only the entries between the headings are taken; with -t it leaves out schemas and types, which come from the
catalog; partitions must be named one by one.

https://www.postgresql.org/docs/current/app-pgdump.html
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from psycopg import conninfo, sql

from streamer.capture.catalog import PARTITIONED
from streamer.capture.post_data import Object, Selection, partition_roots, read_objects
from streamer.errors import SourceError
from streamer.model import Creation, TableName
from streamer.post_data import Structure
from streamer.session import Connection, version

SECONDS: Final = 120
_OLDEST: Final = 10
"""The first pg_dump with all options below."""
_OLDEST_SERVER: Final = 90200
"""What pg_dump 15 and later take."""
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
_MARKED: Final = re.compile(r"^ALTER TABLE ONLY .* SET \(pg_attver=\d+\);\n", re.MULTILINE)
"""What servers of November 2026 note of each column, and a pg_dump of before takes for an option. No other server knows it."""
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


def dump_structure(connection: Connection, url: str, selection: Selection) -> Structure | None:
    """Return the tables' definitions, partitions included; None if there is no pg_dump here that fits.

    Raises SourceError if it fails.
    """
    tables = selection.tables
    program = shutil.which("pg_dump")
    number = version(connection)
    if program is None or number < _OLDEST_SERVER or _major(program) < max(_OLDEST, number // 10000):
        return None
    partitions = dict(partition_roots(connection, tables)) if number >= PARTITIONED else {}
    relations = {table: table for table in tables} | partitions
    named = [f"--table={_pattern(t)}" for t in relations]
    arguments, environment = _connecting(url)
    command = [program, *_OPTIONS, *named, *arguments]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise SourceError(f"pg_dump was not ready within {SECONDS} s") from None
    if done.returncode != 0:
        raise SourceError(f"pg_dump failed: {next(iter(done.stderr.splitlines()), f'exit code {done.returncode}')}")
    with connection.transaction():
        connection.execute("SET LOCAL search_path = pg_catalog")
        objects = read_objects(connection, relations, selection)
    return _sorted(_entries(done.stdout), objects)


def _major(program: str) -> int:
    printed = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"\(PostgreSQL\) (\d+)", printed)
    return int(found[1]) if found else 0


def _pattern(table: TableName) -> str:
    return sql.Identifier(table.schema, table.name).as_string()


def _connecting(url: str) -> tuple[list[str], dict[str, str]]:
    """What pg_dump needs to connect; secrets go through the environment, because everybody may read arguments."""
    parameters: dict[str, Any] = dict(conninfo.conninfo_to_dict(url))
    environment = dict(os.environ, PGCLIENTENCODING="UTF8")
    if password := parameters.pop("password", None):
        environment["PGPASSWORD"] = str(password)
    return [f"--dbname={conninfo.make_conninfo(**parameters)}"], environment


def _entries(dump: str) -> Iterator[tuple[str, TableName, str]]:
    """The entries of a dump in text format that make tables, with what belongs to them: type, name, statements."""
    dump = _MARKED.sub("", dump)
    headings = list(_HEADING.finditer(dump))
    ends = [h.start() for h in headings[1:]] + [len(dump)]
    for heading, end in zip(headings, ends, strict=True):
        if heading["type"] in _TAKEN:
            yield heading["type"], TableName(heading["schema"], heading["name"]), _without_tail(dump[heading.end() : end])


def _sorted(entries: Iterable[tuple[str, TableName, str]], objects: Sequence[Object]) -> Structure:
    """Tell what comes before the rows from what comes after them."""
    known = {heading: one for one in objects for heading in _headings(one)}
    made = Structure()
    for kind, name, statement in entries:
        one = known.get((kind.removesuffix(" ATTACH").removeprefix("FK ").removeprefix("CHECK "), name))
        if kind == "TABLE":
            made.before.append(Creation("table", name, statement, f"table {name}"))
        elif one is None or one.first:
            made.before.append(Creation("detail", name, statement, f"{kind.lower()} {name.name}"))
        elif one.obstacle:
            made.left_out.append(f"{one.made_by.what}: {one.obstacle}")
        elif kind == "INDEX ATTACH":
            what = f"{one.made_by.what}, as a part of that of the whole"
            made.after.append(replace(one.made_by, kind="attach", name="", statement=statement, what=what))
        else:
            made.after.append(replace(one.made_by, statement=statement))
    return made


def _headings(one: Object) -> Iterator[tuple[str, TableName]]:
    """What a dump may call it, in one line: an index by its name, a constraint together with its table."""
    made = one.made_by
    names = {"INDEX": made.name} if made.kind in ("index", "unique") else {}
    names |= {"CONSTRAINT": f"{made.on.name} {made.name}"} if one.constraint else {}
    for kind, name in names.items():
        yield kind, TableName(made.on.schema, re.sub(r"[\r\n]", " ", name))


def _without_tail(entry: str) -> str:
    """The entry without the settings, comments and psql commands that stand between it and the next: mostly one statement."""
    lines = entry.splitlines()
    while lines and (not lines[-1] or lines[-1].startswith(("SET default_", "--", "\\"))):
        lines.pop()
    return "\n".join(lines).strip().removesuffix(";").replace("\n    ADD CONSTRAINT", " ADD CONSTRAINT", 1)

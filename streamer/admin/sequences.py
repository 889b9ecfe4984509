"""`streamer check` and `streamer setup`, the sequences that a sync keeps in step: are they there, and may we read and set them.

Between sources nothing is kept in step: each draws numbers of its own, and `check_sequences` looks whether they collide.
"""

from __future__ import annotations

from collections.abc import Iterator

from streamer.admin.findings import Finding, error, ok, warning
from streamer.admin.nodes import Say, session
from streamer.admin.printing import counted
from streamer.capture.sequences import Selection, definition, denied, find_sequences
from streamer.config import Config, Sync
from streamer.model import Creation, TableName
from streamer.session import Connection, version
from streamer.sinks.postgres_ddl import create
from streamer.sinks.postgres_sequences import grant, settable
from streamer.sinks.postgres_table import quote, quoted


def selection(sync: Sync) -> Selection:
    """What decides which sequences belong to the sync."""
    return Selection(sync.selects, sync.excludes)


def follows(config: Config, sync: str, target: str) -> bool:
    """Whether the sequences of a target are kept in step."""
    settings = config.syncs[sync]
    return settings.sequences and config.nodes[target].kind == "postgresql" and target not in settings.sources


def judge_sequences(
    config: Config, sync: str, source: str, connection: Connection, target: str, other: Connection
) -> Iterator[Finding]:
    """Yield what keeps the sequences of a target from following. Raises psycopg.Error."""
    found = find_sequences(connection, selection(config.syncs[sync]))
    for sequence in found:
        if not sequence.readable:
            problem = denied(source, sequence.name, connection.info.user)
            yield error(f'sequence "{sequence.name}" on "{source}"', f"role {connection.info.user} may not read it", problem.hint)
    names = [sequence.name for sequence in found if sequence.readable]
    there = settable(other, names)
    for name in names:
        what = f'sequence "{name}" on "{target}"'
        if name not in there:
            yield warning(what, "does not exist; streamer setup creates it", definition(connection, name, version(other)))
        elif not there[name]:
            yield error(what, f"role {other.info.user} may not set it", grant(name, other.info.user))
    yield ok(f'sync "{sync}" to "{target}"', f"keeps {counted(len(found), 'sequence')} in step")


def judge_others(config: Config, sync: str) -> Iterator[Finding]:
    """Yield where `sequences = true` does nothing. Pure."""
    settings = config.syncs[sync]
    if not settings.sequences:
        return
    what = f'sync "{sync}"'
    for target in settings.targets:
        if config.nodes[target].kind != "postgresql":
            yield ok(what, f'"{target}" has no sequences to keep in step: it is {config.nodes[target].kind}')
    if settings.multi_master:
        yield ok(what, f"does not keep sequences in step between {', '.join(settings.sources)}: each draws numbers of its own")
    if not any(follows(config, sync, target) for target in settings.targets):
        yield warning(what, "sequences = true does nothing: no target has sequences that could follow", "remove it")


def create_sequences(config: Config, sync: str, source: str, target: str, say: Say) -> None:
    """Create the sequences that a target lacks. Raises StreamerError."""
    if not follows(config, sync, target):
        return
    with session(config, source) as connection, session(config, target) as other:
        names = [found.name for found in find_sequences(connection, selection(config.syncs[sync])) if found.readable]
        schemas = [
            Creation("schema", TableName(s, s), f"CREATE SCHEMA {quote(s)}", f"schema {quote(s)}")
            for s in sorted({name.schema for name in names})
        ]
        sequences = [Creation("sequence", n, definition(connection, n, version(other)), f"sequence {quoted(n)}") for n in names]
        for line in create(other, target, [*schemas, *sequences]):
            say(f"{target}: {line}")

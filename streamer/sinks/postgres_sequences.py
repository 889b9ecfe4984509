"""The sequences of a PostgreSQL target: those that are behind the source's are set to where these are, in one statement each.

The trap: nothing locks a sequence against nextval, so between looking and setting somebody may draw from it. That is a number which
the source has given already, as a moment before; the statement that sets looks once more, so that the moment is short.

https://www.postgresql.org/docs/current/functions-sequence.html
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import psycopg
from psycopg import sql

from streamer.errors import TargetError
from streamer.model import TableName
from streamer.sequence_ports import SequenceState
from streamer.sequence_session import SequenceSession
from streamer.session import Connection, reason_of
from streamer.sinks.postgres_table import quote, quoted

AT_ONCE: Final = 200
"""Sequences asked in one statement."""


def settable(connection: Connection, names: Sequence[TableName]) -> dict[TableName, bool]:
    """Return those of the sequences that there are, and whether our role may read and set each. Raises psycopg.Error."""
    rows = connection.execute(
        "SELECT n.nspname, c.relname, has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT') "
        "AND has_table_privilege(c.oid, 'UPDATE') "
        "FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
        "WHERE c.relkind = 'S' AND c.relname = ANY (%s)",
        [[name.name for name in names]],
    )
    found = {TableName(schema, name): allowed for schema, name, allowed in rows}
    return {name: found[name] for name in names if name in found}


def grant(name: TableName, role: str) -> str:
    """Return the statement that lets a role set a sequence."""
    return f"GRANT SELECT, UPDATE ON SEQUENCE {quoted(name)} TO {quote(role)}"


class SequenceWriter(SequenceSession):
    """Implements ports.SequenceTarget for one node."""

    def advance(self, states: Sequence[SequenceState]) -> int:
        """Set the sequences that are behind."""
        with self._connected() as connection:
            there = settable(connection, [state.name for state in states])
            problems = [self._missing(state.name) for state in states if state.name not in there]
            problems += [self._forbidden(name, connection.info.user) for name, allowed in there.items() if not allowed]
            moved = 0
            for state in list(self._behind(connection, [state for state in states if there.get(state.name)])):
                try:
                    moved += connection.execute(_advance(state)).rowcount
                except psycopg.DataError as error:
                    problems.append(self._refused(state, error))
        if problems:
            first, more = problems[0], len(problems) - 1
            raise TargetError(first.message + (f" (and {more} more)" if more else ""), first.hint)
        return moved

    def _behind(self, connection: Connection, states: Sequence[SequenceState]) -> Iterator[SequenceState]:
        """Give those of the states that the target has not reached."""
        for start in range(0, len(states), AT_ONCE):
            some = states[start : start + AT_ONCE]
            query = " UNION ALL ".join(f"SELECT {i}, last_value, is_called FROM {quoted(s.name)}" for i, s in enumerate(some))
            rows: list[Any] = connection.execute(query.encode()).fetchall()
            for i, last, called in rows:
                if SequenceState(some[i].name, last, called, some[i].increment).is_behind(some[i]):
                    yield some[i]

    def _missing(self, name: TableName) -> TargetError:
        return TargetError(f'sequence "{name}" does not exist on "{self._node}"', "run: streamer setup, which creates it")

    def _forbidden(self, name: TableName, role: str) -> TargetError:
        return TargetError(f'sequence "{name}" on "{self._node}": role {role} may not set it', grant(name, role))

    def _refused(self, state: SequenceState, error: psycopg.Error) -> TargetError:
        return TargetError(
            f'sequence "{state.name}" on "{self._node}" cannot follow to {state.last}: {reason_of(error)}',
            f"there: ALTER SEQUENCE {quoted(state.name)} with the MINVALUE and MAXVALUE of the source's",
        )


def _advance(state: SequenceState) -> sql.Composed:
    """The statement that sets a sequence if it is still behind."""
    name, place = sql.Literal(quoted(state.name)), sql.Identifier(state.name.schema, state.name.name)
    following = sql.SQL("last_value::numeric + CASE WHEN is_called THEN {} ELSE 0 END").format(sql.Literal(state.increment))
    behind = sql.SQL("{} > {}" if state.increment < 0 else "{} < {}").format(following, sql.Literal(state.next))
    return sql.SQL("SELECT setval({}::regclass, {}, {}) FROM {} WHERE {}").format(name, state.last, state.called, place, behind)

"""The tables of an SQLite connection, and what it says of rows that it does not take."""

from __future__ import annotations

import sqlite3

from streamer.model import EdgeName, Relation, TableName
from streamer.sinks.quarantine_table import QuarantineTable
from streamer.sinks.sqlite_ddl import read_target, refuse_clashes
from streamer.sinks.sqlite_plan import Plan
from streamer.sinks.unrepresentable import Replacements

REFUSED = (sqlite3.IntegrityError, sqlite3.DataError)
"""What SQLite raises for a row that it does not take."""


def refusal(error: Exception) -> str | None:
    """Return why SQLite did not take a row, if that is what the error says."""
    return str(error) if isinstance(error, REFUSED) else None


def quarantine_table(edge: EdgeName, connection: sqlite3.Connection) -> QuarantineTable:
    """Return what keeps the edge's quarantine in the file."""
    return QuarantineTable(edge, lambda statement, parameters: connection.execute(statement, parameters).fetchall())


class SqliteTables:
    """The tables of one connection; keeps a plan for each relation."""

    def __init__(self, connection: sqlite3.Connection, node: str, replacements: Replacements) -> None:
        self._connection = connection
        self._node = node
        self._replacements = replacements
        self._plans: dict[Relation, Plan] = {}
        self._tables: set[TableName] = set()

    def of(self, relation: Relation) -> Plan:
        """Return the table of a relation. Raises SchemaError, sqlite3.Error."""
        plan = self._plans.get(relation)
        if plan is None:
            self._tables.add(relation.table)
            refuse_clashes(self._tables)
            target = read_target(self._connection, self._node, relation.table)
            plan = self._plans[relation] = Plan(self._connection, relation, target, self._replacements)
        return plan

"""Many rows into one table of MySQL or MariaDB: LOAD DATA LOCAL where the server allows it, else INSERTs of many rows.

The trap: LOAD DATA LOCAL alters or leaves out a row that does not fit, and goes on. If it says that it did anything but write every
row as it was, its work is undone, and INSERT, which is strict, has the last word.

https://dev.mysql.com/doc/refman/8.4/en/load-data.html#load-data-error-handling
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from streamer.errors import ApplyError
from streamer.model import Value
from streamer.sinks.mysql_fields import Fields
from streamer.sinks.mysql_session import Connection
from streamer.sinks.mysql_types import Engine
from streamer.sinks.unrepresentable import Replacements

FEW: Final = 16
"""Rows for which neither a file nor a temporary table pays."""
FILE_ROWS: Final = 50_000
STATEMENT_BYTES: Final = 1 << 20
"""How long an INSERT of many rows may be."""
_SERVER: Final = "SELECT version(), @@local_infile, @@max_allowed_packet"


@dataclass(frozen=True, slots=True)
class Server:
    """What decides how rows are sent to a server."""

    engine: Engine
    local_infile: bool
    #: bytes that a statement may have
    packet: int

    @classmethod
    def of(cls, connection: Connection) -> Server:
        """Ask the server. Raises pymysql.MySQLError."""
        ((version, local_infile, packet),) = connection.rows(_SERVER)
        return cls(Engine.of(version), bool(local_infile), int(packet))


class Bulk:
    """Fills tables through one connection, inside a transaction."""

    def __init__(self, connection: Connection, server: Server, replacements: Replacements) -> None:
        self._connection = connection
        self._server = server
        self._replacements = replacements

    def fill(self, table: str, fields: Fields, rows: Sequence[Sequence[Value]]) -> int:
        """Write the rows into a table, named in SQL; return how many. Raises pymysql.MySQLError, ApplyError."""
        if not self._server.local_infile or len(rows) < FEW:
            return self._insert(table, fields, rows)
        parts = (rows[start : start + FILE_ROWS] for start in range(0, len(rows), FILE_ROWS))
        return sum(self._load(table, fields, part) for part in parts)

    def _load(self, table: str, fields: Fields, rows: Sequence[Sequence[Value]]) -> int:
        mark = self._replacements.mark()
        if self.load_file(table, fields, fields.file(rows), len(rows)):
            return len(rows)
        self._replacements.back_to(mark)
        return self._insert(table, fields, rows)

    def load_file(self, table: str, fields: Fields, file: Iterable[bytes], rows: int) -> bool:
        """Load a file of so many rows; False, and nothing done, if the server did not take all of them as they are."""
        self._connection.run("SAVEPOINT streamer_file")
        if self._connection.load(fields.load_statement(table), file) == (rows, 0):
            return True
        self._connection.run("ROLLBACK TO SAVEPOINT streamer_file")
        return False

    def _insert(self, table: str, fields: Fields, rows: Sequence[Sequence[Value]]) -> int:
        head = f"INSERT INTO {table} ({fields.columns}) VALUES "
        longest = min(STATEMENT_BYTES, self._server.packet // 2)
        return sum(self.run(head + values, table) for values in _joined(fields.literals(rows), longest))

    def run(self, statement: str, table: str) -> int:
        """Execute a statement that holds literals; return how many rows it found. Raises ApplyError if it is too long."""
        if 4 * len(statement) > self._server.packet and (size := len(statement.encode())) >= self._server.packet:
            raise ApplyError(
                f"table {table}: a row takes a statement of {size} bytes, the server takes {self._server.packet}",
                "there: SET GLOBAL max_allowed_packet = 1073741824, and the same in its configuration",
            )
        return self._connection.run(statement)


def _joined(rows: Iterable[str], longest: int) -> Iterator[str]:
    """Several rows in SQL as one, of about `longest` characters, or of one row."""
    gathered: list[str] = []
    size = 0
    for row in rows:
        if gathered and size + len(row) > longest:
            yield ",".join(gathered)
            gathered, size = [], 0
        gathered.append(row)
        size += len(row)
    if gathered:
        yield ",".join(gathered)

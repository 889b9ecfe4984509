"""Many small transactions in one round trip: a procedure in the session's temporary schema runs their statements and commits.

It is written here from the statements that the relations need, each a branch with a number, and gets the numbers of a batch and
the values for their placeholders. Where a statement does not find what it needs, the procedure undoes the transaction it is in and
ends, and says how many it has committed. Sending the same statements one by one costs six times the time here and a little more
there, and what was sent ahead could only be stopped by an error.

The traps: every placeholder that is not text needs a cast, because the values are elements of a text array; and the names of the
procedure's variables must not be those of anybody's columns.

https://www.postgresql.org/docs/current/plpgsql-transactions.html
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

import psycopg
from psycopg import sql
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus, Format
from psycopg.pq.abc import PGresult

from streamer.ports import Written
from streamer.session import Connection, cells

SINCE: Final = 110000  # COMMIT in procedures: version 11
COMMIT: Final = 0
"""What stands for the end of a transaction among the numbers of statements."""

_PLACEHOLDER: Final = re.compile(r"%[s%]")
_INT4, _INT4_ARRAY, _TEXT, _TEXT_ARRAY = 23, 1007, 25, 1009
_pack: Final = struct.Struct(">i").pack
_NULL: Final = _pack(-1)
_HEADER: Final = struct.Struct(">iiiii")

_CALL: Final = b"CALL pg_temp.streamer_apply($1, $2, 0, NULL, NULL)"
_PROCEDURE: Final = """
CREATE OR REPLACE PROCEDURE pg_temp.streamer_apply(streamer_steps integer[], streamer_given text[], INOUT streamer_done integer,
                                                   INOUT streamer_written text, INOUT streamer_clock text)
LANGUAGE plpgsql AS {body}
"""
# the variable's copy of the array has its elements apart; those of a parameter would be searched from the beginning every time
_BODY: Final = """
DECLARE
    streamer_values text[] := streamer_given;
    streamer_at integer := 0;
    streamer_step integer;
BEGIN
    streamer_done := 0;
    <<streamer_run>>
    FOREACH streamer_step IN ARRAY streamer_steps LOOP
        IF streamer_step = 0 THEN
            COMMIT;
            streamer_done := streamer_done + 1;
        ELSE
            {branches}
        END IF;
    END LOOP;
    streamer_written := {written};
    streamer_clock := clock_timestamp()::text;
END
"""
_GIVE_UP: Final = "IF {condition} THEN ROLLBACK; EXIT streamer_run; END IF;"


class Answer(NamedTuple):
    """What a batch did."""

    #: transactions committed
    done: int
    #: how far the target's WAL is written; None if the server cannot tell
    written: str | None
    #: the target's time
    clock: str


class Batch:
    """Transactions that are being gathered, as the server receives arrays: each element after its length."""

    def __init__(self) -> None:
        #: what each of them will have done
        self.written: list[Written] = []
        self._steps: list[int] = []
        #: of the transaction that is being added
        self._values: list[str | None] = []
        self._packed: list[bytes] = []
        self._count = 0
        #: of the values, in bytes
        self.size = 0

    def add(self, number: int, values: Sequence[str | None]) -> None:
        """Add a statement by its number, with the values for its placeholders."""
        self._steps.append(number)
        self._values += values

    def commit(self, written: Written) -> None:
        """End a transaction, which will have done so much."""
        self.written.append(written)
        self._steps.append(COMMIT)
        # at once, not when the batch is sent: the server has something else to do meanwhile
        packed = b"".join([_NULL if v is None else _pack(len(text := v.encode())) + text for v in self._values])
        self._packed.append(packed)
        self._count += len(self._values)
        self.size += len(packed)
        self._values = []

    def arrays(self) -> tuple[bytes, bytes]:
        """The statements and the values of whole transactions."""
        steps = [4] * (2 * len(self._steps))
        steps[1::2] = self._steps
        return (
            _HEADER.pack(1, 0, _INT4, len(self._steps), 1) + struct.pack(f">{len(steps)}i", *steps),
            b"".join([_HEADER.pack(1, 1, _TEXT, self._count, 1), *self._packed]),
        )


class Procedure:
    """The procedure on one connection; `written` is the expression for how far the WAL is written, as text."""

    def __init__(self, connection: Connection, written: str) -> None:
        self._connection = connection
        self._pg = connection.pgconn
        self._written = written
        self._numbers: dict[str, int] = {}
        self._branches: list[str] = []
        self._made = 0

    def number(self, statement: str, *, finds: bool | None = None) -> int:
        """Return the statement's number in a batch; `finds` says whether a row must be found, or must not (None: either will do).

        Placeholders are psycopg's, literal % are doubled.
        """
        number = self._numbers.get(statement)
        if number is None:
            self._branches.append(_branch(statement, finds))
            number = self._numbers[statement] = len(self._branches)
        return number

    def send(self, batch: Batch) -> None:
        """Have the server begin with the batch; until `receive` nothing else may be asked of the connection."""
        if self._made < len(self._branches):
            self._make()
        self._pg.send_query_params(_CALL, batch.arrays(), (_INT4_ARRAY, _TEXT_ARRAY), (Format.BINARY, Format.BINARY))
        self._connection.send_all()

    def receive(self) -> Answer:
        """Wait until the batch is done. Raises psycopg.Error, with whole transactions committed before it."""
        answer: PGresult | None = None
        while (result := self._connection.next_result()) is not None:
            answer = result
        if answer is None or answer.status != ExecStatus.TUPLES_OK:
            raise psycopg.OperationalError("the connection is lost") if answer is None else error_from_result(answer)
        ((done, written, clock),) = cells(answer)
        return Answer(int(done or 0), written, clock or "")

    def _make(self) -> None:
        """Write the procedure."""
        body = _BODY.format(branches=_choice(self._branches, 1), written=self._written)
        literal = sql.Literal(body).as_string(self._connection).strip()
        self._connection.execute(_PROCEDURE.format(body=literal).encode())
        self._made = len(self._branches)


def _branch(statement: str, finds: bool | None) -> str:
    count = 0

    def placed(match: re.Match[str]) -> str:
        nonlocal count
        if match[0] == "%%":
            return "%"
        count += 1
        return f"streamer_values[streamer_at + {count}]"

    text = _PLACEHOLDER.sub(placed, statement)
    check = "" if finds is None else _GIVE_UP.format(condition="NOT FOUND" if finds else "FOUND")
    return f"{text}; {check} streamer_at := streamer_at + {count};"


def _choice(branches: Sequence[str], first: int) -> str:
    """The branches, numbered from `first` on, where the right one is found by halving."""
    if len(branches) == 1:
        return branches[0]
    half = len(branches) // 2
    below, above = _choice(branches[:half], first), _choice(branches[half:], first + half)
    return f"IF streamer_step < {first + half} THEN {below} ELSE {above} END IF;"

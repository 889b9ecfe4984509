"""What becomes of a value that the target's column cannot hold: an error, NULL, or the nearest value that it can.

A converter raises Unrepresentable; the sink, which knows the row, hands it to its `Replacements`, and gets what is written instead,
or the error. What was replaced is counted for ports.Written and logged, by table and column, with the key of one row. The trap: a
replaced key would make another row of this one, so the columns of a key are never replaced.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, TypeAlias

import structlog

from streamer.errors import ApplyError
from streamer.model import EdgeName, OnUnrepresentable, TableName

Written: TypeAlias = str | bytes | int | float
"""A value as a driver takes it."""

COMPLAIN_SECONDS: Final = 10.0
"""How often at most the log tells of one column."""
_SHOWN: Final = 60  # characters of a value in messages


class Unrepresentable(ValueError):
    """The column cannot hold `value`; `reason` says why, and `nearest` is what comes closest, None if nothing does."""

    def __init__(self, value: str, reason: str, nearest: Written | None = None) -> None:
        self.value = value
        self.reason = reason
        self.nearest = nearest
        super().__init__(f"'{shown(value)}' {reason}")


class Replacements:
    """What a sink does with the values that its target cannot hold, and how many it has replaced. May be shared by threads.

    `policy` tells what holds for a table; without it every such value is an error.
    """

    def __init__(self, edge: EdgeName, policy: Callable[[TableName], OnUnrepresentable] | None = None) -> None:
        self._node = edge.target
        self._policy = policy
        self._log = structlog.get_logger().bind(sync=edge.sync, source=edge.source, target=edge.target)
        self._lock = threading.Lock()
        self._count = 0
        self._told = 0
        #: when the log may tell of a column again, and how many values it has not told of
        self._quiet: dict[tuple[TableName, str], tuple[float, int]] = {}

    def replace(
        self,
        table: TableName,
        column: str,
        key: Callable[[], str],
        problem: Unrepresentable,
        *,
        nullable: bool,
        in_key: bool = False,
    ) -> Written | None:
        """Return what is written instead of the value, None for NULL; `key` tells the row, for people.

        Raises ApplyError where the policy is "error", or nothing can take the value's place.
        """
        policy: OnUnrepresentable = "error" if self._policy is None else self._policy(table)
        refused = self._refusal(policy, problem, nullable=nullable, in_key=in_key)
        if refused is not None:
            what, remedy = refused
            raise ApplyError(
                f'table "{table}", column "{column}", row with {key()}: {problem}, which "{self._node}" cannot hold{what}', remedy
            )
        value = None if policy == "null" else problem.nearest
        self._note(table, column, key, problem, value)
        return value

    def _refusal(
        self, policy: OnUnrepresentable, problem: Unrepresentable, *, nullable: bool, in_key: bool
    ) -> tuple[str, str] | None:
        """What more an error says, and its remedy; None if there is something to write instead."""
        widen = "give the column a type that holds it (see docs/types.md)"
        if in_key:
            return "; a key is never replaced", f"{widen}, or correct the row on the source"
        if policy == "null" and not nullable:
            return '; on_unrepresentable is "null", and the column is NOT NULL', f'{widen}, let it be NULL, or set "clamp"'
        if policy == "clamp" and problem.nearest is None:
            return '; on_unrepresentable is "clamp", and nothing comes near it', f'{widen}, or set "null"'
        if policy == "error":
            return "", f'{widen}, correct the row on the source, or set on_unrepresentable = "null" or "clamp" for the table'
        return None

    def _note(self, table: TableName, column: str, key: Callable[[], str], problem: Unrepresentable, value: Written | None) -> None:
        now = time.monotonic()
        with self._lock:
            self._count += 1
            until, silent = self._quiet.get((table, column), (0.0, 0))
            if now < until:
                self._quiet[table, column] = (until, silent + 1)
                return
            self._quiet[table, column] = (now + COMPLAIN_SECONDS, 0)
        self._log.warning(
            "value_replaced",
            table=str(table),
            column=column,
            key=key(),
            value=shown(problem.value),
            reason=problem.reason,
            written="NULL" if value is None else shown(str(value)),
            others=silent,
        )

    # -- the count ---------------------------------------------------------------------------------------------------------------

    def mark(self) -> int:
        """Return where the count stands, for `back_to`."""
        return self._count

    def back_to(self, mark: int) -> None:
        """Forget what was counted since `mark`: it was undone, and will be written again."""
        with self._lock:
            self._count = mark

    def take(self) -> int:
        """Return how many values were replaced since the last call; copied rows count with the next group."""
        with self._lock:
            new = self._count - self._told
            self._told = self._count
        return new


def shown(text: str) -> str:
    """A value for people, cut where it is long."""
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"

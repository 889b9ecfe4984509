"""Sides of a comparison whose rows are made into one form here: what the source's rows become, and what the target's are.

docs/types.md tells what an engine makes of a value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from streamer.capture.catalog import read_as
from streamer.capture.definition_types import quote
from streamer.model import ColumnDefinition, EdgeName
from streamer.session import Connection
from streamer.verify.comparison import Pair
from streamer.verify.foreign_values import Alike
from streamer.verify.parts import Side
from streamer.verify.plan import Plan
from streamer.verify.postgres_rows import Reading
from streamer.verify.streamed_rows import Made, Make, PostgresScan, StreamedSource

INTEGERS: Final = {20: "bigint", 21: "smallint", 23: "integer"}


def streamed_pair(
    edge: EdgeName,
    source: Connection,
    plan: Plan,
    values: Sequence[Callable[[str], object]],
    target: Side,
    ranged: ColumnDefinition | None,
) -> Pair:
    """Return a pair of which `values` makes what the target should hold; `ranged` is the column that the target is cut by."""
    first = ranged if ranged is not None and ranged.type_oid in INTEGERS else None
    side = _source_side(edge, source, plan, _source_make(plan, values), "" if first is None else first.name)
    return Pair(side, target, plan.whole, first is not None)


def _source_side(edge: EdgeName, connection: Connection, plan: Plan, make: Make, ranged: str) -> StreamedSource:
    columns = plan.columns if plan.cut is None else plan.table.travelling
    reading = Reading(
        plan.table.table,
        tuple(read_as(connection, c) for c in columns),
        tuple(map(quote, plan.key)),
        quote(ranged) if ranged else "",
        INTEGERS[plan.columns[plan.places[0]].type_oid] if ranged else "",
        plan.where,
        plan.table.partitioned,
    )
    return StreamedSource(PostgresScan(edge.source, connection, reading), make)


def _source_make(plan: Plan, values: Sequence[Callable[[str], object]]) -> Make:
    places, cut = plan.places, plan.cut

    def make(row: Sequence[Any]) -> Made | None:
        made: Sequence[Any] | None = row if cut is None else cut.row(tuple(row))
        if made is None:
            return None
        compared = tuple([None if v is None else value(v) for v, value in zip(made, values, strict=True)])
        return Made(tuple(_as_text(compared[i]) for i in places), compared, tuple(made))

    return make


def target_make(plan: Plan, alike: Sequence[Alike]) -> Make:
    """Return what brings the target's rows into the form in which they are compared."""
    places = plan.places

    def make(row: Sequence[Any]) -> Made:
        compared = tuple([None if v is None else one(v) for v, one in zip(row, alike, strict=True)])
        return Made(tuple(_as_text(compared[i]) for i in places), compared)

    return make


def _as_text(value: object) -> str | None:
    if value is None:
        return None
    return f"\\x{value.hex()}" if isinstance(value, bytes) else str(value)

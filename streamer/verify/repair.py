"""Mends the rows of a target that differ: what the source has of them is written, by the sink that writes the edge.

So a repaired row is converted, tagged with its origin and held against the same rules as any other. The edge must be at rest
meanwhile, because one writer at a time is what keeps its progress true.

The trap: a row may have changed on the source since it was found to differ, and that change is on its way; written now, its insert
would find a row that is there. Such a row is left alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import Final

from streamer.assembly import make_sink
from streamer.config import Config
from streamer.errors import SchemaError, SlotError, TakenError, UsageError
from streamer.model import UNCHANGED, Change, Column, EdgeName, Group, Kind, Origin, Relation, Row
from streamer.ports import Progress, Sink
from streamer.sinks.postgres_types import BOOLEAN
from streamer.verify.candidates import Difference
from streamer.verify.pairs import Compared

SECONDS: Final = 15.0
"""How long to wait for the daemon to let go of an edge."""
_BOOLEANS: Final = {"1": "t", "0": "f"}


def require_one_source(config: Config, sync: str) -> None:
    """Raise UsageError for a sync in which nobody but its users can say which row is right."""
    if config.syncs[sync].multi_master:
        raise UsageError(
            f'sync "{sync}" has several sources: which of two rows is right cannot be told',
            "write the right one again on its node, for example UPDATE … SET id = id WHERE id = …: the later write wins everywhere",
        )


def repair(config: Config, edge: EdgeName, compared: Compared, differences: Sequence[Difference]) -> int:
    """Write the source's rows; return how many. The others have changed on the source since.

    Raises SchemaError for a table without a key, TakenError if the edge is not at rest, StreamerError if the target refuses a row.
    """
    if not compared.key:
        raise SchemaError(
            f'table "{compared.table}" has no key: its rows cannot be mended one by one',
            'set copy = "always" and start streamer run again: the table is copied whole',
        )
    with _opened(config, edge) as (sink, progress):
        found = compared.pair.source.fetch([difference.key for difference in differences])
        changes = [
            _change(compared, difference, row)
            for difference in differences
            for seen, row in [found.get(difference.key, (None, ()))]
            if seen == difference.source
        ]
        if changes:
            origin = Origin(edge.source, progress.position, datetime.now(UTC))
            group = Group(origin, changes, progress.position, True, 1, progress.seen, progress.position)
            sink.write([group], lambda: False)
    return len(changes)


@contextmanager
def _opened(config: Config, edge: EdgeName) -> Iterator[tuple[Sink, Progress]]:
    """The sink of the edge, once nobody else has it."""
    deadline = time.monotonic() + SECONDS
    while True:
        with closing(make_sink(config, edge)) as sink:
            try:
                progress = sink.open()
            except TakenError:
                if time.monotonic() > deadline:
                    raise
            else:
                if progress is None:
                    raise SlotError(f"edge {edge} has never been written", "run: streamer run")
                yield sink, progress
                return
        time.sleep(0.1)


def _change(compared: Compared, difference: Difference, row: Row) -> Change:
    relation = compared.relation
    if difference.source is None:
        return Kind.DELETE, relation, _key_row(relation, compared.key, difference), None
    return (Kind.INSERT if difference.kind == "missing" else Kind.UPDATE), relation, None, row


def _key_row(relation: Relation, key: Sequence[str], difference: Difference) -> Row:
    """The old row as a change has it that carries the key alone."""
    values = dict(zip(key, difference.key, strict=True))

    def value(column: Column) -> str | None:
        text = values[column.name]
        return _BOOLEANS.get(text or "", text) if column.type_oid == BOOLEAN else text

    return tuple([value(c) if c.identity else UNCHANGED for c in relation.columns])

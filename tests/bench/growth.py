"""How the daemon's time and memory grow: with the number of tables, of columns, of a transaction's rows, and of syncs.

Every point is a drain: transactions that UPDATE rows of tables in turn are made while the daemon is stopped; then a new one is
started, and counted from its first look at a slot to the last row's arrival. All points of an axis write about as many values, each
row once. The trap: a row of 200 columns is twenty of 10, so what is compared is the time for a value, not for a row.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from tests.bench.contenders import Daemon
from tests.bench.databases import made_from, moment, must_be_equal, settle
from tests.bench.report import markdown
from tests.processes import cpu_seconds, peak_memory
from tests.servers import Database, PostgresServer

GOAL: Final = 1.5  # of the best case of the axis


@dataclass(frozen=True, slots=True)
class Shape:
    """What is written. Tables are shared out among the syncs."""

    rows: int
    tables: int = 10
    columns: int = 10
    per_transaction: int = 100
    syncs: int = 1

    @property
    def values(self) -> int:
        return self.rows * self.columns

    @property
    def names(self) -> list[str]:
        """The tables, each named after its sync first."""
        return [f"s{n % self.syncs}_t{n}" for n in range(self.tables)]


@dataclass(frozen=True, slots=True)
class Point:
    """One run of one shape, which is a point on the axis `axis`: seconds, the daemon's CPU seconds, and its peak in MiB."""

    axis: str
    run: int
    shape: Shape
    seconds: float
    cpu: float
    memory: int

    @property
    def at(self) -> int:
        """Where on the axis it is."""
        return int(getattr(self.shape, AXES[self.axis]))


AXES: Final = {"tables": "tables", "columns": "columns", "rows of a transaction": "per_transaction", "syncs": "syncs"}


WARM_UP: Final = Shape(1_000)
_FULL: Final = Shape(100_000)
_SIZES: Final = [10**n for n in range(7)]
#: the points of every axis
SMOKE: Final = {"syncs": [replace(WARM_UP, columns=50, syncs=2)]}
FULL: Final = {
    "tables": [replace(_FULL, tables=n) for n in (10, 100, 1000)],
    "columns": [replace(_FULL, columns=n, rows=_FULL.values // n) for n in (10, 50, 200)],
    "rows of a transaction": [replace(_FULL, tables=1, per_transaction=n, rows=max(_FULL.rows, n)) for n in _SIZES],
    "syncs": [replace(_FULL, tables=8, syncs=n) for n in (1, 2, 4, 8)],
}


def measure(source: PostgresServer, target: PostgresServer, axes: Mapping[str, Sequence[Shape]], runs: int) -> list[Point]:
    """Measure every point, after a small one that warms the machine up."""
    points = []
    with made_from("template1", source) as a, made_from("template1", target) as b:
        _drain(a, b, WARM_UP)
    for run, axis in ((run, axis) for run in range(1, runs + 1) for axis in axes):
        for shape in axes[axis]:
            with made_from("template1", source) as a, made_from("template1", target) as b:
                point = Point(axis, run, shape, *_drain(a, b, shape))
            print(
                f"run {run}, {point.at} {axis}: {point.seconds:.2f} s, CPU {point.cpu:.2f} s, {point.memory} MiB", file=sys.stderr
            )
            points.append(point)
    return points


def _drain(source: Database, target: Database, shape: Shape) -> tuple[float, float, int]:
    """Seconds, CPU seconds and peak memory of the daemon for the work of this shape."""
    marks = [f"s{n}_mark" for n in range(shape.syncs)]
    for database, filled in ((source, True), (target, False)):
        _make_tables(database, shape, marks, filled)
    syncs = {"bench" if n == 0 else f"bench{n}": f"public.s{n}_*" for n in range(shape.syncs)}
    with closing(Daemon({"a": source.url, "b": target.url}, {"sources": ["a"], "targets": ["b"]}, "pgoutput", syncs)) as daemon:
        with closing(target.connect()) as session, closing(source.connect()) as looking:
            seen = " + ".join(f"(SELECT count(*) FROM {mark})" for mark in marks)

            def arrived(rows: int) -> bool:
                return session.execute(f"SELECT {seen}".encode()).fetchone() == (rows * shape.syncs,)

            def is_read() -> bool:
                return looking.execute("SELECT bool_and(active) FROM pg_replication_slots").fetchone() == (True,)

            daemon.start()
            moment(daemon, is_read, "the copy")
            _mark(source, marks)
            moment(daemon, lambda: arrived(1), "the stream to begin")
            daemon.stop()
            _write(source, shape)
            _mark(source, marks)
            settle([source, target])
            daemon.start()
            (pid,) = daemon.processes()
            start = moment(daemon, is_read, "the slots to be read")
            spent = cpu_seconds(pid)
            end = moment(daemon, lambda: arrived(2), "the last row to arrive")
            figures = end - start, cpu_seconds(pid) - spent, peak_memory(pid)
        must_be_equal(source, target, shape.names)
        return figures


def _make_tables(database: Database, shape: Shape, marks: Sequence[str], filled: bool) -> None:
    """A table has a key, a number, and texts of ten characters."""
    columns = ["id int PRIMARY KEY", "n int NOT NULL", *(f"c{i} text NOT NULL" for i in range(shape.columns - 2))]
    values = ", ".join(["i", "0", *(f"'value {i:04}'" for i in range(shape.columns - 2))])
    each = shape.rows // shape.tables
    statements = [f"CREATE TABLE {mark} (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY)" for mark in marks]
    for table in shape.names:
        statements.append(f"CREATE TABLE {table} ({', '.join(columns)})")
        if filled:
            statements.append(f"INSERT INTO {table} SELECT {values} FROM generate_series(0, {each - 1}) i")
    database.execute("; ".join(statements))


def _mark(source: Database, marks: Sequence[str]) -> None:
    for mark in marks:
        source.execute(f"INSERT INTO {mark} DEFAULT VALUES")


def _write(source: Database, shape: Shape) -> None:
    """Update every row once, so many in a transaction, the tables in turn."""
    size, tables = shape.per_transaction, shape.tables
    statement = f"""
        DO $$
        DECLARE tables text[] := '{{{",".join(shape.names)}}}';
        BEGIN
            FOR i IN 0 .. {shape.rows // size - 1} LOOP
                EXECUTE format('UPDATE %I SET n = n + 1 WHERE id >= %s AND id < %s',
                               tables[i % {tables} + 1], i / {tables} * {size}, (i / {tables} + 1) * {size});
                COMMIT;
            END LOOP;
        END $$"""
    with closing(source.connect()) as session:
        session.execute("SET synchronous_commit = off")
        session.execute(statement.encode())


def table(points: Sequence[Point]) -> str:
    """The medians in Markdown; the time for a value is compared with the best of its axis."""
    rows = []
    for axis in dict.fromkeys(p.axis for p in points):
        found = medians([p for p in points if p.axis == axis])
        for name in ("seconds", "cpu"):
            best = min(times[name] for times in found.values())
            for times in found.values():
                times[f"{name}_ratio"] = times[name] / best
        for at, m in found.items():
            shown = [
                f"{m['seconds']:.2f} ({m['seconds_ratio']:.2f})",
                f"{m['cpu']:.2f} ({m['cpu_ratio']:.2f})",
                f"{m['memory']:.0f}",
            ]
            rows.append([f"{at:,} {axis}", f"{m['row']:.1f}", *shown])
    return markdown(["", "µs a row", "µs a value (to the best)", "CPU µs of the daemon a value (to the best)", "peak MiB"], rows)


def medians(points: Sequence[Point]) -> dict[int, dict[str, float]]:
    """The points of one axis by their place: µs a row and a value, CPU µs a value, peak memory."""
    found: dict[int, dict[str, float]] = {}
    for at in sorted({p.at for p in points}):
        here = [p for p in points if p.at == at]
        found[at] = {
            "row": statistics.median(p.seconds / p.shape.rows for p in here) * 1e6,
            "seconds": statistics.median(p.seconds / p.shape.values for p in here) * 1e6,
            "cpu": statistics.median(p.cpu / p.shape.values for p in here) * 1e6,
            "memory": statistics.median(p.memory for p in here),
        }
    return found


def document(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Every single figure, for JSON; `of` reads it."""
    return [asdict(p) for p in points]


def of(document: Sequence[Mapping[str, Any]]) -> list[Point]:
    """Return the points that a document was made of."""
    return [Point(**{**p, "shape": Shape(**p["shape"])}) for p in document]

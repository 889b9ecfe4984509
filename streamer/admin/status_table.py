"""What `streamer status` prints: one line that says it all, the edges, and below them runs and what is wrong; or JSON."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from streamer.admin.printing import counted, on_terminal, print_table
from streamer.admin.status import NOT_RUNNING, Line, Severity, Status
from streamer.post_data import REMEDY
from streamer.report import CONTINUOUS, State

WATCH_SECONDS: Final = 2.0
RESUME: Final = "streamer resume {sync}"
_CLEAR: Final = "\x1b[H\x1b[2J"


def print_status(found: Status, *, as_json: bool) -> None:
    """Print how everything stands."""
    if as_json:
        edges, nodes = [asdict(line) for line in found.edges], [asdict(node) for node in found.nodes]
        summary = {"severity": found.severity.name.lower(), "running": found.running}
        document = {**summary, "edges": edges, "nodes": nodes, "deltas": list(found.deltas)}
        print(json.dumps(document, indent=2, ensure_ascii=False))
        return
    print(_summary(found))
    headers = (
        "sync",
        "source",
        "target",
        "state",
        "position",
        "lag bytes",
        "lag s",
        "last applied",
        "inserted",
        "updated",
        "deleted",
    )
    spare = ("copied", "deleted", "updated", "inserted", "last applied", "position")
    print_table((*headers, "copied"), [_cells(line) for line in found.edges], spare=spare)
    for line in _below(found):
        print(line)


def watch(look: Callable[[], Status], *, as_json: bool) -> None:
    """Print it again and again, until interrupted."""
    while True:
        found = look()
        if on_terminal():
            print(_CLEAR, end="")
        if not as_json:
            print(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC")
        print_status(found, as_json=as_json)
        sys.stdout.flush()
        time.sleep(WATCH_SECONDS)


def _summary(found: Status) -> str:
    """The line that a monitoring system shows."""
    states = Counter(str(line.state) for line in found.edges)
    parts = [f"{number} of {counted(len(found.edges), 'edge')} {state}" for state, number in states.most_common()]
    worst = [node.finding for node in found.nodes if node.severity is Severity.CRITICAL]
    return f"{found.severity.name}: {', '.join([*parts, *worst])}"


def _below(found: Status) -> Iterator[str]:
    if not found.running:
        yield "no daemon answers; start it: streamer run"
    runs = (line for line in found.edges if line.schedule != CONTINUOUS and line.state != NOT_RUNNING)
    yield from dict.fromkeys(map(_told_run, runs))
    for line in found.edges:
        yield from (f"{line.sync}: {line.source} -> {line.target}: {told}" for told in _of_edge(line))
    for delta in found.deltas:
        rows = counted(delta["rows"], "change") + (" or more" if delta["more"] else "")
        yield f"{delta['sync']}: {delta['source']}: {delta['table']}: {rows} captured and not on every target yet"
    yield from dict.fromkeys(
        f"{line.sync}: {line.error}" + (f"; {line.remedy}" if line.remedy else "") for line in found.edges if line.error
    )
    for node in found.nodes:
        yield f"{node.node}: {node.finding}" + (f"; {node.remedy}" if node.remedy else "")


def _of_edge(line: Line) -> Iterator[str]:
    if line.state == State.PAUSED:
        yield f"its source keeps what it has not read; to go on: {RESUME.format(sync=line.sync)}"
    for copy in line.copy:
        yield f"{copy['table']}: {_copy(copy)}"
    for copy in line.full_copies:
        rows, at = counted(copy["rows"], "row"), _moment(copy["at"])
        yield f"{copy['table']} copied whole {at}, {rows}"
    if line.consistent_from is not None:
        yield f"consistent from {line.consistent_from}; until then tables are as of different times"
    if line.post_data is not None:
        yield from _post_data(line.post_data)
    if line.sequences is not None:
        yield _sequences(line.sequences)
    if line.proof is not None:
        yield from proof(line.sync, line.proof)
    if line.quarantined:
        held = counted(line.quarantined, "change")
        yield f"{held} in quarantine; see: streamer quarantine list"


def _copy(copy: Mapping[str, Any]) -> str:
    """How far the copy of a table is."""
    parts = [f"{copy['rows']:,} of about {copy['total']:,} rows copied" if copy["total"] else f"{copy['rows']:,} rows copied"]
    if copy["total_ranges"]:
        parts.append(f"{copy['ranges']:,} of about {counted(copy['total_ranges'], 'range')}")
    parts += [f"{copy['bytes'] / 1e6:,.0f} of about {copy['total_bytes'] / 1e6:,.0f} MB", f"{copy['rate']:,.0f} rows/s"]
    if copy["remaining"] is not None:
        parts.append(f"about {timedelta(seconds=round(copy['remaining']))} left")
    return ", ".join(parts)


def _post_data(told: Mapping[str, Any]) -> Iterator[str]:
    """What tables do not have yet of indexes and constraints."""
    for task in told["building"]:
        yield f"{task['what']} is being made since {_moment(task['since'])}"
    if told["waiting"]:
        yield f"{told['waiting']} more of indexes and constraints come after the rows"
    for one in told["refused"]:
        yield f"{one['what']} is refused: {one['reason']}; {REMEDY.format(statement=one['statement'])}"


def _sequences(told: Mapping[str, Any]) -> str:
    if problem := told["problem"]:
        return f"sequences do not follow: {problem['message']}" + (f"; {problem['hint']}" if problem["hint"] else "")
    return f"{counted(told['number'], 'sequence')} in step {_moment(told['at'])}" if told["at"] else "sequences are not in step yet"


def proof(sync: str, told: Mapping[str, Any]) -> Iterator[str]:
    """Give what the daemon has proven of an edge that it compares all the time, and what it has not."""
    rows, tables = counted(told["rows"], "row"), counted(told["tables"], "table")
    since = f", the oldest part of that read {_moment(told['since'])}" if told["since"] else " so far"
    passed_over = f"; not now: {told['obstacle']}" if told["obstacle"] else ""
    yield f"{rows} of {tables} proven equal{since}{passed_over}"
    if told["different"]:
        yield f"{counted(told['different'], 'row')} differ{'s' if told['different'] == 1 else ''}; see: streamer verify {sync}"
    if problem := told["problem"]:
        yield f"not proven: {problem['message']}" + (f"; {problem['hint']}" if problem["hint"] else "")


def _cells(line: Line) -> list[str]:
    values = [
        line.position,
        line.lag_bytes,
        line.lag_seconds and round(line.lag_seconds, 1),
        line.last_applied and _moment(line.last_applied),
        line.inserted,
        line.updated,
        line.deleted,
        line.copied,
    ]
    return [line.sync, line.source, line.target, str(line.state), *("-" if v is None else str(v) for v in values)]


def _told_run(line: Line) -> str:
    """When the stream of this edge ran last, and when it will; for people."""
    parts = ["has not run yet since streamer run was started"]
    if line.run is not None:
        parts = [f"run {line.run['number']} began {_moment(line.run['started'])}", *_course(line.run, line.state)]
    if line.next_run:
        parts.append(f"the next begins {_moment(line.next_run)}")
    return f"{line.sync}: {line.source} ({line.schedule}): {', '.join(parts)}"


def _course(run: Mapping[str, Any], state: str) -> list[str]:
    rows = counted(run["rows"], "row")
    if run["ended"] is None:
        return [rows, "goes on when resumed"] if state == State.PAUSED else [f"{rows} so far"]
    seconds = (datetime.fromisoformat(run["ended"]) - datetime.fromisoformat(run["started"])).total_seconds()
    return [f"{run['result']} after {seconds:.1f} s", rows]


def _moment(iso: str) -> str:
    return f"{datetime.fromisoformat(iso):%Y-%m-%d %H:%M:%S} UTC"

"""What `cutover` looks at before it begins: what can fail should fail while the application still writes. Changes nothing.

Daemon and edges, indexes and constraints, what the daemon knows of the rows, how far the new node is behind, quarantine, sequences,
the tables of the way back, what no sync brings, rights, sessions, and what else reads and writes the two nodes; last, as it takes
longest, whether all rows are equal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from streamer.admin import findings
from streamer.admin import verify as verifying
from streamer.admin.cutover_outside import outside
from streamer.admin.cutover_proof import proven
from streamer.admin.cutover_route import Route, beside, compared_as, left_behind, neighbours
from streamer.admin.draining import drain, look
from streamer.admin.findings import Finding, Severity, error, ok, warning
from streamer.admin.nodes import session
from streamer.admin.printing import counted
from streamer.admin.sequences import judge_sequences
from streamer.admin.writers import Writers
from streamer.assembly import make_source
from streamer.config import Config
from streamer.errors import StreamerError
from streamer.model import EdgeName
from streamer.post_data import REMEDY
from streamer.report import State
from streamer.verify.tables import SHOWN, equal

_CARRYING = (State.STREAMING, State.RESTING)


@dataclass(frozen=True, slots=True)
class Options:
    """What a person has asked for."""

    block_writes: bool = False
    verify: bool = True
    #: seconds that an edge may stand still, and sessions may take to end
    wait: float = 60.0
    #: how many numbers a sequence is moved on beyond the old node's
    margin: int = 1000


def preflight(config: Config, route: Route, options: Options) -> Iterator[Finding]:
    """Yield what was found, errors among it. Raises UsageError if no daemon answers."""
    edges = [edge for edge in (route.forth, route.back) if edge is not None]
    standing = [_edge(config, edge) for edge in edges]
    yield from standing
    if any(finding.severity is Severity.ERROR for finding in standing):
        return  # the rest would only say the same
    yield from unmade(route.forth, look(config, route.forth).post_data)
    judged = compared_as(config, route.forth)
    yield proven(look(config, judged).proof, judged, datetime.now(UTC), again=options.verify)
    for edge in edges:
        yield from _tried(f"edge {edge}", partial(_reached, config, edge, options.wait))
    yield from _tried(f'"{route.old}"', partial(_tables, config, route))
    yield from _tried(f'"{route.old}"', partial(outside, config, route, numbered=numbered(config, route)))
    if numbered(config, route):
        yield from _tried(f'"{route.new}"', partial(_sequences, config, route.forth))
    if config.nodes[route.new].kind == "postgresql":
        yield from _tried(f'"{route.new}"', partial(_opening, config, route))
    yield from _tried(f'"{route.old}"', partial(_clients, config, route, options))
    yield from (_beside(route, sync) for sync in beside(config, route))
    yield from (warning(f'"{route.old}" and "{route.new}"', line, "") for line in neighbours(config, route))
    if options.verify:
        yield from _tried(f'sync "{route.forth.sync}"', partial(_equal, config, route.forth, options.wait))


def numbered(config: Config, route: Route) -> bool:
    """Whether the new node's sequences are set: between sources each has numbers of its own, and other engines have none."""
    return config.nodes[route.new].kind == "postgresql" and not config.syncs[route.forth.sync].multi_master


def _tried(what: str, find: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """What is found; that it could not be looked at is an error as well."""
    try:
        yield from find()
    except StreamerError as problem:
        yield error(what, problem.message, problem.hint)


def _edge(config: Config, edge: EdgeName) -> Finding:
    """Its state. What it complained of last may be over: whether it carries is told by `_reached`."""
    now = look(config, edge)
    what = f"edge {edge}"
    if now.state not in _CARRYING:
        reason = f"is {now.state}: {now.problem.message}" if now.problem else f"is {now.state}"
        remedy = f"streamer resume {edge.sync}" if now.state == State.PAUSED else "wait until it is streaming: streamer status"
        return error(what, reason, (now.problem and now.problem.hint) or remedy)
    if now.quarantined:
        held = counted(now.quarantined, "change")
        return error(what, f"{held} in quarantine", f"streamer quarantine list --sync {edge.sync}")
    return ok(what, f"is {now.state}")


def unmade(edge: EdgeName, told: Mapping[str, Any]) -> Iterator[Finding]:
    """What the new node's tables lack that the old node's have: an application would be slow there, or wrong."""
    what = f"edge {edge}"
    if lacking := told["waiting"] + len(told["building"]):
        yield error(what, f"{lacking} of the indexes and constraints of its tables are still to be made", "wait: streamer status")
    for one in told["refused"]:
        remedy = REMEDY.format(statement=one["statement"])
        yield warning(what, f'{one["what"]} is refused by "{edge.target}": {one["reason"]}', remedy)


def _reached(config: Config, edge: EdgeName, seconds: float) -> Iterator[Finding]:
    began = time.monotonic()
    drained = drain(config, edge, seconds)
    yield ok(f"edge {edge}", f"got to {drained}, where the source was, in {time.monotonic() - began:.1f} s")


def _tables(config: Config, route: Route) -> Iterator[Finding]:
    found = make_source(config, route.forth.sync, route.old, ()).tables()
    tables = [t.table for t in found]
    for table in (t.table for t in found if t.whole):
        yield error(
            f'table "{table}"',
            f'is copied whole to "{route.new}" again and again, which would undo there what is written after the move',
            f"give it a key, or exclude it from sync {route.forth.sync} and move it by hand",
        )
    if route.back is None:
        yield warning(f'"{route.new}"', f'no sync brings back what is written there: going back to "{route.old}" would lose it', "")
        return
    if missing := left_behind(config, route, tables):
        first, more = missing[0], len(missing) - 1
        yield error(
            f'sync "{route.back.sync}"',
            f'does not select table "{first}"' + (f" and {more} more" if more else ""),
            f"add it to syncs.{route.back.sync}.tables; then: streamer setup --sync {route.back.sync}, and reload streamer run",
        )
        return
    yield ok(f'sync "{route.back.sync}"', f"brings back {counted(len(tables), 'table')}")


def _sequences(config: Config, edge: EdgeName) -> Iterator[Finding]:
    with session(config, edge.source) as connection, session(config, edge.target) as other:
        found = [f for f in judge_sequences(config, edge.sync, edge.source, connection, edge.target, other) if f.remedy]
    # one that is missing would only be named by check: here it would leave the application without numbers
    yield from (error(f.object, f.reason, f.remedy) for f in found)
    if not found:
        yield ok(f'"{edge.target}"', "has all sequences, and they can be set")


def _opening(config: Config, route: Route) -> Iterator[Finding]:
    writers = Writers(config, route.new)
    if writers.setting == "on":
        writers.require_rights(ending=False)
        yield ok(f'"{route.new}"', "is read-only for clients, and will be opened in the end")


def _clients(config: Config, route: Route, options: Options) -> Iterator[Finding]:
    writers = Writers(config, route.old)
    writers.require_no_prepared()
    if options.block_writes:
        writers.require_rights(ending=True)
    there = writers.clients()
    yield ok(f'"{route.old}"', f"has {counted(len(there), 'session')} of clients")
    yield from (ok(f'"{route.old}"', f"session {client}") for client in there)


def _beside(route: Route, sync: str) -> Finding:
    return error(
        f'sync "{sync}"',
        f'goes from "{route.old}" to "{route.new}" too, and would undo there what is written after the move',
        f"put its tables into sync {route.forth.sync}; or stop the application, run: streamer kick {sync} --wait 600, "
        "take it out of the config, and reload streamer run",
    )


def _equal(config: Config, edge: EdgeName, seconds: float) -> Iterator[Finding]:
    what = f'sync "{edge.sync}"'
    yield ok(what, compared(config, edge, seconds))


def compared(config: Config, edge: EdgeName, seconds: float) -> str:
    """Compare all rows of an edge, and say so. Raises StreamerError for the first table that is not proven equal."""
    edge = compared_as(config, edge)
    wanted = verifying.wanted(edge.sync, (), edge.target, SHOWN, seconds)
    tables = rows = 0
    for one in verifying.verify(config, wanted):
        if not equal([one]):
            reason = f": {one.problem}" if one.problem else f" in {counted(one.different, 'row')}"
            raise StreamerError(
                f'table "{one.table}" on "{edge.target}" is {one.verdict}{reason}',
                one.remedy or f"see: streamer verify {edge.sync} --target {edge.target} --table {one.table}",
            )
        tables, rows = tables + 1, rows + one.rows
    return f"{counted(rows, 'row')} of {counted(tables, 'table')} are equal"


def require(found: list[Finding]) -> None:
    """Raise StreamerError if anything must be cured."""
    if findings.failed(found):
        raise StreamerError("cutover cannot begin, and nothing was changed", "cure what is named above, and run it again")

"""`streamer quarantine`: what targets hold back because they refused it, and what is to become of it.

An id is NODE:NUMBER. Changes of one row belong together, in order, and with those of the rows that it became by a changed key: to
retry or discard one of them is to do it with all. A node that cannot be reached is told, and the others are asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import takewhile

from streamer import logs
from streamer.admin.arguments import moment, node_and_number, table_name
from streamer.admin.held_changes import HeldChanges, held_changes
from streamer.admin.nodes import Say, chosen_syncs
from streamer.admin.printing import counted
from streamer.config import Config
from streamer.errors import ApplyError, StreamerError, UsageError
from streamer.model import EdgeName, TableName
from streamer.sinks.quarantine_table import Stored, Wanted, changes_of

SHOWN = 10
"""How many changes are listed before it is asked whether to discard them."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which changes are wanted; `ids` are numbers by node."""

    sync: str | None = None
    node: str | None = None
    table: TableName | None = None
    since: datetime | None = None
    ids: dict[str, list[int]] | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """The newest changes, whether there are older ones, and what went wrong on the way."""

    changes: list[Stored]
    more: bool
    problems: list[StreamerError]


def make_filter(
    *, sync: str | None = None, node: str | None = None, table: str | None = None, since: str | None = None, ids: Sequence[str] = ()
) -> Filter:
    """Return the filter that a person has typed. Raises UsageError."""
    by_node: dict[str, list[int]] = {}
    for one in ids:
        place, number = _parsed(one)
        by_node.setdefault(place, []).append(number)
    if by_node and (node or table):
        raise UsageError("ids and --node or --table exclude each other", "name the changes, or say which")
    return Filter(sync, node, table_name(table) if table else None, moment(since) if since else None, by_node or None)


def _parsed(name: str) -> tuple[str, int]:
    return node_and_number(name, "a change", "take one that streamer quarantine list shows, like b:12")


def _edges(config: Config, wanted: Filter) -> list[EdgeName]:
    """The edges whose targets may hold changes. Raises UsageError."""
    syncs = chosen_syncs(config, wanted.sync)
    all_of_them = [EdgeName(*edge) for edge in config.edges() if edge[0] in syncs]
    edges = [e for e in all_of_them if not config.syncs[e.sync].multi_master and config.nodes[e.target].kind != "jsonl"]
    targets = list(dict.fromkeys(edge.target for edge in edges))
    if not targets:
        which = "no sync has" if wanted.sync is None else f'sync "{wanted.sync}" has not'
        raise UsageError(f"{which} a target that keeps a quarantine", "see docs/quarantine.md")
    for node in [wanted.node] if wanted.node else wanted.ids or ():
        if node not in targets:
            raise UsageError(f'node "{node}" keeps no quarantine', f"these do: {', '.join(targets)}")
    return [edge for edge in edges if wanted.node in (None, edge.target) and (wanted.ids is None or edge.target in wanted.ids)]


# -- looking -----------------------------------------------------------------------------------------------------------------------


def find(config: Config, wanted: Filter, limit: int) -> Found:
    """Return so many of the newest changes. Raises UsageError."""
    changes: list[Stored] = []
    problems: list[StreamerError] = []
    for edge in _edges(config, wanted):
        try:
            with held_changes(config, edge) as held:
                changes += held.table.newest(Wanted(wanted.table, wanted.since), limit + 1)
        except StreamerError as problem:
            problems.append(problem)
    changes.sort(key=lambda change: (change.quarantined, change.id), reverse=True)
    return Found(changes[:limit], len(changes) > limit, problems)


def get(config: Config, name: str) -> Stored:
    """Return the change with the id NODE:NUMBER. Raises StreamerError if there is none."""
    node, number = _parsed(name)
    for edge in _edges(config, Filter(ids={node: [number]})):
        with held_changes(config, edge) as held:
            if found := held.table.read(Wanted(ids=[number])):
                return found[0]
    raise _gone(name)


def _gone(name: str) -> StreamerError:
    return StreamerError(f"there is no change {name} in quarantine", "it was retried or discarded; see: streamer quarantine list")


# -- acting ------------------------------------------------------------------------------------------------------------------------


def retry(config: Config, wanted: Filter, say: Say) -> list[StreamerError]:
    """Apply what is wanted to the targets, and take it out of quarantine; return what could not be done. Raises UsageError."""
    logs.configure()
    return _each(config, wanted, say, lambda edge, held, which: _retry(edge, held, which, say))


def discard(config: Config, wanted: Filter, confirm: Callable[[Sequence[str]], bool], say: Say) -> list[StreamerError]:
    """Forget what is wanted, after `confirm` has seen it; return what could not be done. Raises UsageError."""
    logs.configure()

    def forget(edge: EdgeName, held: HeldChanges, which: Wanted) -> int:
        if not confirm(list(_described(edge, held, which))):
            return 1
        number = 0
        with held.transaction():
            for page in held.table.pages(_with_followers(held, which)):
                held.table.remove([change.id for change in page])
                number += len(page)
        say(f"{edge}: discarded {counted(number, 'change')}")
        return number

    return _each(config, wanted, say, forget)


def _each(config: Config, wanted: Filter, say: Say, act: Callable[[EdgeName, HeldChanges, Wanted], int]) -> list[StreamerError]:
    """Act on every edge that holds something that is wanted."""
    problems: list[StreamerError] = []
    left = {(node, number) for node, numbers in (wanted.ids or {}).items() for number in numbers}
    done = 0
    for edge in _edges(config, wanted):
        try:
            with held_changes(config, edge) as held:
                ids = None if wanted.ids is None else wanted.ids[edge.target]
                found = held.table.read(Wanted(wanted.table, ids=ids), limit=len(ids or ()) or 1)
                left -= {(edge.target, change.id) for change in found}
                if found:
                    done += act(edge, held, Wanted(wanted.table) if ids is None else Wanted(ids=held.table.chain(ids)))
        except StreamerError as problem:
            problems.append(problem)
    if not (done or problems or left):
        say("there is nothing in quarantine")
    return [*problems, *(_gone(f"{node}:{number}") for node, number in sorted(left))]


def _with_followers(held: HeldChanges, which: Wanted) -> Wanted:
    """The same with what has followed meanwhile; in a transaction nothing more can."""
    return which if which.ids is None else Wanted(ids=held.table.chain(which.ids))


def _described(edge: EdgeName, held: HeldChanges, which: Wanted) -> Iterator[str]:
    number = 0
    for page in held.table.pages(which):
        for change in page[: max(0, SHOWN - number)]:
            key = ", ".join(f"{column}={value}" for column, value in change.key.items())
            yield f"{edge.target}:{change.id}  {change.kind} of {change.table}, {key}"
        number += len(page)
    yield f"{edge}: {counted(number, 'change')} will be forgotten; the rows on the target stay as they are"


def _retry(edge: EdgeName, held: HeldChanges, which: Wanted, say: Say) -> int:
    """One transaction; one more for each time that another node has made the next change, because a transaction has one origin."""
    number = 0
    more = True
    while more:
        with held.transaction():
            which = _with_followers(held, which)
            applied, missing, more = _apply(held, which)
        number += applied
        say(f"{edge}: applied {counted(applied, 'change')}" + (f", {missing} of which found no row" if missing else ""))
    return number


def _apply(held: HeldChanges, which: Wanted) -> tuple[int, int, bool]:
    """Apply changes of one origin; return how many, how many found no row, and whether there are more."""
    number = missing = 0
    first: Stored | None = None
    for page in held.table.pages(which):
        if first is None and held.tag is not None:
            held.tag(page[0])
        first = first or page[0]
        run = page if held.tag is None else list(takewhile(partial(_same_origin, first), page))
        try:
            missing += held.apply(list(changes_of(run))).missing
        except ApplyError as error:
            raise StreamerError(error.message, "it is held as before; cure what is in its way, then retry again") from error
        held.table.remove([change.id for change in run])
        number += len(run)
        if len(run) < len(page):
            return number, missing, True
    return number, missing, False


def _same_origin(one: Stored, other: Stored) -> bool:
    return one.origin == other.origin

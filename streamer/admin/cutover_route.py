"""From where to where `cutover` moves, and by which sync the way back goes. Pure: it is all in the config.

docs/migration.md
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from streamer.config import Config
from streamer.errors import UsageError
from streamer.model import EdgeName, TableName


@dataclass(frozen=True, slots=True)
class Route:
    """A move of the writers from the source of an edge to its target."""

    forth: EdgeName
    #: by which what is written on the new node gets to the old one; None: there is no way back without loss
    back: EdgeName | None

    @property
    def old(self) -> str:
        """The node that is left."""
        return self.forth.source

    @property
    def new(self) -> str:
        """The node that is moved to."""
        return self.forth.target


class NoWayBack(UsageError):
    """No sync goes from the new node to the old one; `lines` are what the config lacks, none if there can't be one."""

    def __init__(self, message: str, hint: str, lines: Sequence[str] = ()) -> None:
        super().__init__(message, hint)
        self.lines = lines


def route(config: Config, sync: str, new: str, *, way_back: bool) -> Route:
    """Return the route that a command asks for. Raises UsageError for what cannot be moved, NoWayBack."""
    settings = config.syncs[sync]
    if new not in config.nodes:
        raise UsageError(f'the config has no node "{new}"', f"it has {', '.join(config.nodes)}")
    feeders = config.feeders(sync, new) if new in (*settings.sources, *settings.targets) else ()
    if not feeders:
        others = sorted({target for name, _, target in config.edges() if name == sync})
        raise UsageError(f'node "{new}" is not a target of sync "{sync}"', f"it has {', '.join(others)}")
    if len(feeders) > 1:
        raise UsageError(
            f'sync "{sync}" has several sources that write to "{new}": {", ".join(feeders)}',
            "with several sources the application may simply write to another one (docs/multi-master.md)",
        )
    kind = config.nodes[new].kind
    if kind == "jsonl":
        raise UsageError(f'node "{new}" holds events, not tables: no application can move there', "name another target with --to")
    forth = EdgeName(sync, feeders[0], new)
    if not way_back:
        return Route(forth, None)
    if kind != "postgresql":
        raise NoWayBack(
            f'node "{new}" is {kind}: its changes cannot be read, so there is no way back', "to move all the same: --no-way-back"
        )
    return Route(forth, _way_back(config, forth))


def ways_back(config: Config, edge: EdgeName) -> list[EdgeName]:
    """Return the edges that go from the target of this one to its source."""
    return [EdgeName(*other) for other in config.edges() if other[1:] == (edge.target, edge.source)]


def _way_back(config: Config, forth: EdgeName) -> EdgeName:
    if ways := ways_back(config, forth):
        return ways[0]
    name = next(name for name in ("back", f"{forth.sync}_back", f"{forth.sync}_from_{forth.target}") if name not in config.syncs)
    raise NoWayBack(
        f'no sync goes from "{forth.target}" to "{forth.source}", so what is written on "{forth.target}" would not get back',
        f"add the lines above to the config; then: streamer setup --sync {name}, and reload streamer run; or use --no-way-back",
        _missing(config, name, forth),
    )


def _missing(config: Config, name: str, forth: EdgeName) -> list[str]:
    """The lines of a sync that goes the other way."""
    settings = config.syncs[forth.sync]
    lists = {
        "sources": [forth.target],
        "targets": [forth.source],
        "tables": list(settings.tables),
        "exclude": list(settings.exclude),
    }
    lines = [f"[syncs.{name}]", *(f"{key} = {_toml(names)}" for key, names in lists.items() if names)]
    return [*lines, "sequences = true", 'copy = "never"']


def _toml(names: Sequence[str]) -> str:
    return "[" + ", ".join('"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"' for name in names) + "]"


def compared_as(config: Config, edge: EdgeName) -> EdgeName:
    """Return the edge as which `verify` compares the two nodes of another: it begins at the first source, and equal is equal."""
    if edge.source == config.syncs[edge.sync].sources[0]:
        return edge
    return EdgeName(edge.sync, edge.target, edge.source)


def left_behind(config: Config, route: Route, tables: Sequence[TableName]) -> list[TableName]:
    """Return those of the old node's tables whose changes on the new node would not get back."""
    if route.back is None:
        return []
    settings, shapes = config.syncs[route.back.sync], config.syncs[route.forth.sync].shapes_for(route.new)
    return [table for table in tables if not settings.selects(shapes[table].target if table in shapes else table)]


def beside(config: Config, route: Route) -> list[str]:
    """Return the other syncs that go the same way: what they bring later would undo what is written on the new node."""
    return [name for name, *nodes in config.edges() if nodes == [route.old, route.new] and name != route.forth.sync]


def neighbours(config: Config, route: Route) -> list[str]:
    """Tell what else reads and writes the two nodes, and what becomes of it."""
    told = []
    for edge in (EdgeName(*one) for one in config.edges()):
        if {edge.source, edge.target} == {route.old, route.new}:
            continue
        if edge.source == route.old:
            told.append(f'sync "{edge.sync}" goes on to bring "{edge.target}" what "{route.old}" gets{_of(route)}')
        elif edge.target in (route.old, route.new):
            told.append(f'sync "{edge.sync}" goes on to write to "{edge.target}" what it reads on "{edge.source}"')
        elif edge.source == route.new:
            told.append(f'sync "{edge.sync}" goes on to bring "{edge.target}" what "{route.new}" gets')
    return told


def _of(route: Route) -> str:
    return (
        f': by the way back all that is written on "{route.new}"'
        if route.back
        else f', but nothing that is written on "{route.new}"'
    )


def is_fed(config: Config, route: Route) -> bool:
    """Whether other nodes write to the old one, so that its changes are not all of its own clients."""
    return any(target == route.old and source != route.new for _, source, target in config.edges())

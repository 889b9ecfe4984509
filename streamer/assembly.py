"""The parts of a stream put together: source, edges and sinks, as the config says. Nothing else makes them.

What is made once for a stream (its source, routes, copies and shapes) outlives its runs; `make_edges` and the sinks are made anew
for each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

from streamer import periods
from streamer.capture.assemble import Interest
from streamer.capture.choice import ChosenSource
from streamer.capture.node_watch import NodeWatch
from streamer.capture.row_filter import ServerFilter
from streamer.capture.sequences import Selection, SequenceReader
from streamer.capture.shaped_tables import require_shapes
from streamer.config import Config, Sync, slot_name
from streamer.copying import InitialCopy
from streamer.edge import Edge
from streamer.full_copies import FullCopies
from streamer.model import EdgeName, TableName
from streamer.node_config import Node
from streamer.ports import Sink
from streamer.router import Route
from streamer.sequences import SequenceKeeper
from streamer.sinks import handlers
from streamer.sinks.conflict import Rules
from streamer.sinks.jsonl import JsonlSink
from streamer.sinks.mysql import MysqlSink
from streamer.sinks.postgres import PostgresSink
from streamer.sinks.postgres_sequences import SequenceWriter
from streamer.sinks.postgres_transactions import MultiMaster
from streamer.sinks.quarantine import OnError
from streamer.sinks.shaped import ShapedSink, Shapes, load_functions
from streamer.sinks.sqlite import SqliteSink
from streamer.sinks.unrepresentable import Replacements
from streamer.slot_monitor import GiveUp, NodeMonitor
from streamer.stream import Stream
from streamer.topology import overlap


def stream_maker(
    config: Config,
    sync: str,
    node: str,
    *,
    once: bool,
    held: Callable[[], str] = lambda: "",
    hasten: Callable[[], None] = lambda: None,
) -> Callable[[], Stream]:
    """Return what makes the stream of a sync from one of its sources, with an edge for each target: a new one for every run.

    What a run learns of source and copies outlives it. `held` tells why no copy may begin now, `hasten` has the sync's other
    streams note how far they are. Raises ConfigError if a function of the user's is missing.
    """
    settings = config.syncs[sync]
    edges = [EdgeName(sync, node, target) for target in config.targets(sync, node)]
    routes = {edge: Route(node, edge.target, config.feeders(sync, edge.target)) for edge in edges}
    source = make_source(config, sync, node, [*routes.values()])
    masters = _masters(settings) if settings.multi_master else None
    shapes = {edge: _shapes(config, edge) for edge in edges}
    copies = {
        edge: InitialCopy(
            edge,
            settings.copy_rows,
            settings.copy_jobs,
            config.feeders(sync, edge.target),
            returns=edge.target in settings.sources,
            shaped=None if (of := shapes[edge]) is None else of.read,
            full=FullCopies(periods.seconds(settings.fullcopy_every) if settings.continuous else None),
            held=held,
            hasten=hasten,
            range_rows=settings.copy_range_rows,
        )
        for edge in edges
    }

    sequences = {edge: _sequences(config, edge) for edge in edges}

    def make_edges(rejoin: Callable[[], None]) -> Sequence[Edge]:
        return [
            Edge(e, source, partial(_shaped_sink, config, e, masters, shapes[e]), routes[e], copies[e], rejoin, sequences[e])
            for e in edges
        ]

    return partial(Stream, sync, node, source, make_edges, until_caught_up=once or not settings.continuous, one_try=once)


def make_source(config: Config, sync: str, node: str, routes: Sequence[Route]) -> ChosenSource:
    """Return the reading end of the stream of a sync from one of its sources, which reads what any of these routes accepts."""
    settings = config.syncs[sync]
    interest = Interest(
        settings.selects,
        frozenset(name for name, other in config.syncs.items() if overlap(settings, other)),
        lambda transaction: any(route.accepts(transaction) for route in routes),
        settings.copies_whole,
        lambda table: not config.refuses_fullcopy(sync, table),
        settings.key_for,
        settings.multi_master,
        _echoing(config, node),
    )
    return ChosenSource(node, config.nodes[node], sync, slot_name(sync, node), interest)


def _echoing(config: Config, node: str) -> int:
    """How many nodes there are whose writing of progress others read, if this node's streams make one of them write."""
    sources = {source for sync in config.syncs.values() for source in sync.sources}
    return 0 if sources.isdisjoint(target for sync in config.syncs for target in config.targets(sync, node)) else len(sources)


def make_sink(config: Config, edge: EdgeName, masters: MultiMaster | None = None) -> Sink:
    """Return the writer of an edge, by the kind of its target."""
    node = config.nodes[edge.target]
    if node.kind == "jsonl":
        return JsonlSink.of_node(edge, node)
    holds = on_error(config, edge)
    if node.kind == "mysql":
        return MysqlSink(edge, node.mysql, node.schemas, replacements(config, edge), holds)
    if node.kind == "sqlite":
        return SqliteSink(edge, node.path, replacements=replacements(config, edge), on_error=holds)
    return PostgresSink(edge, node.url, masters, holds)


def make_shaped_sink(config: Config, edge: EdgeName) -> Sink:
    """Return the writer of an edge of a sync with one source, which knows tables by what they are called on the source."""
    return _shaped_sink(config, edge, None, _shapes(config, edge))


def _shaped_sink(config: Config, edge: EdgeName, masters: MultiMaster | None, shapes: Shapes | None) -> Sink:
    sink = make_sink(config, edge, masters)
    return sink if shapes is None else ShapedSink(sink, shapes)


def _sequences(config: Config, edge: EdgeName) -> SequenceKeeper:
    """What keeps the sequences of the target in step, if that is wanted: not between sources, which draw numbers of their own."""
    sync, source, target = config.syncs[edge.sync], config.nodes[edge.source], config.nodes[edge.target]
    if not sync.sequences or target.kind != "postgresql" or edge.target in sync.sources:
        return SequenceKeeper(edge)
    reader = SequenceReader(edge.source, source.url, Selection(sync.selects, sync.excludes))
    return SequenceKeeper(edge, reader, SequenceWriter(edge.target, target.url))


def _shapes(config: Config, edge: EdgeName) -> Shapes | None:
    """What tables become on the target; None if they stay as they are. Raises ConfigError if a function is missing."""
    sync, url = config.syncs[edge.sync], config.nodes[edge.source].url
    shapes = sync.shapes_for(edge.target)
    if not shapes:
        return None
    examine = partial(require_shapes, edge.source, config.nodes[edge.source], sync.selects, shapes)
    return Shapes(shapes, load_functions(shapes.values()), examine, ServerFilter(edge.source, url))


def replacements(config: Config, edge: EdgeName) -> Replacements:
    """Return what the edge does with values that its target cannot hold."""
    sync, named = config.syncs[edge.sync], _source_names(config, edge)
    return Replacements(edge, lambda table: sync.unrepresentable_for(named(table)))


def on_error(config: Config, edge: EdgeName) -> OnError:
    """Return which tables of the target have a quarantine."""
    sync, named = config.syncs[edge.sync], _source_names(config, edge)
    return lambda table: sync.quarantines(named(table))


def _source_names(config: Config, edge: EdgeName) -> Callable[[TableName], TableName]:
    """What a table is called on the source: the sink knows tables by what they are called on the target."""
    sources = {shape.target: table for table, shape in config.syncs[edge.sync].shapes_for(edge.target).items()}
    return lambda table: sources.get(table, table)


def _masters(sync: Sync) -> MultiMaster:
    """What a writer must know where several sources write. Raises ConfigError if a function that resolves conflicts is missing."""

    def rules(table: TableName) -> Rules:
        own = sync.rules_for(table)
        return Rules(own.conflict, own.delta, own.max, own.min, sync.conflict_fallback)

    policies = {sync.conflict, *(table.conflict for table in sync.table.values())}
    by_time = "latest" in policies or sync.conflict_fallback == "latest"
    handler = cache(partial(handlers.load, timeout=sync.conflict_timeout))
    for policy in policies:
        if isinstance(policy, str) and policy.startswith("python:"):
            handler(policy)  # a function that is not there is an error now, not at the first conflict
    return MultiMaster(rules, handler, sync.max_clock_skew, sync.conflict_days, sync.tombstone_days, by_time)


def node_monitor(node: str, settings: Node, syncs: Mapping[str, Sync], give_up: GiveUp) -> NodeMonitor:
    """Return what looks at a source, with the syncs that read it."""
    slots = {slot_name(sync, node): (sync, node) for sync in syncs}
    captured = {slot_name(name, node): (name, sync.captures) for name, sync in syncs.items()}
    watch = NodeWatch(node, settings.url, slots, captured)
    return NodeMonitor(node, watch, settings.max_retained_bytes, settings.wal_guard, give_up)

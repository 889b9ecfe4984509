"""When has the stream passed a moment? When everything that was committed on the sources by then is in the targets.

A position of each edge that ends at one of the two nodes is taken, and waited for: either the target's progress is past it, or the
source was told to forget what lies before it, because there was nothing in between for anybody. The trap: what a look has seen may
be committed, visible and not yet flushed; the position is therefore where the WAL is written, and a transaction of ours, which
holds nothing, has it flushed. And where nothing is written, progress stands still, though nothing is missing: so the daemon, if it
can be asked, is kicked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Final

import psycopg

from streamer.admin.foreign import target_of
from streamer.capture.assemble import Interest
from streamer.capture.trigger_source import TriggerSource
from streamer.config import Config, slot_name
from streamer.errors import SlotError, UsageError
from streamer.model import LSN, EdgeName
from streamer.node_config import choose_capture
from streamer.session import Connection, connect, reported, version
from streamer.verify.comparison import Behind

POLL_SECONDS: Final = 0.1
TROUBLE_SECONDS: Final = 5.0
"""How long an edge may be in trouble that is known: a lost connection is soon made again."""
FLUSH_SECONDS: Final = 5.0
"""How long the WAL writer may take; a server before 10 tells only what is written, which comes first."""
_APPLICATION: Final = "streamer verify"
_PROGRESS: Final = "SELECT position FROM streamer.progress WHERE sync = %s AND source = %s AND target = %s"


class EdgePosition:
    """How far one edge is, and how far its source. Connected until `close`."""

    def __init__(self, config: Config, edge: EdgeName) -> None:
        self.edge = edge
        settings, node = config.syncs[edge.sync], config.nodes[edge.source]
        self._slot = slot_name(edge.sync, edge.source)
        self._setup = f"run: streamer setup --sync {edge.sync}"
        self._foreign = target_of(config, edge.target)
        self._target: Connection | None = None
        with ExitStack() as stack:  # what is open is closed if the rest fails
            self._source = stack.enter_context(connect(edge.source, node.url, application=_APPLICATION))
            if self._foreign is None:
                url = config.nodes[edge.target].url
                self._target = stack.enter_context(connect(edge.target, url, application=_APPLICATION))
            self._resources = stack.pop_all()
        self._batches: TriggerSource | None = None
        if choose_capture(node.capture, version(self._source))[0] == "trigger":
            interest = Interest(
                settings.selects,
                whole=settings.copies_whole,
                copyable=lambda table: not config.refuses_fullcopy(edge.sync, table),
                keys=settings.key_for,
                by_transaction=settings.multi_master,
            )
            self._batches = TriggerSource(edge.source, node.url, edge.sync, self._slot, interest)

    @property
    def batches(self) -> bool:
        """Whether positions are numbers of batches."""
        return self._batches is not None

    def close(self) -> None:
        """Disconnect."""
        self._resources.close()

    def now(self) -> LSN:
        """Return a position past everything that is visible on the source. Raises SlotError if nothing is set up, ConnectError."""
        if self._batches is not None:
            return self._batches.state().current
        insert, flushed = _positions(version(self._source))
        with reported(self.edge.source):
            position = self._ask(insert)
            if self._ask(flushed) < position:
                self._source.execute("SELECT txid_current()")
            deadline = time.monotonic() + FLUSH_SECONDS
            while self._ask(flushed) < position and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS / 10)
        return position

    def _ask(self, function: str) -> LSN:
        (text,) = self._source.execute(f"SELECT {function}()::text".encode()).fetchone() or ("0/0",)
        return LSN.parse(text)

    def reached(self) -> LSN:
        """Return up to where the target has all. Raises SlotError, ConnectError."""
        return max(self._progress(), self._confirmed())

    def _progress(self) -> LSN:
        edge = self.edge
        if self._foreign is not None:
            return LSN.parse(self._foreign.position(edge) or "0/0")
        assert self._target is not None
        with reported(edge.target):
            try:
                row = self._target.execute(_PROGRESS, [edge.sync, edge.source, edge.target]).fetchone()
            except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
                raise SlotError(f'node "{edge.target}" has no schema streamer', self._setup) from None
        return LSN.parse(row[0] if row else "0/0")

    def _confirmed(self) -> LSN:
        if self._batches is not None:
            return self._batches.state().confirmed
        column = "confirmed_flush_lsn" if version(self._source) >= 90600 else "restart_lsn"
        with reported(self.edge.source):
            query = f"SELECT {column}::text FROM pg_replication_slots WHERE slot_name = %s"
            row = self._source.execute(query.encode(), [self._slot]).fetchone()
        if row is None:
            raise SlotError(f'sync "{self.edge.sync}" has no slot on "{self.edge.source}"', self._setup)
        return LSN.parse(row[0] or "0/0")


def _positions(number: int) -> tuple[str, str]:
    """The functions for where the WAL is written, and flushed, up to."""
    if number >= 100000:
        return "pg_current_wal_insert_lsn", "pg_current_wal_flush_lsn"
    return "pg_current_xlog_insert_location", "pg_current_xlog_location"


class Passing:
    """Waits for edges; connects when that is asked for the first time. `seconds` is how long an edge may stand still; `kick` asks
    the daemon to make the progress of a sync durable, and raises UsageError if it does not; `trouble` tells why an edge does not
    get on; `beat` is called again and again meanwhile, and may raise."""

    def __init__(
        self,
        config: Config,
        sync: str,
        nodes: Sequence[str],
        seconds: float,
        kick: Callable[[str], object],
        trouble: Callable[[EdgeName], str] = lambda edge: "",
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._config = config
        self._sync = sync
        self._edges = [EdgeName(*edge) for edge in config.edges() if edge[0] == sync and edge[2] in nodes]
        self._seconds = seconds
        self._ask_daemon = kick
        self._trouble = trouble
        self._beat = beat
        #: where edges stood when they were given up
        self._stuck: dict[EdgeName, LSN] = {}
        self._positions: list[EdgePosition] = []
        #: why the daemon could not be kicked
        self._unheard: UsageError | None = None

    def until_passed(self) -> None:
        """Wait until the stream has passed this moment. Raises Behind, SlotError, ConnectError."""
        if not self._positions:
            for edge in self._edges:
                self._positions.append(EdgePosition(self._config, edge))
        # a batch that is being recorded may be older than a change that is visible already; the one after it is not
        for _ in range(2 if any(position.batches for position in self._positions) else 1):
            goals = [(position, position.now()) for position in self._positions]
            self._kick()
            for position, goal in goals:
                self._wait(position.edge, position.reached, goal)

    def _kick(self) -> None:
        """Have the daemon make progress durable at once; else it moves with the next change, or not at all in a sync at rest."""
        try:
            self._ask_daemon(self._sync)
            self._unheard = None
        except UsageError as problem:
            self._unheard = problem

    def _wait(self, edge: EdgeName, reached: Callable[[], LSN], goal: LSN) -> None:
        best, well = LSN(0), time.monotonic()
        deadline = well + self._seconds
        while (position := reached()) < goal:
            if position <= self._stuck.get(edge, LSN(0)):
                deadline = 0.0  # nobody need wait for it again
            elif position > best:
                best, deadline = position, time.monotonic() + self._seconds
            trouble = self._trouble(edge)
            well = well if trouble else time.monotonic()
            if time.monotonic() > min(deadline, well + TROUBLE_SECONDS):
                self._stuck[edge] = position
                raise self._behind(edge, position, goal, trouble)
            self._beat()
            time.sleep(POLL_SECONDS)
        self._stuck.pop(edge, None)

    def _behind(self, edge: EdgeName, position: LSN, goal: LSN, trouble: str) -> Behind:
        if trouble:
            return Behind(f"rows differ, and edge {edge} does not get on: {trouble}", "see: streamer status")
        unheard = self._unheard
        more = f", and it could not be kicked: {unheard.message}" if unheard else ""
        return Behind(
            f"rows differ, and edge {edge} has stood at {position}, before {goal}, for {self._seconds:g} s: "
            f"whether it is only behind cannot be told{more}",
            (unheard and unheard.hint) or "see: streamer status",
        )

    def close(self) -> None:
        """Disconnect."""
        for position in self._positions:
            position.close()
        self._positions.clear()

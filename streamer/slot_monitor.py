"""The WAL that slots hold back on the sources, and the deltas that wait there: sampled every few seconds, for `status`, metrics and
the WAL guard.

There is a thread for each source, because one that does not answer must not keep the others waiting. The trap: the sample is as old
as `sampled_at` says; of a source that is away it is the last one that came, with the reason beside it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final, Protocol

import structlog

from streamer.errors import SlotError, StreamerError, start_over
from streamer.node_config import WalGuard
from streamer.report import DeltaReport, GuardLevel, NodeReport, Problem, SlotReport
from streamer.wal_guard import Guard

SAMPLE_SECONDS: Final = 10.0
STOP_SECONDS: Final = 1.0
"""How long to wait for a thread that is amid a sample; it is a daemon."""

GiveUp = Callable[[str, str, StreamerError], None]
"""Called with sync, source and the reason, before the slot of a stream is dropped."""


class Watch(Protocol):
    """Looks at the slots and deltas of one node (capture/slot_list.py)."""

    def read(self) -> list[SlotReport]:
        """Return the slots of the node's cluster. Raises StreamerError."""

    def read_deltas(self) -> list[DeltaReport]:
        """Return what has been captured by triggers and is still needed. Raises StreamerError."""

    def drop(self, slot: str) -> None:
        """Drop a slot and end its reader. Raises StreamerError."""

    def close(self) -> None:
        """Let go of the connection. Never raises."""


class NodeMonitor:
    """Samples one source in a thread of its own."""

    def __init__(self, node: str, watch: Watch, limit: int | None, mode: WalGuard, give_up: GiveUp) -> None:
        self.node = node
        self._watch = watch
        self._guard = Guard(node, limit, mode)
        self._give_up = give_up
        self._slots: list[SlotReport] = []
        self._deltas: list[DeltaReport] = []
        self._sampled_at: datetime | None = None
        self._problem: Problem | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"slots of {node}", daemon=True)
        self._log = structlog.get_logger().bind(node=node)

    def start(self) -> None:
        """Start the thread; the first sample is taken at once."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end."""
        self._stop.set()

    def join(self) -> None:
        """Wait a moment for the thread to end."""
        if self._thread.ident is not None:
            self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self.sample()
                self._stop.wait(SAMPLE_SECONDS)
        finally:
            self._watch.close()

    def sample(self) -> None:
        """Look at the slots once, and let the guard act."""
        try:
            slots, deltas = self._watch.read(), self._watch.read_deltas()
        except StreamerError as error:
            if self._problem is None and not self._stop.is_set():
                self._log.warning("slots_not_seen", error=error.message, remedy=error.hint)
            self._problem = Problem.of(error, datetime.now(UTC))
            return
        except Exception:  # a bug must not end the guard in silence
            self._log.exception("slots_not_seen")
            return
        self._slots, self._deltas, self._sampled_at, self._problem = slots, deltas, datetime.now(UTC), None
        if self._guard.look(slots):
            self._tell_level()
        for slot in self._guard.doomed(slots):
            self._drop(slot)

    def _tell_level(self) -> None:
        guard = self._guard
        if guard.level is GuardLevel.OK:
            self._log.info("wal_released", finding=guard.finding)
        elif guard.level is GuardLevel.HALF:
            self._log.warning("wal_held_back", level=guard.level.value, finding=guard.finding)
        else:
            remedy = (
                "see: streamer status, streamer slots list; bring the target back, end what is open for long on the source "
                "(pg_stat_activity.xact_start), or take the target out of the sync"
            )
            self._log.error("wal_held_back", level=guard.level.value, finding=guard.finding, guard=guard.mode, remedy=remedy)

    def _drop(self, slot: SlotReport) -> None:
        verdict = SlotError(
            f'slot "{slot.slot}" on "{slot.node}" was dropped by the WAL guard (wal_guard = "drop-slot"): {self._guard.finding}',
            f"changes since {slot.confirmed or 'its last confirmation'} are lost; {start_over(slot.sync, slot.source)}",
        )
        self._give_up(slot.sync, slot.source, verdict)
        try:
            self._watch.drop(slot.slot)
        except StreamerError as error:
            self._log.error("slot_not_dropped", slot=slot.slot, error=error.message, remedy=error.hint)
            return
        self._log.error("slot_dropped", slot=slot.slot, sync=slot.sync, error=verdict.message, remedy=verdict.hint)

    def obstacle(self, sync: str, source: str) -> str:
        """Why a stream's run or initial copy must not begin now; empty if it may."""
        return self._guard.obstacle(sync, source)

    def report(self) -> NodeReport:
        """Return what was seen last."""
        guard = self._guard
        slots, deltas = list(self._slots), list(self._deltas)
        return NodeReport(self.node, self._sampled_at, self._problem, guard.limit, guard.mode, guard.level, slots, deltas)


def stop_all(monitors: Sequence[NodeMonitor]) -> None:
    """End the threads of monitors."""
    for monitor in monitors:
        monitor.stop()
    for monitor in monitors:
        monitor.join()

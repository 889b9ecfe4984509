"""A runner of a stream over memory, in a thread of its own, with a clock that stands still."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from streamer.copying import InitialCopy, Policy
from streamer.edge import Edge
from streamer.model import EdgeName, TableName
from streamer.report import State, StreamReport
from streamer.router import Route
from streamer.runner import Runner
from streamer.schedule import Continuous, Resting
from streamer.stream import Stream
from tests.changes import copy_of, insert, relation, table
from tests.memory import MemoryDatabase, MemorySink, MemoryTable
from tests.memory_source import MemorySource
from tests.waiting import wait_for, wait_for_equal

ITEM = table("item", id="integer", x="text")
ITEMS = relation(ITEM)
NAME = TableName("public", "item")


class Clock:
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Running:
    """A runner of a stream from `a` to `b`, in its thread."""

    def __init__(
        self,
        *,
        continuous: bool = False,
        interval: float | None = None,
        policy: Policy = "never",
        held: Callable[[], str] = lambda: "",
        setup: Callable[[MemoryDatabase], object] = lambda target: None,
    ) -> None:
        self.source = MemorySource([copy_of(ITEM)])
        self.target = MemoryDatabase()
        self.target.tables[NAME] = MemoryTable(("id", "x"), ("id",))
        self.clock = Clock()
        setup(self.target)
        name = EdgeName("shop", "a", "b")
        copy = InitialCopy(name, policy, 1)

        def make_edges(rejoin: Callable[[], None]) -> Sequence[Edge]:
            return [Edge(name, self.source, lambda: MemorySink(name, self.target), Route("a", "b", ["a"]), copy, rejoin)]

        def make() -> Stream:
            return Stream("shop", "a", self.source, make_edges, until_caught_up=not continuous)

        schedule = Continuous() if continuous else Resting(interval, self.clock())
        self.runner = Runner("shop", "a", make, schedule, "continuous" if continuous else "manual", self.clock, held)
        self.thread = threading.Thread(target=self.runner.run)
        self.thread.start()

    def insert(self, *ids: int) -> None:
        for i in ids:
            self.source.commit(insert(ITEMS, str(i), "x"))

    @property
    def ids(self) -> list[int]:
        return sorted(int(row["id"] or 0) for row in self.target.tables[NAME].rows)

    @property
    def report(self) -> StreamReport:
        return self.runner.report()

    @property
    def states(self) -> list[State]:
        """Of the stream and its edge."""
        report = self.report
        return [report.state, *(edge.state for edge in report.edges)]

    def wait_for_states(self, state: State) -> None:
        wait_for_equal(lambda: self.states, [state, state], f"everything to be {state}")

    def finish(self, number: int) -> None:
        """Wait for the run to be done."""
        wait_for(lambda: self.report.kicks.done >= number, f"run {number} to be done")

    def hold_back_a_run(self) -> int:
        """Kick, and wait until the run is amid writing, which goes on once the gate is opened."""
        self.target.gate.clear()
        number = self.runner.kick()
        wait_for(lambda: self.report.edges[0].lag_bytes, "the run to have a group in hand")
        return number

    def stop(self) -> None:
        self.target.gate.set()
        self.runner.stop()
        self.thread.join(timeout=20)
        assert not self.thread.is_alive()

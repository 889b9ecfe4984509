"""A stream that is kicked, paused and resumed, over memory: when it reads, what it says of itself, and what it lets go of."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import pytest

from streamer.copying import InitialCopy, Policy
from streamer.edge import Edge
from streamer.errors import ConnectError, SlotError, UsageError
from streamer.model import LSN, EdgeName, TableName
from streamer.report import Result, State, StreamReport
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

    def __init__(self, *, continuous: bool = False, interval: float | None = None, policy: Policy = "never") -> None:
        self.source = MemorySource([copy_of(ITEM)])
        self.target = MemoryDatabase()
        self.target.tables[NAME] = MemoryTable(("id", "x"), ("id",))
        self.clock = Clock()
        name = EdgeName("shop", "a", "b")
        copy = InitialCopy(name, policy, 1)

        def make_edges(rejoin: Callable[[], None]) -> Sequence[Edge]:
            return [Edge(name, self.source, lambda: MemorySink(name, self.target), Route("a", "b", ["a"]), copy, rejoin)]

        def make() -> Stream:
            return Stream("shop", "a", self.source, make_edges, until_caught_up=not continuous)

        schedule = Continuous() if continuous else Resting(interval, self.clock())
        self.runner = Runner("shop", "a", make, schedule, "continuous" if continuous else "manual", self.clock)
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


Start = Callable[..., Running]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts runners, and stops them when the test is over."""
    started: list[Running] = []

    def begin(**options: object) -> Running:
        started.append(Running(**options))  # type: ignore[arg-type]
        return started[-1]

    yield begin
    for running in started:
        running.stop()


# -- manual ----------------------------------------------------------------------------------------------------------------------


def test_nothing_is_read_before_the_first_kick_and_nothing_is_open(start: Start) -> None:
    manual = start(policy="always")
    manual.source.rows_of[NAME] = [("1", "copied")]
    manual.insert(2)
    assert manual.states == [State.RESTING, State.RESTING]
    assert (manual.source.sessions, manual.target.writers, manual.ids) == ([], set(), [])
    assert manual.report.kicks.run is None


def test_a_kick_brings_the_initial_copy_and_all_that_was_committed_and_then_lets_go_of_everything(start: Start) -> None:
    manual = start(policy="always")
    manual.source.rows_of[NAME] = [("1", "copied")]
    assert manual.runner.kick() == 1
    manual.finish(1)
    manual.insert(2, 3)
    assert manual.ids == [1]
    assert manual.runner.kick() == 2
    manual.finish(2)
    assert manual.ids == [1, 2, 3]
    assert manual.source.confirmed == manual.source.end
    assert manual.states == [State.RESTING, State.RESTING]
    assert manual.target.writers == set()
    assert not [t.name for t in threading.enumerate() if t.name.startswith("edge ")]


def test_a_run_tells_its_number_times_result_and_rows_and_counters_go_on(start: Start) -> None:
    manual = start(policy="always")
    manual.source.rows_of[NAME] = [("1", "copied"), ("2", "copied")]
    manual.runner.kick()
    manual.finish(1)
    manual.insert(3)
    manual.runner.kick()
    manual.finish(2)
    run = manual.report.kicks.run
    assert run is not None
    assert run.ended is not None
    assert (run.number, run.result, run.rows, run.started <= run.ended) == (2, Result.DONE, 1, True)
    counters = manual.report.edges[0].counters
    assert (counters.copied, counters.inserted, counters.transactions) == (2, 1, 1)
    assert (manual.report.kicks.runs_done, manual.report.kicks.runs_failed) == (2, 0)


def test_kicks_during_a_run_are_one_run_more_which_has_what_came_meanwhile(start: Start) -> None:
    manual = start()
    manual.insert(1)
    assert manual.hold_back_a_run() == 1
    manual.insert(2)
    assert [manual.runner.kick(), manual.runner.kick()] == [2, 2]
    manual.target.gate.set()
    manual.finish(2)
    assert manual.ids == [1, 2]
    manual.wait_for_states(State.RESTING)
    assert manual.report.kicks.runs_done == 2


def test_an_error_that_may_pass_is_retried_within_the_run(start: Start) -> None:
    manual = start()
    manual.insert(1)
    manual.target.fail_next("open", ConnectError("away"))
    manual.target.fail_next("commit", ConnectError("gone"))
    manual.source.faults.append(ConnectError("the source too"))
    manual.runner.kick()
    manual.finish(1)
    assert manual.ids == [1]
    assert manual.report.problem is None
    assert manual.report.edges[0].problem is None
    assert manual.report.edges[0].counters.retries == 2


def test_a_run_with_a_permanent_error_has_failed_and_says_why_and_the_next_kick_tries_again(start: Start) -> None:
    manual = start()
    manual.insert(1)
    manual.target.fail_next("open", SlotError("wrong slot", "start over"))
    manual.runner.kick()
    wait_for(lambda: manual.report.kicks.ended == 1, "the run to end")
    report = manual.report
    assert (report.kicks.done, report.kicks.runs_failed, report.edges[0].state) == (0, 1, State.FAILED)
    assert report.edges[0].problem is not None
    assert report.edges[0].problem.message == "wrong slot"
    assert report.kicks.run is not None
    assert report.kicks.run.result is Result.FAILED
    assert manual.runner.kick() == 2
    manual.finish(2)
    assert manual.ids == [1]
    assert manual.states == [State.RESTING, State.RESTING]


# -- paused ----------------------------------------------------------------------------------------------------------------------


def test_a_pause_finishes_the_group_in_hand(start: Start) -> None:
    manual = start()
    manual.insert(1)
    manual.hold_back_a_run()
    manual.runner.pause()
    assert manual.report.paused
    manual.target.gate.set()
    manual.wait_for_states(State.PAUSED)
    assert manual.ids == [1]
    assert manual.source.confirmed == manual.source.end
    assert manual.report.kicks.done == 1  # there was no more to do


def test_resume_goes_on_with_a_run_that_the_pause_broke_off(start: Start) -> None:
    manual = start()
    manual.insert(1)
    for _ in range(20):
        manual.target.fail_next("open", ConnectError("away"))
    manual.runner.kick()
    wait_for(lambda: manual.report.edges[0].problem, "the target to be away")
    manual.runner.pause()
    manual.wait_for_states(State.PAUSED)
    assert manual.report.kicks.ended == 0
    manual.target.forget_faults()
    manual.insert(2)
    manual.runner.resume()
    manual.finish(1)
    assert manual.ids == [1, 2]
    assert not manual.report.paused


def test_a_resume_before_the_pause_was_through_goes_on_too(start: Start) -> None:
    manual = start()
    manual.insert(1)
    manual.hold_back_a_run()
    manual.runner.pause()
    manual.runner.resume()
    manual.target.gate.set()
    manual.finish(1)
    assert manual.ids == [1]


def test_a_kick_of_a_paused_stream_is_refused(start: Start) -> None:
    manual = start()
    manual.runner.pause()
    manual.wait_for_states(State.PAUSED)
    with pytest.raises(UsageError, match='sync "shop" is paused; run: streamer resume shop'):
        manual.runner.kick()
    assert manual.source.sessions == []


def test_a_paused_stream_can_be_stopped(start: Start) -> None:
    manual = start()
    manual.runner.pause()
    manual.stop()


# -- by the clock ----------------------------------------------------------------------------------------------------------------


def test_an_interval_begins_runs_by_itself_but_not_while_paused(start: Start) -> None:
    hourly = start(interval=3600)
    hourly.insert(1)
    hourly.finish(1)
    hourly.insert(2)
    hourly.clock.now = 3601.0
    hourly.finish(2)
    assert hourly.ids == [1, 2]
    hourly.runner.pause()
    hourly.clock.now = 3 * 3600.0
    assert hourly.report.kicks.next is None
    hourly.runner.resume()
    assert hourly.report.kicks.next is not None
    assert hourly.report.kicks.asked == 2
    hourly.clock.now = 4 * 3600.0
    hourly.finish(3)


# -- continuous ------------------------------------------------------------------------------------------------------------------


def test_a_kick_of_a_continuous_stream_is_done_when_it_has_what_was_committed_by_then(start: Start) -> None:
    live = start(continuous=True)
    live.insert(1)
    wait_for_equal(lambda: live.ids, [1], "the row")
    live.insert(2)
    number = live.runner.kick()
    live.finish(number)
    assert live.ids == [1, 2]
    assert live.report.state is State.STREAMING


def test_a_quiet_source_does_not_keep_a_kick_waiting(start: Start) -> None:
    live = start(continuous=True)
    live.insert(1)
    wait_for(lambda: live.source.confirmed == live.source.end, "the row to be confirmed")
    live.source.quiet = True  # like a server: it tells a position once, and not urgently
    live.source.end = LSN(live.source.end + 50)  # WAL of others
    wait_for(lambda: live.source.told == live.source.end, "the position to be told")
    assert live.source.confirmed < live.source.end
    live.finish(live.runner.kick())
    wait_for(lambda: live.source.confirmed == live.source.end, "the position to be confirmed")


def test_a_kick_of_a_continuous_stream_whose_target_has_failed_for_good_fails(start: Start) -> None:
    live = start(continuous=True)
    live.target.fail_next("write", SlotError("wrong", "start over"))
    live.insert(1)
    number = live.runner.kick()
    wait_for(lambda: live.report.kicks.ended == number, "the kick to be answered")
    assert live.report.kicks.done == 0


def test_a_continuous_stream_is_paused_and_resumed_and_the_kick_is_answered_then(start: Start) -> None:
    live = start(continuous=True)
    live.insert(1)
    wait_for_equal(lambda: live.ids, [1], "the row")
    live.target.gate.clear()
    live.insert(2)
    number = live.runner.kick()
    live.runner.pause()
    live.target.gate.set()
    live.wait_for_states(State.PAUSED)
    assert live.target.writers == set()
    live.insert(3)
    live.runner.resume()
    live.finish(number)
    wait_for_equal(lambda: live.ids, [1, 2, 3], "all rows")


def test_a_stream_that_failed_for_good_begins_anew_after_pause_and_resume(start: Start) -> None:
    live = start(continuous=True)
    live.target.fail_next("write", SlotError("wrong", "start over"))
    live.insert(1)
    wait_for(lambda: live.report.edges[0].state is State.FAILED, "the edge to fail")
    live.runner.pause()
    live.wait_for_states(State.PAUSED)
    live.runner.resume()
    wait_for_equal(lambda: live.ids, [1], "the row")


def test_a_kick_asks_a_source_that_is_away_and_says_so(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    live = start(continuous=True)
    live.wait_for_states(State.STREAMING)

    def away() -> None:
        raise ConnectError("away")

    monkeypatch.setattr(live.source, "state", away)
    with pytest.raises(ConnectError, match="away"):
        live.runner.kick()
    assert live.report.kicks.asked == 0

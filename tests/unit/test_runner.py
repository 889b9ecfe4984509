"""A stream that is kicked, paused and resumed, over memory: when it reads, what it says of itself, and what it lets go of."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from streamer.errors import ConnectError, SlotError, TakenError, UsageError
from streamer.model import LSN
from streamer.report import Result, State
from tests.unit.running import NAME, Running
from tests.waiting import wait_for, wait_for_equal

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


def test_a_hastened_stream_notes_how_far_it_is_and_nobody_is_told(start: Start) -> None:
    live = start(continuous=True)
    live.source.quiet = True
    live.source.end = LSN(live.source.end + 50)  # WAL of others
    wait_for(lambda: live.source.told == live.source.end, "the position to be told")
    assert live.source.confirmed < live.source.end
    live.runner.hasten()
    wait_for(lambda: live.source.confirmed == live.source.end, "the position to be confirmed")
    assert (live.report.kicks.asked, live.report.kicks.done) == (0, 0)


def test_what_rests_between_its_runs_is_not_hastened_so_that_no_run_is_made_longer(start: Start) -> None:
    manual = start()
    manual.insert(1)
    number = manual.hold_back_a_run()
    goal = manual.source.end
    manual.source.end = LSN(goal + 50)  # WAL of others
    manual.runner.hasten()
    manual.target.gate.set()
    manual.finish(number)
    manual.wait_for_states(State.RESTING)
    assert (manual.ids, manual.source.confirmed) == ([1], goal)


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


# -- held and given up -----------------------------------------------------------------------------------------------------------


def test_a_run_that_is_held_begins_when_it_is_let_go(start: Start) -> None:
    obstacles = ["too much WAL"]
    manual = start(held=lambda: obstacles[0])
    manual.insert(1)
    manual.runner.kick()
    assert (manual.report.held, manual.report.state, manual.source.sessions) == ("too much WAL", State.RESTING, [])
    obstacles[0] = ""
    manual.finish(1)
    assert (manual.ids, manual.report.held) == ([1], "")


def test_a_stream_that_never_rests_is_not_held(start: Start) -> None:
    live = start(continuous=True, held=lambda: "too much WAL")
    live.insert(1)
    wait_for_equal(lambda: live.ids, [1], "the row")
    assert live.report.held == ""


@pytest.mark.parametrize("continuous", [True, False])
def test_a_stream_that_is_given_up_fails_with_the_reason_until_it_is_resumed(start: Start, continuous: bool) -> None:
    given_up = start(continuous=continuous)
    given_up.runner.give_up(SlotError("its slot was dropped", "start over"))
    given_up.wait_for_states(State.FAILED)
    problem = given_up.report.problem
    assert problem is not None
    assert (problem.message, problem.hint) == ("its slot was dropped", "start over")
    with pytest.raises(UsageError, match="its slot was dropped; start over"):
        given_up.runner.kick()
    given_up.runner.resume()
    given_up.insert(1)
    given_up.runner.kick()
    wait_for_equal(lambda: given_up.ids, [1], "the row")


# -- standby ---------------------------------------------------------------------------------------------------------------------


def test_an_edge_that_another_daemon_writes_stands_by_and_takes_over_soon_without_counting_failures(start: Start) -> None:
    live = start(continuous=True, setup=lambda target: [target.fail_next("open", TakenError("taken")) for _ in range(2)])
    live.insert(1)
    wait_for(lambda: live.states == [State.STANDBY, State.STANDBY], "the stream to stand by")
    wait_for_equal(lambda: live.ids, [1], "the row after the takeover")
    live.wait_for_states(State.STREAMING)
    assert (live.report.edges[0].problem, live.report.edges[0].counters.retries) == (None, 0)

"""When streams run, by a clock that stands where the test puts it."""

from __future__ import annotations

from streamer.model import LSN
from streamer.report import Result
from streamer.schedule import Continuous, Resting


def run(schedule: Resting, now: float, result: Result = Result.DONE) -> None:
    assert schedule.is_due(now)
    schedule.begin()
    schedule.end(result, now)


# -- at rest ---------------------------------------------------------------------------------------------------------------------


def test_a_manual_stream_runs_only_when_kicked() -> None:
    schedule = Resting(None, 0.0)
    assert not schedule.is_due(1_000_000.0)
    assert schedule.next_at(0.0) is None
    assert schedule.kick() == 1
    run(schedule, 0.0)
    assert not schedule.is_due(1_000_000.0)


def test_kicks_at_rest_ask_for_one_run() -> None:
    schedule = Resting(None, 0.0)
    assert [schedule.kick(), schedule.kick(), schedule.kick()] == [1, 1, 1]
    run(schedule, 0.0)
    assert not schedule.is_due(0.0)
    assert (schedule.answers.done, schedule.answers.ended) == (1, 1)


def test_kicks_during_a_run_ask_for_one_more() -> None:
    schedule = Resting(None, 0.0)
    schedule.kick()
    schedule.begin()
    assert [schedule.kick(), schedule.kick()] == [2, 2]
    schedule.end(Result.DONE, 0.0)
    assert (schedule.answers.done, schedule.answers.asked) == (1, 2)
    run(schedule, 0.0)
    assert not schedule.is_due(0.0)
    assert schedule.answers.done == 2


def test_a_run_that_fails_is_answered_and_not_repeated_by_itself() -> None:
    schedule = Resting(None, 0.0)
    schedule.kick()
    run(schedule, 0.0, Result.FAILED)
    assert not schedule.is_due(0.0)
    assert (schedule.answers.done, schedule.answers.ended) == (0, 1)
    assert schedule.kick() == 2


def test_a_run_that_is_broken_off_is_made_up_for() -> None:
    schedule = Resting(None, 0.0)
    schedule.kick()
    schedule.begin()
    schedule.break_off()
    assert schedule.answers.ended == 0
    run(schedule, 0.0)
    assert schedule.answers.done == 1


def test_what_was_asked_for_during_a_run_that_is_broken_off_is_done_by_the_next() -> None:
    schedule = Resting(None, 0.0)
    schedule.kick()
    schedule.begin()
    assert schedule.kick() == 2
    schedule.break_off()
    run(schedule, 0.0)
    assert schedule.answers.done == 2
    assert not schedule.is_due(0.0)


# -- by the clock ----------------------------------------------------------------------------------------------------------------


def test_an_interval_begins_with_a_run_at_once() -> None:
    schedule = Resting(600, 100.0)
    run(schedule, 100.0)
    assert schedule.next_at(100.0) == 700.0
    assert not schedule.is_due(699.9)
    assert schedule.is_due(700.0)


def test_runs_by_the_clock_do_not_drift() -> None:
    schedule = Resting(10, 0.0)
    began = []
    for tenth in range(1000):
        now = tenth / 10 + 0.05  # whoever looks is always a little late
        if schedule.is_due(now):
            began.append(int(now))
            schedule.begin()
            schedule.end(Result.DONE, now + 3)
    assert began == list(range(0, 100, 10))


def test_times_that_pass_during_a_run_do_not_pile_up() -> None:
    schedule = Resting(10, 0.0)
    assert schedule.is_due(0.0)
    schedule.begin()
    schedule.end(Result.DONE, 35.0)
    assert not schedule.is_due(39.9)
    assert schedule.is_due(40.0)


def test_times_that_pass_while_nobody_looks_are_one_run() -> None:
    schedule = Resting(10, 0.0)
    run(schedule, 1234.5)
    assert not schedule.is_due(1239.9)
    assert schedule.next_at(1234.5) == 1240.0


def test_times_that_pass_during_a_pause_are_passed_over() -> None:
    schedule = Resting(10, 0.0)
    run(schedule, 0.0)
    schedule.pass_over(25.0)
    assert not schedule.is_due(25.0)
    assert schedule.is_due(30.0)


def test_a_kick_does_not_move_the_times() -> None:
    schedule = Resting(10, 0.0)
    run(schedule, 0.0)
    schedule.kick()
    run(schedule, 7.0)
    assert schedule.next_at(7.0) == 10.0


def test_asking_for_the_next_time_does_not_make_it_pass() -> None:
    schedule = Resting(10, 0.0)
    run(schedule, 0.0)
    assert schedule.next_at(10.5) == 20.0
    assert schedule.is_due(10.5)


# -- without rest ----------------------------------------------------------------------------------------------------------------


def test_a_continuous_stream_begins_by_itself_and_once() -> None:
    schedule = Continuous()
    assert schedule.is_due(0.0)
    schedule.begin()
    schedule.end(Result.FAILED, 0.0)
    assert not schedule.is_due(0.0)
    schedule.break_off()
    assert schedule.is_due(0.0)


def test_kicks_of_a_continuous_stream_are_answered_in_order_as_it_gets_there() -> None:
    schedule = Continuous()
    assert [schedule.kick(LSN(10)), schedule.kick(LSN(20)), schedule.kick(LSN(20))] == [1, 2, 3]
    assert schedule.goal == 20
    schedule.settle(lambda goal: goal <= 10, failed=False)
    assert (schedule.answers.done, schedule.answers.ended) == (1, 1)
    schedule.settle(lambda goal: goal <= 20, failed=False)
    assert schedule.answers.done == 3
    assert schedule.goal is None


def test_kicks_of_a_continuous_stream_that_has_failed_fail() -> None:
    schedule = Continuous()
    schedule.kick(LSN(10))
    schedule.kick(LSN(20))
    schedule.settle(lambda goal: goal <= 10, failed=True)
    assert (schedule.answers.done, schedule.answers.ended) == (1, 2)

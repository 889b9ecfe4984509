"""Steps are taken in order; what fails or is interrupted is undone in reverse, as far as that is possible."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from streamer.admin.steps import BrokenOffStep, Step, Undo, plan, take
from streamer.errors import SourceError, StreamerError


class Rehearsal:
    """Steps that note what they do, and what was said of it."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.said: list[str] = []

    def step(self, name: str, *, fails: BaseException | None = None, undo: BaseException | bool | None = True) -> Step:
        way_back = None if undo is None else Undo(f"{name} is back", f"UNDO {name}", self._note(f"undo {name}", undo))
        return Step(f"do {name}", lambda: self._note(f"do {name}", fails)() or f"{name} is done", way_back)

    def _note(self, what: str, fails: BaseException | bool | None) -> Callable[[], None]:
        def act() -> None:
            self.done.append(what)
            if isinstance(fails, BaseException):
                raise fails

        return act


def test_steps_are_taken_in_order_and_each_but_the_last_is_told_with_its_undo() -> None:
    rehearsal = Rehearsal()
    take([rehearsal.step("a"), rehearsal.step("b")], rehearsal.said.append)
    assert rehearsal.done == ["do a", "do b"]
    assert rehearsal.said == ["1/2 do a", "    a is done", "    undo: UNDO a", "2/2 do b", "    b is done"]


def test_a_failure_undoes_what_was_begun_the_last_first() -> None:
    rehearsal = Rehearsal()
    steps = [rehearsal.step("a"), rehearsal.step("b", undo=None), rehearsal.step("c", fails=SourceError("it is full", "empty it"))]
    with pytest.raises(BrokenOffStep) as broken:
        take([*steps, rehearsal.step("d")], rehearsal.said.append)
    assert rehearsal.done == ["do a", "do b", "do c", "undo c", "undo a"]
    assert rehearsal.said[-3:] == ["    failed: it is full", "undone 3: c is back", "undone 1: a is back"]
    assert str(broken.value) == "step 3 of 4 failed: it is full; what was done is undone; empty it"


def test_an_interruption_undoes_too_and_stays_one() -> None:
    rehearsal = Rehearsal()
    with pytest.raises(KeyboardInterrupt):
        take([rehearsal.step("a"), rehearsal.step("b", fails=KeyboardInterrupt())], rehearsal.said.append)
    assert rehearsal.done == ["do a", "do b", "undo b", "undo a"]
    assert "    failed: interrupted" in rehearsal.said


def test_an_undo_that_fails_is_told_as_a_statement_and_the_others_are_undone() -> None:
    rehearsal = Rehearsal()
    steps = [
        rehearsal.step("a"),
        rehearsal.step("b", undo=StreamerError("it is gone")),
        rehearsal.step("c", fails=SourceError("no")),
    ]
    with pytest.raises(BrokenOffStep, match="not everything could be undone"):
        take(steps, rehearsal.said.append)
    assert rehearsal.done[-3:] == ["undo c", "undo b", "undo a"]
    assert rehearsal.said[-3:] == ["NOT undone 2 (b is back): it is gone", "    do it by hand: UNDO b", "undone 1: a is back"]


def test_a_plan_numbers_the_steps_and_tells_how_each_is_undone() -> None:
    rehearsal = Rehearsal()
    assert plan([rehearsal.step("a"), rehearsal.step("b")]) == ["1. do a", "   undo: UNDO a", "2. do b"]

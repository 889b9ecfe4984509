"""Steps that are taken in order, and undone in reverse if one fails or a person interrupts. Pure: what a step does is given.

Each step is told when it begins, with what came of it, and with the statement that undoes it, so that a person could do that too;
only the last is not, for nothing comes after it that could fail. A step counts as begun before it acts: one that was broken off
halfway is undone as well, so its undo must do no harm if nothing was done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from streamer.errors import StreamerError


@dataclass(frozen=True, slots=True)
class Undo:
    """How a step is taken back."""

    #: what becomes of it, for people
    title: str
    #: the statement by which a person does it
    by_hand: str
    #: does it; raises StreamerError
    act: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do."""

    #: for people, without a full stop
    title: str
    #: does it, and returns what came of it; raises StreamerError
    act: Callable[[], str]
    #: None if there is nothing to take back
    undo: Undo | None = None


class BrokenOffStep(StreamerError):
    """A step has failed; what was done before is undone, as far as that was possible."""

    def __init__(self, error: StreamerError, number: int, of: int, *, undone: bool) -> None:
        state = "what was done is undone" if undone else "not everything could be undone, see above"
        super().__init__(f"step {number} of {of} failed: {error.message}; {state}", error.hint)


def plan(steps: Sequence[Step]) -> list[str]:
    """Return the steps as lines for people."""
    lines = []
    for number, step in enumerate(steps, 1):
        lines.append(f"{number}. {step.title}")
        if step.undo is not None and number < len(steps):
            lines.append(f"   undo: {step.undo.by_hand}")
    return lines


def take(
    steps: Sequence[Step], say: Callable[[str], None], undisturbed: Callable[[], AbstractContextManager[object]] = nullcontext
) -> None:
    """Take all steps; after any failure undo those begun, the last first, within `undisturbed`.

    Raises BrokenOffStep for a StreamerError of a step; whatever else ends a step (Ctrl-C) is raised as it is, after the undoing.
    """
    begun: list[tuple[int, Step]] = []
    try:
        for number, step in enumerate(steps, 1):
            say(f"{number}/{len(steps)} {step.title}")
            begun.append((number, step))
            say(f"    {step.act()}")
            if step.undo is not None and number < len(steps):
                say(f"    undo: {step.undo.by_hand}")
    except BaseException as error:
        with undisturbed():
            failed, _ = begun[-1]
            reason = error.message if isinstance(error, StreamerError) else "interrupted"
            say(f"    failed: {reason}")
            undone = _undo(begun, say)
        if isinstance(error, StreamerError):
            raise BrokenOffStep(error, failed, len(steps), undone=undone) from error
        raise


def _undo(begun: Sequence[tuple[int, Step]], say: Callable[[str], None]) -> bool:
    """Undo the steps, the last first; one that cannot be does not keep the others from it. Return whether all were."""
    whole = True
    for number, step in reversed(begun):
        if step.undo is None:
            continue
        try:
            step.undo.act()
            say(f"undone {number}: {step.undo.title}")
        except StreamerError as error:
            whole = False
            say(f"NOT undone {number} ({step.undo.title}): {error.message}")
            say(f"    do it by hand: {step.undo.by_hand}")
    return whole

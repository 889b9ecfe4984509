"""Conflict policies of the user's own: `python:package.module:function`.

The function is given a Dispute and answers "incoming", "current", or a mapping with a value for every column that the rows have:
the row that takes the place of both. It runs in a thread, so that one which never ends does not stop the stream without a word.

The trap: a thread cannot be killed. A function that takes too long goes on in the background, its answer is thrown away; what it
needs from outside it should ask for with a timeout of its own.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

from streamer.sinks import functions
from streamer.sinks.conflict import Answer, Dispute, Handler, HandlerError


def load(policy: str, timeout: float) -> Handler:
    """Return the function of a `python:` policy; calls of it raise HandlerError for whatever is wrong, and after `timeout` seconds.

    Raises ConfigError if there is no such function.
    """
    function = functions.find(policy, f'conflict policy "{policy}"', "a Dispute")

    def handler(dispute: Dispute) -> Answer:
        return _checked(_call(function, dispute, timeout), dispute)

    return handler


def _call(function: Callable[[Dispute], Any], dispute: Dispute, timeout: float) -> object:
    """Return what the function answers in time."""
    answers: queue.SimpleQueue[tuple[object, Exception | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((function(dispute), None))
        except Exception as error:
            answers.put((None, error))

    threading.Thread(target=run, name="conflict-handler", daemon=True).start()
    try:
        answer, error = answers.get(timeout=timeout)
    except queue.Empty:
        raise HandlerError(f"it did not answer within {timeout:g} seconds") from None
    if error is not None:
        raise HandlerError(f"it raised {functions.told(error)}") from error
    return answer


def _checked(answer: object, dispute: Dispute) -> Answer:
    if isinstance(answer, Mapping):
        return _checked_row(answer, dispute)
    if isinstance(answer, str) and answer in ("incoming", "current"):
        return "incoming" if answer == "incoming" else "current"
    raise HandlerError(f'it answered {_short(answer)}; an answer is "incoming", "current" or a row as a mapping')


def _checked_row(answer: Mapping[Any, Any], dispute: Dispute) -> Mapping[str, str | None]:
    columns = {*(dispute.current or ()), *(dispute.incoming or ())}
    if unknown := answer.keys() - columns:
        raise HandlerError(f"it answered with a column that {dispute.table} does not have: {_short(min(unknown, key=str))}")
    if missing := columns - answer.keys():
        raise HandlerError(f'it answered with a row that lacks the column "{min(missing)}"')
    for name, value in answer.items():
        if value is not None and not isinstance(value, str):
            raise HandlerError(
                f'it answered with {type(value).__name__} in the column "{name}"; values are text as PostgreSQL writes it, or None'
            )
    return answer


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"

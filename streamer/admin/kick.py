"""`streamer kick`, `pause` and `resume`: what a person or a script asks of the running daemon, and what came of it.

The trap: numbers of kicks begin anew with every daemon, so whoever waits looks whether it is still the one that was asked.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from streamer.admin.daemon_client import ask_status, tell
from streamer.admin.nodes import Say, chosen_syncs
from streamer.admin.printing import counted
from streamer.config import Config
from streamer.errors import StreamerError, UsageError
from streamer.report import State

POLL_SECONDS: Final = 0.1
PAUSE_SECONDS: Final = 15.0
"""How long `pause` waits for the group in hand; a stream breaks off what takes longer."""

DONE: Final = 0
TIMED_OUT: Final = 1
FAILED: Final = 2
"""Exit codes of `kick`."""

Stream = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Kick:
    """What was asked of which daemon."""

    sync: str
    #: when the daemon started
    started: str
    #: the number for each source
    numbers: Mapping[str, int]

    def has_ended(self, stream: Stream) -> bool:
        """Whether the stream has answered it."""
        return bool(stream["kicks"]["ended"] >= self.numbers[stream["source"]])

    def is_done(self, stream: Stream) -> bool:
        """Whether it went well."""
        return bool(stream["kicks"]["done"] >= self.numbers[stream["source"]])


def kick(config: Config, sync: str, wait: float | None, say: Say) -> tuple[int, Sequence[StreamerError]]:
    """Let a sync catch up with what is committed on its sources by now, and wait up to so many seconds for the end of that.

    Return the exit code and what went wrong. Raises UsageError if the daemon is not there or refuses.
    """
    chosen_syncs(config, sync)
    answer = tell(config, sync, "kick")
    asked = _Kick(sync, answer["started"], answer["kicks"])
    if wait is None:
        say(f'sync "{sync}" was kicked; how it goes: streamer status')
        return DONE, []
    deadline = time.monotonic() + wait
    while True:
        streams = _look(config, asked)
        if all(asked.has_ended(stream) for stream in streams):
            return _tell_end(asked, streams, say)
        if time.monotonic() >= deadline:
            reason = f'sync "{sync}" was not done after {wait:g} s, and goes on; {_doing(asked, streams)}'
            return TIMED_OUT, [StreamerError(reason, "see: streamer status"), *_problems(streams)]
        time.sleep(POLL_SECONDS)


def _look(config: Config, asked: _Kick) -> list[Stream]:
    """The streams that were kicked, as they are now. Raises UsageError if the daemon has ended, or another one runs instead."""
    answer = ask_status(config)
    if answer is None or answer["started"] != asked.started:
        raise UsageError(f'the daemon ended before sync "{asked.sync}" was done', "start it: streamer run, and kick again")
    return [s for s in answer["streams"] if s["sync"] == asked.sync and s["source"] in asked.numbers]


def _tell_end(asked: _Kick, streams: Sequence[Stream], say: Say) -> tuple[int, Sequence[StreamerError]]:
    if not all(asked.is_done(stream) for stream in streams):
        reason = StreamerError(f'sync "{asked.sync}" has failed', "see: streamer status")
        return FAILED, _problems(streams) or [reason]
    runs = [run for stream in streams if (run := stream["kicks"]["run"])]
    rows = f": {counted(sum(run['rows'] for run in runs), 'row')}" if runs else ""
    say(f'sync "{asked.sync}" is done{rows}')
    return DONE, []


def _doing(asked: _Kick, streams: Sequence[Stream]) -> str:
    """What those do that have not ended."""
    states = [(s["source"], edge["target"], edge["state"]) for s in streams if not asked.has_ended(s) for edge in s["edges"]]
    return ", ".join(f"{source} -> {target} is {state}" for source, target, state in states)


def _problems(streams: Sequence[Stream]) -> list[StreamerError]:
    """What streams and edges complain of, the same only once."""
    found = [p for stream in streams for p in (stream["problem"], *(edge["problem"] for edge in stream["edges"])) if p]
    return [StreamerError(message, hint) for message, hint in dict.fromkeys((p["message"], p["hint"]) for p in found)]


def pause(config: Config, sync: str, say: Say) -> None:
    """Stop a sync once the group in hand is written. Raises UsageError if the daemon is not there or refuses."""
    chosen_syncs(config, sync)
    tell(config, sync, "pause")
    deadline = time.monotonic() + PAUSE_SECONDS
    while not (paused := _is_paused(config, sync)) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    ended = "is paused" if paused else "will be paused as soon as its targets answer"
    say(f'sync "{sync}" {ended}; to go on: streamer resume {sync}')


def _is_paused(config: Config, sync: str) -> bool:
    answer = ask_status(config)
    return answer is None or all(s["state"] == State.PAUSED for s in answer["streams"] if s["sync"] == sync)


def resume(config: Config, sync: str, say: Say) -> None:
    """Let a sync go on after a pause. Raises UsageError if the daemon is not there or refuses."""
    chosen_syncs(config, sync)
    tell(config, sync, "resume")
    say(f'sync "{sync}" goes on')

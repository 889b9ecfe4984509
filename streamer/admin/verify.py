"""`streamer verify`: are the tables of a sync equal on source and target, while both are written?

Every target is compared with the first of the sync's sources that has an edge to it; with several sources the others are targets.
What is done with the answer is here: printed, or mended after a question.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from typing import Any, Final

from streamer.admin import kick
from streamer.admin.arguments import table_name
from streamer.admin.cutover_route import ways_back
from streamer.admin.daemon_client import ask_status, tell
from streamer.admin.draining import drain
from streamer.admin.interrupts import interruptible, undisturbed
from streamer.admin.nodes import Say, chosen_syncs
from streamer.admin.printing import counted, print_table
from streamer.admin.status import status
from streamer.admin.status_table import RESUME, proof
from streamer.config import Config
from streamer.errors import StreamerError, UsageError
from streamer.model import EdgeName
from streamer.report import State
from streamer.verify.candidates import Difference
from streamer.verify.pairs import Compared
from streamer.verify.proofs import Told, to_body
from streamer.verify.repair import repair, require_one_source
from streamer.verify.tables import SHOWN, Manner, Repair, Verified, Wanted, compare_edge, edges_of, equal, told_row

ASK_SECONDS: Final = 1.0
WAIT_SECONDS: Final = 60.0
_STUCK: Final = (State.RETRYING, State.FAILED, State.PAUSED, State.STOPPED)


def wanted(sync: str, tables: Sequence[str], target: str | None, limit: int, wait: float) -> Wanted:
    """Return what the options of the command say."""
    return Wanted(sync, tuple(map(table_name, tables)), target, limit, wait)


def verify(
    config: Config, what: Wanted, mend: Repair | None = None, hurry: Callable[[str], object] | None = None
) -> Iterator[Verified]:
    """Compare, and give each table when it is done; `hurry` has the daemon make progress durable (default: over HTTP).

    Raises UsageError if nothing is there to be compared, StreamerError.
    """
    chosen_syncs(config, what.sync)
    manner = Manner(hurry or partial(_kick, config), trouble=Trouble(config) if hurry is None else lambda edge: "", mend=mend)
    seen = set()
    for edge in edges_of(config, what):
        for one in _remembered(config, edge, what, manner) if hurry is None else compare_edge(config, edge, what, manner):
            seen.add(one.table)
            yield one
    if missing := [table for table in what.tables if str(table) not in seen]:
        raise UsageError(f'sync "{what.sync}" has no table "{missing[0]}"', f"see: streamer tables --sync {what.sync}")


def _remembered(config: Config, edge: EdgeName, what: Wanted, manner: Manner) -> Iterator[Verified]:
    """Compare, and tell the daemon in the end, whatever came of it: this is what `cutover` and `status` know later. Where no
    daemon runs nobody keeps it.
    """
    found: list[Verified] = []
    whole = False
    try:
        for one in compare_edge(config, edge, what, manner):
            found.append(replace(one, keys=[]))
            yield one
        whole = not what.tables
    finally:
        with suppress(UsageError):
            tell(config, edge.sync, "verified", to_body(Told(edge, whole, found)))


def _kick(config: Config, sync: str) -> None:
    tell(config, sync, "kick")


class Trouble:
    """Why an edge does not get on, as the daemon tells it; asked once a second."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._told: dict[EdgeName, str] = {}
        self._asked = 0.0

    def __call__(self, edge: EdgeName) -> str:
        """Return it for people; empty if there is none, or no daemon answers."""
        if time.monotonic() > self._asked + ASK_SECONDS:
            with suppress(UsageError):
                answer = ask_status(self._config) or {"streams": []}
                edges = [(stream, edge) for stream in answer["streams"] for edge in stream["edges"]]
                self._told = {EdgeName(s["sync"], s["source"], e["target"]): _trouble(s, e) for s, e in edges}
            self._asked = time.monotonic()
        return self._told.get(edge, "")


def _trouble(stream: Mapping[str, Any], edge: Mapping[str, Any]) -> str:
    stuck = [part for part in (stream, edge) if part["state"] in _STUCK]
    if any(part["state"] == State.PAUSED for part in stuck):
        return f"it is paused, to go on: {RESUME.format(sync=stream['sync'])}"
    return " and ".join(f"it is {part['state']}" + (f": {p['message']}" if (p := part["problem"]) else "") for part in stuck[:1])


def proven(config: Config, sync: str, say: Say) -> bool:
    """Say what the running daemon has proven of a sync that it compares all the time; return whether that is all, and
    nothing differs.

    Raises UsageError if it does not, or no daemon answers.
    """
    chosen_syncs(config, sync)
    found = status(config)
    if not found.running:
        raise UsageError("no daemon answers", "start it: streamer run")
    proofs = [(line, p) for line in found.edges if line.sync == sync and (p := line.proof) is not None and p["continuous"]]
    if not proofs:
        raise UsageError(
            f'the daemon does not compare sync "{sync}" all the time',
            f'set verify = "continuous" in [syncs.{sync}], and restart it; or leave out --continuous',
        )
    for line, of in proofs:
        for told in proof(sync, of):
            say(f"{sync}: {line.source} -> {line.target}: {told}")
    return not any(of["different"] or of["problem"] or not of["since"] for _, of in proofs)


# -- mending -----------------------------------------------------------------------------------------------------------------------


class Mender:
    """Shows what would be written, asks, and writes it while the sync is paused. `confirm` is called with what is shown.

    The trap: with a sync that goes the other way, what clients have written on the target is on its way to the source, and looks
    like a row that differs. It must have arrived (in `wait` seconds) before the source is asked for the last time.
    """

    def __init__(
        self, config: Config, sync: str, confirm: Callable[[Sequence[str]], bool], say: Say, wait: float = WAIT_SECONDS
    ) -> None:
        require_one_source(config, sync)
        self._config = config
        self._wait = wait
        self._confirm = confirm
        self._say = say

    def __call__(self, edge: EdgeName, compared: Compared, differences: Sequence[Difference]) -> int:
        """Mend a table; return how many rows were written, 0 if nobody wants that. Raises StreamerError."""
        lines = [f'table "{compared.table}" on "{edge.target}":']
        lines += [f"  {_ACTIONS[d.kind]} {_named(told_row(compared, d))}" for d in differences[:SHOWN]]
        if len(differences) > SHOWN:
            lines.append(f"  and {counted(len(differences) - SHOWN, 'row')} more")
        if not self._confirm(lines):
            return 0
        self._let_arrive(edge)
        with self._at_rest(edge.sync):
            done = repair(self._config, edge, compared, differences)
        self._say(f'table "{compared.table}" on "{edge.target}": {counted(done, "row")} of {len(differences)} mended')
        if done < len(differences):
            self._say("the others have changed on the source meanwhile: run streamer verify again")
        return done

    def _let_arrive(self, edge: EdgeName) -> None:
        """Bring the source all that is written on the target, if a sync does that. Raises StreamerError if it cannot."""
        for back in ways_back(self._config, edge):
            try:
                drain(self._config, back, self._wait)
            except StreamerError as problem:
                raise StreamerError(
                    f'what was written on "{back.source}" goes to "{back.target}" by sync "{back.sync}", and has not arrived, so '
                    f"nothing is repaired, which would undo it: {problem.message}",
                    problem.hint,
                ) from problem

    @contextmanager
    def _at_rest(self, sync: str) -> Iterator[None]:
        """Pause the sync, if a daemon runs it."""
        answer = ask_status(self._config)
        ours = [s for s in answer["streams"] if s["sync"] == sync] if answer else []
        if all(stream["state"] == State.PAUSED for stream in ours):
            yield
            return
        with interruptible():
            try:
                kick.pause(self._config, sync, self._say)
                yield
            except BaseException:
                with undisturbed(), suppress(StreamerError):  # the daemon has ended, and no sync is paused
                    kick.resume(self._config, sync, self._say)
                raise
            with undisturbed():
                kick.resume(self._config, sync, self._say)


_ACTIONS: Final = {"missing": "insert", "extra": "delete", "different": "update"}


# -- printing ----------------------------------------------------------------------------------------------------------------------


def print_verified(found: Sequence[Verified], *, as_json: bool) -> None:
    """Print a line for each table, and below them what differs."""
    if as_json:
        document = {"equal": equal(found), "tables": [asdict(one) for one in found]}
        print(json.dumps(document, indent=2, ensure_ascii=False, default=datetime.isoformat))
        return
    headers = ("sync", "source", "target", "table", "rows", "ranges", "different", "verdict")
    print_table(headers, [_cells(one) for one in found], spare=("sync", "ranges", "source", "rows"))
    for one in found:
        for line in _below(one):
            print(f'{one.sync}: {one.source} -> {one.target}: table "{one.table}": {line}')


def _cells(one: Verified) -> list[str]:
    more = "+" if one.unexplored else ""
    return [
        one.sync, one.source, one.target, one.table, str(one.rows), str(one.ranges), f"{one.different}{more}", one.verdict.value
    ]  # fmt: skip


def _below(one: Verified) -> Iterator[str]:
    if one.problem:
        yield f"{one.problem}; {one.remedy}" if one.remedy else one.problem
    for row in one.keys:
        yield f"{_KINDS[row['kind']]}: {_named(row)}"
    if one.repaired:
        yield f"{counted(one.repaired, 'row')} of {one.different} mended"
    if one.different > len(one.keys):
        yield f"and {counted(one.different - len(one.keys), 'row')} more"
    if one.unexplored:
        yield f"{counted(one.unexplored, 'range')} more differ, and were not looked into"
    if one.undecided:
        yield f"{counted(one.undecided, 'row')} changed at every look, and could not be compared"


def _named(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in row["key"].items())


_KINDS: Final = {"missing": "missing on the target", "extra": "only on the target", "different": "different"}

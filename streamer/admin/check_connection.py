"""`streamer check`, the way to a node: is there a pooler or a balancer between, and does a slot really work.

Both break slots and snapshots: a session must keep its server process, and two sessions must reach the same server. The trap: a
trial slot waits for running transactions like any other, so it gets a deadline.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg

from streamer.admin.findings import Finding, error, ok, warning
from streamer.admin.nodes import APPLICATION
from streamer.capture.diagnose import Diagnosis
from streamer.errors import StreamerError
from streamer.session import Connection, connect, reason_of, version

TRIAL_SECONDS: Final = 5
TEMPORARY_SLOTS: Final = 100000
_MARKED: Final = "default_statistics_target"
"""A setting that everybody may make, and that nothing of ours depends on; before 9.2 there is no room for one of our own."""
MARKS: Final = ("101", "102")
"""What two sessions are told apart by."""
NUMBERS_AS_STRINGS: Final = "numeric-data-types-as-string"
"""An option of wal2json 2.6 and later."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What one connection tells of its other end."""

    #: the server process by the protocol's handshake, and by the server itself
    announced_pid: int
    pid: int
    started: str
    #: what a setting that was made in this session says later on
    remembered: str


def probe_twice(one: Connection, other: Connection) -> tuple[Probe, Probe]:
    """Look at two connections that are open at the same time. Raises psycopg.Error."""
    for value, connection in zip(MARKS, (one, other), strict=True):
        connection.execute(f"SELECT set_config('{_MARKED}', %s, false)", [value])
    return _probe(one), _probe(other)


def _probe(connection: Connection) -> Probe:
    row: Any = connection.execute(
        f"SELECT pg_backend_pid(), pg_postmaster_start_time()::text, current_setting('{_MARKED}')"
    ).fetchone()
    return Probe(connection.info.backend_pid, row[0], row[1], row[2])


def judge_probes(node: str, one: Probe, other: Probe) -> Iterator[Finding]:
    """Yield what stands between us and the server. Pure."""
    remedy = f"name the server itself in nodes.{node}.url, not a pooler or load balancer"
    if one.started != other.started:
        yield error(f'node "{node}"', "two connections reached two different servers", remedy)
    elif one.announced_pid != one.pid or one.pid == other.pid or (one.remembered, other.remembered) != MARKS:
        yield error(f'node "{node}"', "a connection pooler is between: a session does not keep its server process", remedy)


@dataclass(slots=True)
class Trial:
    """What a trial slot showed."""

    findings: list[Finding] = field(default_factory=list)
    #: whether the plugin writes NaN and infinity as null
    loses_nan: bool = False


def try_slot(node: str, url: str, sync: str, plugin: str) -> Trial:
    """Make a temporary slot and drop it: that proves the role's rights, the plugin, and that it works at all.

    Before version 10 there are none, and only the plugin is looked for.
    """
    what, trial = f'node "{node}"', Trial()
    try:
        connect(node, url, application=APPLICATION, replication=True).close()
        with closing(connect(node, url, application=APPLICATION)) as connection:
            diagnosis = Diagnosis(node, sync, f"streamer_check_{os.getpid()}")
            if version(connection) >= TEMPORARY_SLOTS:
                _try_temporary(connection, diagnosis, plugin, trial)
            else:
                _try_loading(connection, diagnosis, plugin, trial)
    except StreamerError as problem:
        trial.findings.append(error(what, problem.message.removeprefix(what).lstrip(": "), problem.hint))
    return trial


def _try_temporary(connection: Connection, diagnosis: Diagnosis, plugin: str, trial: Trial) -> None:
    what = f'node "{diagnosis.node}"'
    try:
        connection.execute(f"SET statement_timeout = '{TRIAL_SECONDS}s'".encode())
        connection.execute("SELECT pg_create_logical_replication_slot(%s, %s, true)", [diagnosis.slot, plugin])
        trial.findings.append(ok(what, f"a trial slot with {plugin} works"))
        trial.loses_nan = plugin == "wal2json" and not _writes_nan(connection, diagnosis.slot)
    except psycopg.errors.QueryCanceled:
        trial.findings.append(
            warning(
                what,
                f"a trial slot was not ready within {TRIAL_SECONDS} s, because a transaction has been open for longer",
                "find it: SELECT pid, xact_start, query FROM pg_stat_activity WHERE backend_xid IS NOT NULL ORDER BY xact_start; "
                "or a prepared one: SELECT gid, prepared, database FROM pg_prepared_xacts",
            )
        )
    except psycopg.Error as problem:
        raise diagnosis(reason_of(problem)) from problem


def _try_loading(connection: Connection, diagnosis: Diagnosis, plugin: str, trial: Trial) -> None:
    """A slot of an old server is there for good, so only whether the plugin is there is looked at."""
    what = f'node "{diagnosis.node}"'
    try:
        connection.execute(f"LOAD '{plugin}'".encode())
        trial.findings.append(ok(what, f"has the plugin {plugin}"))
    except psycopg.errors.InsufficientPrivilege:
        trial.findings.append(ok(what, f"tells nobody but superusers whether it has the plugin {plugin}; setup will see"))
    except psycopg.Error as problem:
        raise diagnosis(reason_of(problem)) from problem


def _writes_nan(connection: Connection, slot: str) -> bool:
    """Whether wal2json knows the option for it, which 2.6 brought. There is no other way to learn its version."""
    query = "SELECT count(*) FROM pg_logical_slot_peek_changes(%s, NULL, 1, 'format-version', '2', %s, 'true')"
    try:
        connection.execute(query, [slot, NUMBERS_AS_STRINGS])
    except psycopg.Error as problem:
        if NUMBERS_AS_STRINGS in str(problem):
            return False
        raise
    return True

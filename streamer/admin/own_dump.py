"""`streamer snapshot`: a dump of the user's own in the place of the initial copy, exact while the source is written.

A snapshot of the source is held while the user's command dumps it, and its position is recorded as the one where all tables of the
sync start on the targets: as for a table that streamer has copied, the stream leaves out what was committed before. So nothing is
replayed twice, and tables without a key are exact too. Restoring the dump is the user's business, before `streamer run`.

The traps: the slot must be there before the snapshot (`setup`). And rows that are there already would stay beside those of the
dump; so the tables on the targets must be empty, and nobody may run the edges meanwhile.

docs/own-dump.md
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import closing
from typing import Final

from streamer.admin.nodes import Say, chosen_syncs
from streamer.admin.printing import counted
from streamer.assembly import make_shaped_sink, make_source
from streamer.config import Config
from streamer.copying import verify
from streamer.errors import SlotError, SourceError, UsageError
from streamer.model import LSN, EdgeName, TableName
from streamer.ports import CopyTable, Progress, SlotState, Source

PLACE: Final = "{snapshot}"
EXAMPLE: Final = (
    "streamer snapshot {sync} -- pg_dump --snapshot={{snapshot}} --data-only --exclude-schema=streamer --file=rows.sql URL"
)


def dump(config: Config, sync: str, target: str | None, command: Sequence[str], say: Say) -> None:
    """Run the command with the snapshot's name in the place of `{snapshot}`; if it succeeds, record where the tables start on
    the sync's targets, or on the one named. Raises UsageError, StreamerError; then nothing is recorded.
    """
    chosen_syncs(config, sync)
    edges = _edges(config, sync, target)
    if not any(PLACE in part for part in command):
        raise UsageError(f"the command does not name the snapshot: {PLACE} stands for it", EXAMPLE.format(sync=sync))
    source = make_source(config, sync, edges[0].source, ())
    state, tables = _state(config, source, edges), _carried(source.tables(), sync)
    before = {edge: _fresh(config, edge, state, tables) for edge in edges}
    with source.snapshot() as snapshot:
        if not snapshot.name:
            raise SourceError(
                f'node "{edges[0].source}": a server before 9.2 cannot share a snapshot',
                'let streamer copy the rows; or stop whoever writes from before setup until the dump is made, with copy = "never"',
            )
        say(f"snapshot {snapshot.name} of {edges[0].source} is held")
        _run([part.replace(PLACE, snapshot.name) for part in command])
        position = snapshot.position
    for edge in edges:
        _record(config, edge, before[edge], state, tables, position)
        say(f"{edge.target}: {counted(len(tables), 'table')} start where the dump ends; restore it there, then: streamer run")


def _state(config: Config, source: Source, edges: Sequence[EdgeName]) -> SlotState:
    """Where the slot stands; one that is missing before anything was replicated was not made yet, and nothing is lost."""
    try:
        return source.state()
    except SlotError as error:
        for edge in edges:
            with closing(make_shaped_sink(config, edge)) as sink:
                if sink.open() is not None:
                    raise
        raise SlotError(error.message, f"run: streamer setup --sync {edges[0].sync}") from None


def _edges(config: Config, sync: str, target: str | None) -> list[EdgeName]:
    settings = config.syncs[sync]
    if settings.multi_master:
        raise UsageError(
            f'sync "{sync}" has several sources: a dump does not tell what it holds of the others', "let streamer copy the rows"
        )
    (source,) = settings.sources
    targets = config.targets(sync, source)
    if target is not None and target not in targets:
        raise UsageError(f'sync "{sync}" has no target "{target}"', f"it has {', '.join(targets)}")
    return [EdgeName(sync, source, node) for node in ([target] if target else targets)]


def _carried(tables: Sequence[CopyTable], sync: str) -> list[TableName]:
    """The tables whose changes the stream carries; those that are copied whole need no start."""
    if new := [table.table for table in tables if not table.carried]:
        raise UsageError(
            f'table "{new[0]}" was made after setup, so its changes are not carried', f"run: streamer setup --sync {sync}"
        )
    return [table.table for table in tables if not table.whole]


def _fresh(config: Config, edge: EdgeName, state: SlotState, tables: Sequence[TableName]) -> Progress | None:
    """Return the progress of an edge, None if it has not begun. Raises UsageError if its target has rows; TakenError if a daemon
    runs it.
    """
    with closing(make_shaped_sink(config, edge)) as sink:
        progress = sink.open()
        if progress is not None:
            verify(edge, progress.slot, progress.position, state)
        for table in tables:
            if sink.has(table) and not sink.is_empty(table):
                raise UsageError(f'table "{table}" on "{edge.target}" has rows, to which the dump would add', "empty it first")
        return progress


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, check=False)
    except OSError as error:
        raise UsageError(f'"{command[0]}" cannot be run: {error.strerror}', "name a program after --") from None
    if done.returncode != 0:
        raise UsageError(f'"{command[0]}" ended with exit code {done.returncode}, so nothing was recorded', "run it again")


def _record(
    config: Config, edge: EdgeName, before: Progress | None, state: SlotState, tables: Sequence[TableName], position: LSN
) -> None:
    """Let the edge begin with the slot, if it has not, and its tables where the snapshot ends."""
    with closing(make_shaped_sink(config, edge)) as sink:
        if sink.open() != before:
            raise UsageError(
                f"edge {edge} was run while the dump was made, so nothing was recorded", "stop streamer run, and dump again"
            )
        if before is None:
            sink.begin(state.identity, state.confirmed)
        for table in tables:
            sink.keep(table, position)

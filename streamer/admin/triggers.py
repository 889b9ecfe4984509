"""`streamer triggers`: the capture triggers of sources alone: made (as by setup), removed (as by teardown), their changes purged.

The trap: a table without its triggers loses changes in silence. So `remove` takes the streams that need them along; they can only
begin anew, with a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from streamer.admin import capture_triggers, removals
from streamer.admin.leaving import without
from streamer.admin.nodes import Say, chosen_syncs, session
from streamer.capture import batches
from streamer.config import Config
from streamer.errors import StreamerError, UsageError
from streamer.session import Connection


def install(config: Config, only: str | None, say: Say) -> None:
    """Make on each source that captures by triggers what the syncs, or the one, need of it. Raises StreamerError."""
    for node, syncs in _sources(config, only).items():
        with session(config, node) as connection:
            for sync in syncs:
                capture_triggers.prepare(config, node, connection, sync, say)


def remove(
    config: Config, only: str | None, *, force: bool, confirm: Callable[[Sequence[str]], bool], say: Say
) -> list[StreamerError]:
    """Remove it again, after `confirm` has seen the list; return what could not be done.

    `force` ends whoever reads. Raises UsageError if somebody does and it is not given.
    """
    problems: list[StreamerError] = []
    rest = without(config, chosen_syncs(config, only), None)
    plan: dict[str, list[removals.Removal]] = {}
    for node, syncs in _all_sources(config, only).items():
        with _gathered(problems), session(config, node) as connection:
            plan[node] = list(capture_triggers.removals(connection, node, syncs, rest, force=force))
    lines = [f"{node}: {removal.what}" for node, found in plan.items() for removal in found]
    if not lines:
        say("there is nothing to remove")
    elif confirm(lines):
        for node, found in plan.items():
            with _gathered(problems), session(config, node) as connection:
                for removal in found:
                    removals.execute(connection, removal, force=force)
                    say(f"{node}: removed {removal.what}")
    return problems


def purge(config: Config, only: str | None, say: Say) -> list[StreamerError]:
    """Delete the captured changes that all streams have confirmed, tell what is left for whom; return what could not be done."""
    problems: list[StreamerError] = []
    for node in _all_sources(config, only):
        with _gathered(problems), session(config, node) as connection:
            if capture_triggers.is_installed(connection):
                _purge(connection, node, say)
    return problems


def _purge(connection: Connection, node: str, say: Say) -> None:
    deleted = 0
    while some := batches.purge(connection):
        deleted += some
    say(f"{node}: deleted {deleted} captured change{'' if deleted == 1 else 's'}")
    for stream, count in capture_triggers.backlog(connection):
        if count:
            say(f'{node}: {count} left for stream "{stream}"')


def _sources(config: Config, only: str | None) -> dict[str, list[str]]:
    """The sources that capture by triggers, with their syncs. Raises UsageError if there is none."""
    found = {}
    for node, syncs in _all_sources(config, only).items():
        with session(config, node) as connection:
            if capture_triggers.captures_here(config, node, connection):
                found[node] = syncs
    if not found:
        raise UsageError("no source captures by triggers", 'write capture = "trigger" into its [nodes.NAME]')
    return found


def _all_sources(config: Config, only: str | None) -> dict[str, list[str]]:
    """The sources with their syncs."""
    found: dict[str, list[str]] = {}
    for sync in chosen_syncs(config, only):
        for node in config.syncs[sync].sources:
            found.setdefault(node, []).append(sync)
    return found


@contextmanager
def _gathered(problems: list[StreamerError]) -> Iterator[None]:
    """Keep what goes wrong with one node, so that the others are not left out."""
    try:
        yield
    except UsageError:
        raise
    except StreamerError as problem:
        problems.append(problem)

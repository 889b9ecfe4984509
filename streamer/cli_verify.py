"""`streamer verify`: parse, call, print."""

from __future__ import annotations

from typing import Annotated

import typer

from streamer.cli_options import AsJson, ConfigFile, Yes, asking, load, say
from streamer.config import DEFAULT_PATH
from streamer.errors import UsageError


def verify(
    sync: Annotated[str, typer.Argument(metavar="SYNC", help="Which sync.")],
    config: ConfigFile = DEFAULT_PATH,
    table: Annotated[list[str] | None, typer.Option("--table", metavar="NAME", help="Only this table; can be repeated.")] = None,
    target: Annotated[str | None, typer.Option("--target", metavar="NODE", help="Only this target.")] = None,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=0, help="How many differing rows to name of each table.")] = 20,
    wait: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", min=0, help="How long a stream that stands still is waited for.")
    ] = 60.0,
    repair: Annotated[bool, typer.Option("--repair", help="Write the source's rows where they differ.")] = False,
    continuous: Annotated[
        bool, typer.Option("--continuous", help="Compare nothing; tell what the daemon has proven, which compares all the time.")
    ] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Compare the rows of source and targets. Both may be written meanwhile. Exit code 0: equal, or repaired; 1: not."""
    from streamer.admin import verify as verb
    from streamer.verify.tables import equal

    loaded = load(config)
    if continuous:
        raise typer.Exit(0 if verb.proven(loaded, sync, say) else 1)
    if repair and as_json and not yes:
        raise UsageError("--json leaves no room for a question", "add --yes, or leave one of them out")
    ask = (lambda lines: True) if as_json else asking("Write this?", yes)
    mender = verb.Mender(loaded, sync, ask, (lambda line: None) if as_json else say, wait) if repair else None
    found = list(verb.verify(loaded, verb.wanted(sync, table or (), target, limit, wait), mender))
    verb.print_verified(found, as_json=as_json)
    raise typer.Exit(0 if equal(found) else 1)

"""`streamer cutover`: parse, call, print."""

from __future__ import annotations

from typing import Annotated

import typer

from streamer.cli_options import ConfigFile, Yes, asking, load, say
from streamer.config import DEFAULT_PATH


def cutover(
    sync: Annotated[str, typer.Argument(metavar="SYNC", help="Which sync.")],
    to: Annotated[str, typer.Option("--to", metavar="NODE", help="The target that the application moves to.")],
    config: ConfigFile = DEFAULT_PATH,
    block_writes: Annotated[
        bool, typer.Option("--block-writes", help="Make the old database read-only for clients, and end their sessions.")
    ] = False,
    skip_verify: Annotated[bool, typer.Option("--skip-verify", help="Don't compare the rows, neither before nor amid.")] = False,
    no_way_back: Annotated[bool, typer.Option("--no-way-back", help="Move even if nothing brings back what is written.")] = False,
    margin: Annotated[int, typer.Option("--margin", metavar="N", min=0, help="Numbers that sequences leave out.")] = 1000,
    wait: Annotated[
        float,
        typer.Option("--wait", metavar="SECONDS", min=0, help="How long to wait for a stream that stands still, or a session."),
    ] = 60.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Look at everything, tell the steps, and change nothing.")] = False,
    yes: Yes = False,
) -> None:
    """Move the writers of a source to one of its targets. Step by step; a failure undoes what was done."""
    from streamer.admin.cutover import cutover as move
    from streamer.admin.cutover_preflight import Options

    options = Options(block_writes, not skip_verify, wait, margin)
    done = move(load(config), sync, to, options, asking("Move?", yes), say, way_back=not no_way_back, dry_run=dry_run)
    raise typer.Exit(0 if done else 1)

"""`streamer snapshot`: parse, call, print."""

from __future__ import annotations

from typing import Annotated

import typer

from streamer.cli_options import ConfigFile, load, say
from streamer.config import DEFAULT_PATH


def snapshot(
    sync: Annotated[str, typer.Argument(metavar="SYNC", help="Which sync.")],
    command: Annotated[
        list[str], typer.Argument(metavar="COMMAND", help="After --: what dumps; {snapshot} stands for the snapshot.")
    ],
    config: ConfigFile = DEFAULT_PATH,
    target: Annotated[str | None, typer.Option("--target", metavar="NODE", help="Only for this target.")] = None,
) -> None:
    """Dump the source yourself instead of the initial copy. The stream begins exactly where the dump ends."""
    from streamer.admin.own_dump import dump

    dump(load(config), sync, target, command, say)

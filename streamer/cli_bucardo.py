"""`streamer import-bucardo`: parse, call, print."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from streamer.cli_options import AsJson, say
from streamer.errors import SourceError


def import_bucardo(
    dsn: Annotated[str, typer.Argument(metavar="DSN", help="Bucardo's control database, as psql takes it.")],
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Write the config there, not to standard output.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="Write the report there, not to standard error.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a config of what Bucardo replicates. A report tells what means something else here. Exit code 1 if no sync is left."""
    from streamer.admin import import_bucardo as verb
    from streamer.admin.new_file import write_new

    found = verb.import_bucardo(dsn)
    if output is not None:
        write_new(found.config, output, force=force)
        say(f'wrote "{output}"')
    told = found.notes.as_json() if as_json else found.notes.as_text()
    if report is not None:
        write_new(told, report, force=force)
        if output is not None:
            say(f'wrote "{report}"')
    if output is None:
        print(found.config, end="")
    if report is None:
        print(told, end="", file=sys.stderr)
    if not found.syncs:
        raise SourceError("no sync is left that streamer can run", "the report tells why each was left out")

"""The command line: parse, call, print. What a command does is in admin/, one file per verb.

Exit codes: 0 all well, 1 an error or a finding, 2 wrong usage (or, from `status` and `kick`, a failed stream), 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from streamer import __version__, topology
from streamer import config as config_module
from streamer.config import DEFAULT_PATH, Config
from streamer.errors import StreamerError

app = typer.Typer(
    name="streamer",
    help="Replicate PostgreSQL row changes, exactly once.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

conflicts = typer.Typer(
    help="Show conflicts between sources, and what became of them.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(conflicts, name="conflicts")

ConfigFile = Annotated[Path, typer.Option("--config", metavar="FILE", help="The config file.")]
SyncName = Annotated[str | None, typer.Option("--sync", metavar="NAME", help="Only this sync.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> NoReturn:
    """Run the command line; every error that a user can cause is one line."""
    try:
        app(standalone_mode=True)
    except StreamerError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def _load(path: Path) -> Config:
    config = config_module.load(path)
    topology.check(config)
    return config


def _say(line: str) -> None:
    print(line, flush=True)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"streamer {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    wanted: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)] = False,
) -> None:
    pass


@app.command()
def init(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="Where to write it.")] = DEFAULT_PATH,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that exists.")] = False,
) -> None:
    """Write a commented config."""
    from streamer.admin.init import write_config

    write_config(file, force=force, say=_say)


@app.command()
def check(config: ConfigFile = DEFAULT_PATH, as_json: AsJson = False) -> None:
    """Look at everything that a run depends on, and change nothing. Exit code 1 if something must be cured."""
    from streamer.admin.check import check as look
    from streamer.admin.findings import failed, print_findings

    findings = look(_load(config))
    print_findings(findings, as_json=as_json)
    raise typer.Exit(1 if failed(findings) else 0)


@app.command()
def tables(config: ConfigFile = DEFAULT_PATH, sync: SyncName = None, as_json: AsJson = False) -> None:
    """List each table, its key, and what will happen to it on each target."""
    from streamer.admin import tables as verb

    found, problems = verb.tables(_load(config), sync)
    verb.print_tables(found, as_json=as_json)
    _report(problems)


@app.command()
def setup(
    config: ConfigFile = DEFAULT_PATH,
    sync: SyncName = None,
    fix: Annotated[bool, typer.Option("--fix", help="Alter your tables where a sync needs it.")] = False,
) -> None:
    """Make everything that the syncs need on their nodes. Can be repeated."""
    from streamer.admin.setup import setup as set_up

    set_up(_load(config), sync, _say, fix=fix)


@app.command()
def ddl(
    sync: Annotated[str, typer.Argument(metavar="SYNC", help="Which sync.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Which of its targets.")],
    config: ConfigFile = DEFAULT_PATH,
    existing: Annotated[bool, typer.Option("--all", help="Of tables that are there already, too.")] = False,
) -> None:
    """Print the statements that setup would make a target's missing tables with."""
    from streamer.admin.ddl import statements

    for statement in statements(_load(config), sync, target, existing=existing):
        print(f"{statement};\n")


@app.command()
def run(
    config: ConfigFile = DEFAULT_PATH,
    once: Annotated[bool, typer.Option("--once", help="Stop when caught up.")] = False,
    sync: SyncName = None,
    source: Annotated[str | None, typer.Option("--source", metavar="NODE", help="Only streams from this node.")] = None,
) -> None:
    """Replicate until stopped (SIGTERM, Ctrl-C)."""
    from streamer.admin.run import run as stream

    _report(stream(_load(config), sync=sync, source=source, once=once))


@app.command()
def status(config: ConfigFile = DEFAULT_PATH, as_json: AsJson = False) -> None:
    """Show how every edge stands. Exit code 0: all streaming; 2: an edge has failed for good; 1: anything else."""
    from streamer.admin import status as verb

    lines = verb.status(_load(config))
    verb.print_status(lines, as_json=as_json)
    raise typer.Exit(verb.exit_code(lines))


@app.command()
def kick(
    sync: Annotated[str, typer.Argument(metavar="SYNC", help="Which sync.")],
    config: ConfigFile = DEFAULT_PATH,
    wait: Annotated[
        float | None, typer.Option("--wait", metavar="SECONDS", min=0, help="Wait for the end, so many seconds at most.")
    ] = None,
) -> None:
    """Let a sync catch up with its sources now. Exit code 0: done, or without --wait accepted; 1: timed out; 2: failed."""
    from streamer.admin import kick as verb

    try:
        code, problems = verb.kick(_load(config), sync, wait, _say)
    except StreamerError as error:
        code, problems = verb.FAILED, [error]
    _print_errors(problems)
    raise typer.Exit(code)


@app.command()
def pause(sync: Annotated[str, typer.Argument(metavar="SYNC", help="Which sync.")], config: ConfigFile = DEFAULT_PATH) -> None:
    """Let a sync stop reading until it is resumed, or streamer run is started anew."""
    from streamer.admin import kick as verb

    verb.pause(_load(config), sync, _say)


@app.command()
def resume(sync: Annotated[str, typer.Argument(metavar="SYNC", help="Which sync.")], config: ConfigFile = DEFAULT_PATH) -> None:
    """Let a paused sync go on."""
    from streamer.admin import kick as verb

    verb.resume(_load(config), sync, _say)


@conflicts.command("list")
def list_conflicts(
    config: ConfigFile = DEFAULT_PATH,
    sync: SyncName = None,
    node: Annotated[str | None, typer.Option("--node", metavar="NAME", help="Only those resolved on this node.")] = None,
    table: Annotated[str | None, typer.Option("--table", metavar="NAME", help="Only those in this table.")] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="Only this kind, like update_missing.")] = None,
    since: Annotated[str | None, typer.Option("--since", metavar="TIME", help="Only since then: 2h, 7d, or an ISO time.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List conflicts, the newest first."""
    from streamer.admin import conflicts as verb

    wanted = verb.make_filter(sync=sync, node=node, table=table, kind=kind, since=since, limit=limit)
    found = verb.find(_load(config), wanted)
    verb.print_list(found, as_json=as_json)
    _report(found.problems)


@conflicts.command("show")
def show_conflict(
    conflict: Annotated[str, typer.Argument(metavar="NODE:ID", help="As the list has it, for example a:12.")],
    config: ConfigFile = DEFAULT_PATH,
    as_json: AsJson = False,
) -> None:
    """Show both rows of a conflict, where they were made, and what became of it."""
    from streamer.admin import conflicts as verb

    verb.print_one(verb.get(_load(config), conflict), as_json=as_json)


@app.command()
def teardown(
    config: ConfigFile = DEFAULT_PATH,
    sync: SyncName = None,
    node: Annotated[str | None, typer.Option("--node", metavar="NAME", help="Only take this node out of its syncs.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    force: Annotated[bool, typer.Option("--force", help="End whoever reads a slot.")] = False,
) -> None:
    """Remove all that setup and run have made. Your tables stay."""
    from streamer.admin.teardown import teardown as tear_down

    def confirm(lines: Sequence[str]) -> bool:
        if yes:
            return True
        print("This will be removed:", *lines, sep="\n  ")
        return typer.confirm("Remove it?")

    _report(tear_down(_load(config), sync, node=node, force=force, confirm=confirm, say=_say))


@app.command()
def demo(
    seconds: Annotated[int, typer.Option("--seconds", min=1, help="How long pgbench runs.")] = 6,
    keep: Annotated[bool, typer.Option("--keep", help="Leave servers and files in place at the end.")] = False,
) -> None:
    """Show streamer at work on servers of its own."""
    from streamer.demo import run_demo

    raise typer.Exit(0 if run_demo(seconds, keep) else 1)


def _report(problems: Sequence[StreamerError]) -> None:
    """Print errors, one a line, and exit with code 1 if there are any."""
    _print_errors(problems)
    if problems:
        raise typer.Exit(1)


def _print_errors(problems: Sequence[StreamerError]) -> None:
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)


if __name__ == "__main__":
    main()

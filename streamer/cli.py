"""The command line: parse, call, print. What a command does is in admin/, one file per verb.

Exit codes: 0 all well, 1 an error or a finding, 2 wrong usage (or, from `status` and `kick`, a failed stream), 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from streamer import FORM, __version__
from streamer.cli_bucardo import import_bucardo
from streamer.cli_cutover import cutover
from streamer.cli_options import AsJson, ConfigFile, Limit, Since, SyncName, Yes, asking, load, print_errors, report, say
from streamer.cli_output import written
from streamer.cli_quarantine import quarantine
from streamer.cli_snapshot import snapshot
from streamer.cli_verify import verify
from streamer.config import DEFAULT_PATH
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
app.add_typer(quarantine, name="quarantine")
slots = typer.Typer(help="Look at slots and change them.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(slots, name="slots")

triggers = typer.Typer(help="Make and remove the triggers that capture changes.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(triggers, name="triggers")

NodeName = Annotated[str, typer.Argument(metavar="NODE", help="Which node.")]
SlotName = Annotated[str, typer.Argument(metavar="SLOT", help="Which of its slots.")]


def main() -> NoReturn:
    """Run the command line; every error that a user can cause is one line."""
    sys.exit(written(_run))


def _run() -> str | int | None:
    """Run a command, and return the exit code."""
    try:
        app(standalone_mode=True)
    except StreamerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except SystemExit as end:
        return end.code
    return 0


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"streamer {__version__} ({FORM})")
        raise typer.Exit


@app.callback()
def _common(
    wanted: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)] = False,
) -> None:
    pass


@app.command()
def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it.")] = DEFAULT_PATH,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that exists.")] = False,
) -> None:
    """Write a commented config."""
    from streamer.admin.init import write_config

    write_config(file, force=force, say=say)


@app.command()
def check(config: ConfigFile = DEFAULT_PATH, as_json: AsJson = False) -> None:
    """Look at everything that a run depends on. Changes nothing. Exit code 1 if something must be cured."""
    from streamer.admin.check import check as look
    from streamer.admin.findings import failed, print_findings

    findings = look(load(config))
    print_findings(findings, as_json=as_json)
    raise typer.Exit(1 if failed(findings) else 0)


@app.command()
def tables(config: ConfigFile = DEFAULT_PATH, sync: SyncName = None, as_json: AsJson = False) -> None:
    """List each table and what will happen to it on each target."""
    from streamer.admin import tables as verb

    found, problems = verb.tables(load(config), sync)
    verb.print_tables(found, as_json=as_json)
    report(problems)


@app.command()
def setup(
    config: ConfigFile = DEFAULT_PATH,
    sync: SyncName = None,
    fix: Annotated[bool, typer.Option("--fix", help="Alter your tables where a sync needs it.")] = False,
) -> None:
    """Make everything that the syncs need on their nodes. Can be repeated."""
    from streamer.admin.setup import setup as set_up

    set_up(load(config), sync, say, fix=fix)


@app.command()
def ddl(
    sync: Annotated[str, typer.Argument(metavar="SYNC", help="Which sync.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Which of its targets.")],
    config: ConfigFile = DEFAULT_PATH,
    existing: Annotated[bool, typer.Option("--all", help="Of tables that are there already, too.")] = False,
) -> None:
    """Print the SQL that makes the missing tables of a target."""
    from streamer.admin.ddl import statements

    found = statements(load(config), sync, target, existing=existing)
    for heading, part in (("before the rows", found.before), ("after the rows", found.after)):
        if part:
            print(f"-- {heading}\n")
        for statement in part:
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

    report(stream(load(config), sync=sync, source=source, once=once, load=partial(load, config)))


@app.command()
def status(
    config: ConfigFile = DEFAULT_PATH,
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every two seconds, until Ctrl-C.")] = False,
) -> None:
    """Show how every edge stands. Exit code 0: all is as it should be; 1: a warning; 2: something is critical."""
    from streamer.admin import status_table
    from streamer.admin.status import status as look

    loaded = load(config)
    if watch:
        status_table.watch(partial(look, loaded), as_json=as_json)
    found = look(loaded)
    status_table.print_status(found, as_json=as_json)
    raise typer.Exit(found.severity)


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
        code, problems = verb.kick(load(config), sync, wait, say)
    except StreamerError as error:
        code, problems = verb.FAILED, [error]
    print_errors(problems)
    raise typer.Exit(code)


@app.command()
def copy(
    sync: Annotated[str, typer.Argument(metavar="SYNC", help="Which sync.")],
    table: Annotated[str, typer.Option("--table", metavar="TABLE", help="Which of its tables.")],
    config: ConfigFile = DEFAULT_PATH,
    yes: Yes = False,
) -> None:
    """Copy a table once more while the sync runs. Its rows on the targets are replaced."""
    from streamer.admin import copy as verb

    loaded = load(config)
    name = verb.require(loaded, sync, table)
    if asking("Copy it again?", yes)(verb.consequences(loaded, sync, table)):
        verb.copy(loaded, sync, name, say)


@app.command()
def pause(sync: Annotated[str, typer.Argument(metavar="SYNC", help="Which sync.")], config: ConfigFile = DEFAULT_PATH) -> None:
    """Let a sync stop reading until it is resumed. It also goes on when streamer run is started anew."""
    from streamer.admin import kick as verb

    verb.pause(load(config), sync, say)


@app.command()
def resume(sync: Annotated[str, typer.Argument(metavar="SYNC", help="Which sync.")], config: ConfigFile = DEFAULT_PATH) -> None:
    """Let a paused sync go on."""
    from streamer.admin import kick as verb

    verb.resume(load(config), sync, say)


@slots.command("list")
def list_slots(config: ConfigFile = DEFAULT_PATH, as_json: AsJson = False) -> None:
    """List every logical slot on every node, ours and others'."""
    from streamer.admin import slots as verb

    found = verb.find(load(config))
    verb.print_slots(found, as_json=as_json)
    report(found.problems)


@slots.command("create")
def create_slots(
    sync: Annotated[str, typer.Argument(metavar="SYNC", help="Which sync.")],
    config: ConfigFile = DEFAULT_PATH,
    source: Annotated[str | None, typer.Option("--source", metavar="NODE", help="Only on this source.")] = None,
    failover: Annotated[bool, typer.Option("--failover", help="As failover slots (PostgreSQL 17 and later).")] = False,
) -> None:
    """Make the missing slots of a sync, with their publications."""
    from streamer.admin.slots_create import create

    create(load(config), sync, source, say, failover=failover)


@slots.command("drop")
def drop_slot(
    node: NodeName,
    slot: SlotName,
    config: ConfigFile = DEFAULT_PATH,
    force: Annotated[bool, typer.Option("--force", help="End whoever reads it.")] = False,
    yes: Yes = False,
) -> None:
    """Drop a slot; one that is being read is refused."""
    from streamer.admin.slots import drop

    drop(load(config), node, slot, force=force, confirm=asking("Drop it?", yes), say=say)


@slots.command("advance")
def advance_slot(
    node: NodeName,
    slot: SlotName,
    position: Annotated[str, typer.Argument(metavar="POSITION", help="An LSN, or now.")],
    config: ConfigFile = DEFAULT_PATH,
    yes: Yes = False,
) -> None:
    """Let a slot pass over changes for good; tells which."""
    from streamer.admin.slots_advance import advance

    advance(load(config), node, slot, position, confirm=asking("Skip them?", yes), say=say)


@slots.command("peek")
def peek_slot(
    node: NodeName,
    slot: SlotName,
    config: ConfigFile = DEFAULT_PATH,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="How many changes at most.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Show the next changes of a slot. They are read from a copy of it: nothing is consumed."""
    from streamer.admin import slots_peek as verb

    verb.print_records(verb.peek(load(config), node, slot, limit), as_json=as_json)


@conflicts.command("list")
def list_conflicts(
    config: ConfigFile = DEFAULT_PATH,
    sync: SyncName = None,
    node: Annotated[str | None, typer.Option("--node", metavar="NAME", help="Only those resolved on this node.")] = None,
    table: Annotated[str | None, typer.Option("--table", metavar="NAME", help="Only those in this table.")] = None,
    kind: Annotated[str | None, typer.Option("--kind", metavar="KIND", help="Only this kind, like update_missing.")] = None,
    since: Since = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List conflicts, the newest first."""
    from streamer.admin import conflicts as verb

    wanted = verb.make_filter(sync=sync, node=node, table=table, kind=kind, since=since, limit=limit)
    found = verb.find(load(config), wanted)
    verb.print_list(found, as_json=as_json)
    report(found.problems)


@conflicts.command("show")
def show_conflict(
    conflict: Annotated[str, typer.Argument(metavar="NODE:ID", help="As the list has it, for example a:12.")],
    config: ConfigFile = DEFAULT_PATH,
    as_json: AsJson = False,
) -> None:
    """Show both rows of a conflict and what became of it."""
    from streamer.admin import conflicts as verb

    verb.print_one(verb.get(load(config), conflict), as_json=as_json)


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

    report(tear_down(load(config), sync, node=node, force=force, confirm=partial(_confirm, yes), say=say))


def _confirm(yes: bool, lines: Sequence[str]) -> bool:
    """Ask whether what the lines name may be removed."""
    if yes:
        return True
    print("This will be removed:", *lines, sep="\n  ")
    return typer.confirm("Remove it?")


@triggers.command("install")
def install_triggers(config: ConfigFile = DEFAULT_PATH, sync: SyncName = None) -> None:
    """Make triggers and what they need. As setup does, on the sources that capture by them; can be repeated."""
    from streamer.admin import triggers as verb

    verb.install(load(config), sync, say)


@triggers.command("remove")
def remove_triggers(
    config: ConfigFile = DEFAULT_PATH,
    sync: SyncName = None,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    force: Annotated[bool, typer.Option("--force", help="End whoever reads what they capture.")] = False,
) -> None:
    """Remove them, with the streams that need them. These must begin anew, with a copy."""
    from streamer.admin import triggers as verb

    report(verb.remove(load(config), sync, force=force, confirm=partial(_confirm, yes), say=say))


@triggers.command("purge")
def purge_triggers(config: ConfigFile = DEFAULT_PATH, sync: SyncName = None) -> None:
    """Delete captured changes that all targets have. Tells how many are left for which stream."""
    from streamer.admin import triggers as verb

    report(verb.purge(load(config), sync, say))


@app.command()
def demo(
    seconds: Annotated[int, typer.Option("--seconds", metavar="N", min=1, help="How long pgbench runs.")] = 6,
    keep: Annotated[bool, typer.Option("--keep", help="Leave servers and files in place at the end.")] = False,
) -> None:
    """Show streamer at work on servers of its own."""
    from streamer.demo import run_demo

    raise typer.Exit(0 if run_demo(seconds, keep) else 1)


app.command()(verify)
app.command()(cutover)
app.command()(import_bucardo)
app.command()(snapshot)

if __name__ == "__main__":
    main()

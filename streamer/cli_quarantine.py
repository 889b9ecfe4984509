"""`streamer quarantine`: parse, call, print."""

from __future__ import annotations

from typing import Annotated

import typer

from streamer.cli_options import AsJson, ConfigFile, Limit, Since, SyncName, Yes, asking, load, report, say
from streamer.config import DEFAULT_PATH

quarantine = typer.Typer(help="Show, apply or forget what targets have refused.", no_args_is_help=True, rich_markup_mode=None)

NodeName = Annotated[str | None, typer.Option("--node", metavar="NAME", help="Only on this node.")]
TableName = Annotated[str | None, typer.Option("--table", metavar="NAME", help="Only of this table.")]
Ids = Annotated[list[str] | None, typer.Argument(metavar="NODE:ID", help="As the list has them, like b:12; else all.")]


@quarantine.command("list")
def list_changes(
    config: ConfigFile = DEFAULT_PATH,
    sync: SyncName = None,
    node: NodeName = None,
    table: TableName = None,
    since: Since = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List the changes in quarantine, the newest first."""
    from streamer.admin import quarantine as verb
    from streamer.admin.quarantine_lists import print_list

    found = verb.find(load(config), verb.make_filter(sync=sync, node=node, table=table, since=since), limit)
    print_list(found, as_json=as_json)
    report(found.problems)


@quarantine.command("show")
def show_change(
    change: Annotated[str, typer.Argument(metavar="NODE:ID", help="As the list has it, for example b:12.")],
    config: ConfigFile = DEFAULT_PATH,
    as_json: AsJson = False,
) -> None:
    """Show a change with its rows, and why it was refused."""
    from streamer.admin import quarantine as verb
    from streamer.admin.quarantine_lists import print_one

    print_one(verb.get(load(config), change), as_json=as_json)


@quarantine.command("retry")
def retry_changes(
    ids: Ids = None,
    config: ConfigFile = DEFAULT_PATH,
    sync: SyncName = None,
    node: NodeName = None,
    table: TableName = None,
) -> None:
    """Apply changes after all. In order, each with all others of its row; one that is refused again leaves all as it was."""
    from streamer.admin import quarantine as verb

    wanted = verb.make_filter(sync=sync, node=node, table=table, ids=ids or ())
    report(verb.retry(load(config), wanted, say))


@quarantine.command("discard")
def discard_changes(
    ids: Ids = None,
    config: ConfigFile = DEFAULT_PATH,
    sync: SyncName = None,
    node: NodeName = None,
    table: TableName = None,
    yes: Yes = False,
) -> None:
    """Forget changes, each with all others of its row. Rows on the target stay as they are."""
    from streamer.admin import quarantine as verb

    wanted = verb.make_filter(sync=sync, node=node, table=table, ids=ids or ())
    report(verb.discard(load(config), wanted, asking("Forget them?", yes), say))

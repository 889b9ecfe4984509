"""`streamer copy`: the running daemon copies a table once more, while its stream goes on with the others."""

from __future__ import annotations

from urllib.parse import quote

from streamer.admin.arguments import table_name
from streamer.admin.daemon_client import tell
from streamer.admin.nodes import Say, chosen_syncs
from streamer.config import Config


def copy(config: Config, sync: str, table: str, say: Say) -> None:
    """Have all targets of the sync copy the table. Raises UsageError if the daemon is not there or refuses."""
    chosen_syncs(config, sync)
    name = table_name(table)
    tell(config, sync, f"copy?table={quote(str(name), safe='')}")
    when = "" if config.syncs[sync].continuous else ", in the next run of the sync"
    say(f'table "{name}" is copied again to {", ".join(config.syncs[sync].targets)}{when}; see: streamer status')

"""What a server says when it refuses to decode, turned into errors with the remedy.

The texts are PostgreSQL's and wal2json's own, unchanged over the versions; matching on them is the only way, because most carry the
same SQLSTATE. A server with translated messages gets the plain message without a remedy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from streamer.errors import ConnectError, SlotError, SourceError, StreamerError, start_over

ALLOW_WAL2JSON = (
    "on that server: ALTER SYSTEM SET output_plugin_libraries = pgoutput, test_decoding, wal2json; SELECT pg_reload_conf(); "
    "(three separate names, not one quoted list)"
)


class SlotActive(ConnectError):
    """Another process reads the slot."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Explains the complaints of one stream's server."""

    node: str
    sync: str
    slot: str

    def __call__(self, complaint: str) -> StreamerError:
        """Return the error that stands behind the server's message."""
        text = re.sub(r"^(ERROR|FATAL|PANIC):\s+", "", complaint.strip()).split("\n")[0]
        for pattern, explain in _CASES:
            if match := re.search(pattern, text):
                return explain(self, text, match)
        if (
            re.search(r"server closed the connection|terminating connection|starting up|shutting down|SSL|connection", text)
            or not text
        ):
            return ConnectError(f'node "{self.node}": {text or "connection lost"}', "streamer connects again by itself")
        return SourceError(f'slot "{self.slot}" on "{self.node}": {text}')

    @property
    def recopy(self) -> str:
        """The way on when changes are gone for good."""
        return start_over(self.sync)

    def missing_slot(self) -> SlotError:
        """The slot was there once: what was committed since cannot be read."""
        return SlotError(
            f'slot "{self.slot}" does not exist on "{self.node}"',
            f"changes since its last confirmation are lost; {self.recopy}",
        )


def _missing_publication(at: Diagnosis, text: str, match: re.Match[str]) -> StreamerError:
    return SlotError(
        f'publication "{at.slot}" of slot "{at.slot}" on "{at.node}" does not exist, or did not when the changes were made',
        f"changes made without it cannot be read; {at.recopy}",
    )


def _lost(at: Diagnosis, text: str, match: re.Match[str]) -> StreamerError:
    return SlotError(f'slot "{at.slot}" on "{at.node}" has lost WAL that was not yet read ({text})', at.recopy)


def _refused(at: Diagnosis, text: str, match: re.Match[str]) -> StreamerError:
    return SourceError(f'node "{at.node}" refuses the plugin wal2json (setting output_plugin_libraries)', ALLOW_WAL2JSON)


def _not_installed(at: Diagnosis, text: str, match: re.Match[str]) -> StreamerError:
    return SourceError(
        f'node "{at.node}" has no plugin {match[1]}',
        f'install it on that server (Debian: postgresql-VERSION-wal2json), or set nodes.{at.node}.capture = "pgoutput"',
    )


def _active(at: Diagnosis, text: str, match: re.Match[str]) -> StreamerError:
    return SlotActive(
        f'slot "{at.slot}" on "{at.node}" is read by another process (PID {match[1]})',
        f"streamer tries again by itself; to end that reader: SELECT pg_terminate_backend({match[1]})",
    )


def _no_role(at: Diagnosis, text: str, match: re.Match[str]) -> StreamerError:
    return SourceError(f'node "{at.node}": {text}', f"ALTER ROLE … REPLICATION for the role of nodes.{at.node}.url")


_CASES = (
    (r'library "wal2json" may not be used', _refused),
    (r'could not access file "([^"]+)"', _not_installed),
    (r'publication "[^"]*" does not exist|skipped loading publication', _missing_publication),
    (r'replication slot "[^"]*" does not exist', lambda at, text, match: at.missing_slot()),
    (r"is active for PID (\d+)", _active),
    (
        r"cannot read from logical replication slot|can no longer (get changes|access replication slot)|"
        r"requested WAL segment|has been invalidated|exceeds max_slot_wal_keep_size",
        _lost,
    ),
    (r"permission denied to|must be superuser or replication role", _no_role),
)

"""What a server says when it refuses to decode, turned into errors with the remedy.

The texts are PostgreSQL's and wal2json's own, unchanged over the versions; matching on them is the only way for most, because they
carry the same SQLSTATE. Of a server with translated messages we know what has a SQLSTATE of its own, above all the warning that
changes are being left out; the rest is told in its own words, without a remedy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from streamer.errors import ConnectError, HeldBackError, SlotError, SourceError, StreamerError, TakenError, start_over

ALLOW_WAL2JSON = (
    "on that server: ALTER SYSTEM SET output_plugin_libraries = pgoutput, test_decoding, wal2json; SELECT pg_reload_conf(); "
    "(three separate names, not one quoted list)"
)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Explains the complaints of one stream's server."""

    node: str
    sync: str
    slot: str

    def __call__(self, complaint: str, code: str = "") -> StreamerError:
        """Return the error that stands behind the server's message; `code` is its SQLSTATE, that of a warning with a `W`."""
        text = re.sub(r"^(ERROR|FATAL|PANIC):\s+", "", complaint.strip()).split("\n")[0]
        for pattern, explain in _CASES:
            if match := re.search(pattern, text):
                return explain(self, text, match)
        if code in _CODES and (match := re.search(_CODES[code][0].format(slot=self.slot), text)):
            return _CODES[code][1](self, text, match)
        if (
            re.search(r"server closed the connection|terminating connection|starting up|shutting down|SSL|connection", text)
            or not text
        ):
            return ConnectError(f'node "{self.node}": {text or "connection lost"}', "streamer connects again by itself")
        return SourceError(f'slot "{self.slot}" on "{self.node}": {text}')

    @property
    def recopy(self) -> str:
        """The way on when changes are gone for good."""
        return start_over(self.sync, self.node)

    @property
    def passing_over(self) -> str:
        """The way on when a change cannot be read, and its row is there still."""
        return (
            f"stop streamer, streamer slots advance {self.node} {self.slot} now, start it, "
            f"streamer verify {self.sync} --repair (PostgreSQL 11 and later)"
        )

    def of_another_database(self, database: str) -> SlotError:
        """A slot's name is one for the whole cluster; starting over would not help."""
        return SlotError(
            f'slot "{self.slot}" on "{self.node}" belongs to database "{database}"',
            "rename the sync or the node; or, if nobody needs that slot, there: streamer teardown, "
            f"or SELECT pg_drop_replication_slot('{self.slot}'), and then: streamer setup",
        )

    def being_made(self, pid: int) -> TakenError:
        """Until it is made a slot has nothing confirmed, and it vanishes if its maker ends."""
        return TakenError(
            f'slot "{self.slot}" on "{self.node}" is still being made by process {pid}, which waits for transactions that were '
            "open when it began",
            f"end those; or end it, SELECT pg_terminate_backend({pid}), and run: streamer setup",
        )

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
        f"install it on that server (Debian: postgresql-VERSION-wal2json), or set nodes.{at.node}.capture = "
        '"pgoutput" (from version 10 on), or "trigger"',
    )


def _active(at: Diagnosis, text: str, match: re.Match[str]) -> StreamerError:
    return TakenError(
        f'slot "{at.slot}" on "{at.node}" is read by another process (PID {match[1]})',
        f"streamer takes over when that ends; to end it: SELECT pg_terminate_backend({match[1]})",
    )


def _no_role(at: Diagnosis, text: str, match: re.Match[str]) -> StreamerError:
    return SourceError(f'node "{at.node}": {text}', f"ALTER ROLE … REPLICATION for the role of nodes.{at.node}.url")


def _no_text(at: Diagnosis, text: str, match: re.Match[str]) -> StreamerError:
    return SourceError(
        f'slot "{at.slot}" on "{at.node}": {text}: the change has a text that is not UTF-8, and cannot be read',
        f"correct the row on that server, and {at.passing_over}; or {at.recopy}",
    )


def _unmapped(at: Diagnosis, text: str, match: re.Match[str]) -> StreamerError:
    # decoding that begins where the slot was made sees no more than the end of a transaction that was under way then
    return SourceError(
        f'slot "{at.slot}" on "{at.node}": {text}: the server does not know of a TRUNCATE or rewrite that was committed '
        "while the slot was being made",
        f"if it stays: {at.passing_over}; or {at.recopy}",
    )


def _held_back(at: Diagnosis, text: str, match: re.Match[str]) -> StreamerError:
    return HeldBackError(
        f'node "{at.node}" sends no changes before a standby of it has them: {text}',
        "start that standby; or, on that server, take its slot out of synchronized_standby_slots: ALTER SYSTEM SET, then SELECT "
        "pg_reload_conf()",
    )


_CASES = (
    (r"synchronized_standby_slots", _held_back),
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
    (r"invalid byte sequence for encoding", _no_text),
    (r"could not map file(node|number)", _unmapped),
    (r"permission denied to|must be superuser or replication role", _no_role),
)

_CODES = {
    "W55000": (r"{slot}", _missing_publication),
    "55006": (r"(\d+)\D*$", _active),
    "22021": (r"", _no_text),
}
"""What the codes say in every language; the first: https://github.com/postgres/postgres/blob/master/src/backend/replication/pgoutput/pgoutput.c
"""

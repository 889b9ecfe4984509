"""The errors that a user can cause or cure.

    StreamerError
      UsageError            a command was given something that cannot be done as it stands
        ConfigError         streamer.toml: the file, a key, a value
        UnknownSyncError    a running daemon is asked for a sync that it does not run
      ConnectError          a node cannot be reached, or refuses us
        TakenError          another daemon reads the slot or writes the edge
      SourceError           the source cannot give what is asked of it
        SlotError           the slot is missing, or is not the one that progress belongs to
        DecodeError         a message of the output plugin that we do not understand, or must not trust
        HeldBackError       the source is read, but sends nothing before something else has happened
      TargetError           the target cannot take what is given to it
        SchemaError         a table or column is missing or differs
        ApplyError          a row was refused
      InternalError         a bug of ours

Every message names the object and the rule; `hint` is the remedy: the exact SQL or command. This is the one place that tells
errors apart: `permanent` says that trying again cannot help until a person has acted *and* restarted the stream; a TakenError is no
failure, only a turn to wait for; everything else is retried with backoff (retry.py).
"""

from __future__ import annotations

from typing import Final


class StreamerError(Exception):
    """An error for people: `message` names the object and the rule, `hint` the remedy; `str()` is one line of both."""

    permanent = False

    def __init__(self, message: str, hint: str = "") -> None:
        self.message = " ".join(message.split())
        self.hint = " ".join(hint.split())
        super().__init__(f"{self.message}; {self.hint}" if hint else self.message)


class UsageError(StreamerError):
    """A command was given something that cannot be done as it stands."""

    permanent = True


class ConfigError(UsageError):
    """The config file, one of its keys or values is wrong."""


class UnknownSyncError(UsageError):
    """A running daemon is asked for a sync that it does not run."""


class ConnectError(StreamerError):
    """A node cannot be reached, refuses us, or has gone away."""


class TakenError(ConnectError):
    """Another daemon reads the slot or writes the edge: we stand by, and take over when it ends."""


class SourceError(StreamerError):
    """The source cannot give what is asked of it."""


class SlotError(SourceError):
    """The slot is missing, or is not the one that the progress belongs to."""

    permanent = True


class DecodeError(SourceError):
    """A message of the output plugin cannot be read, or must not be trusted."""

    permanent = True


class HeldBackError(SourceError):
    """The source is read, but sends nothing before something else has happened; the session goes on."""


NOT_UTF8: Final = (
    "correct the row on the source, let the slot pass over the change (streamer slots advance), and compare the rows; "
    "a database with the encoding SQL_ASCII does not check what it is given"
)
"""The remedy for a text that cannot be read."""


class TargetError(StreamerError):
    """The target cannot take what is given to it."""


class SchemaError(TargetError):
    """A table or column of the target is missing or differs."""


class ApplyError(TargetError):
    """The target refused a row."""


class InternalError(StreamerError):
    """Something happened that we did not think of."""

    permanent = True

    def __init__(self, message: str) -> None:
        super().__init__(message, "please report it together with the log")


def start_over(sync: str, node: str = "") -> str:
    """Return the remedy when changes of a sync are gone for good. If they are those of a `node`, no other of several sources can
    leave: they would have to be passed before."""
    leaver = f"{node} (what only it has is lost)" if node else "NODE (the one that is to get the rows of the others)"
    return (
        f"to start over with a new copy of the rows: streamer teardown --sync {sync}, streamer setup --sync {sync}, "
        f'then run with copy = "always"; with several sources, instead: streamer teardown --node {leaver}, empty its tables '
        "there, and only after that streamer setup: it replicates a TRUNCATE"
    )


def forgotten_rows(table: object, edge: object, target: str) -> SlotError:
    """Return the error for rows whose progress was removed while we ran: to start over, which need not mean to keep them."""
    return SlotError(
        f'edge {edge}: the progress on "{target}" is gone, and table "{table}" has rows there: whether they lack '
        "something is not known any more",
        'start streamer run anew: with copy = "always", which replaces them, or as it is, if they lack nothing',
    )


def no_longer_carried(table: object, slot: str) -> SourceError:
    """Return the error for a table that the stream carried once, and that its publication lacks now."""
    return SourceError(
        f'table "{table}" is no longer in the publication of slot "{slot}"',
        "changes of it may have been missed since; put it back with: streamer setup, and compare the rows",
    )


def lost_identity(table: object, node: str, sync: str) -> SourceError:
    """Return the error for a table whose updates and deletes the WAL told once, and does not now."""
    return SourceError(
        f'table "{table}" on "{node}", or a partition of it, has lost its replica identity: updates and deletes are not in the WAL',
        f"ALTER TABLE … ADD PRIMARY KEY (…) or REPLICA IDENTITY FULL, then compare the rows: streamer verify {sync}; "
        "or, to have only inserts from now on, restart streamer run",
    )


def renamed(old: object, new: object, node: str, sync: str) -> SourceError:
    """Return the error for a table that has another name than when the stream began."""
    return SourceError(
        f'table "{old}" on "{node}" was renamed to "{new}"',
        f"rename it back; or stop streamer, rename it on the targets and in the config too, start it, and: streamer verify {sync}",
    )


def replaced(table: object, node: str, sync: str) -> SourceError:
    """Return the error for a table whose name another one has now, of whose rows those that it got before were not told."""
    return SourceError(
        f'table "{table}" on "{node}" is another one than before: it was made anew, or another one was renamed',
        f"rows may differ: restart streamer run, then: streamer verify {sync} --repair",
    )


def unlogged(table: object, node: str, sync: str) -> SourceError:
    """Return the error for a table whose changes the source does not log any more."""
    return SourceError(
        f'table "{table}" on "{node}" is unlogged now: its changes are not replicated',
        f"ALTER TABLE … SET LOGGED, then compare the rows: streamer verify {sync} --repair; "
        "or, to do without it, restart streamer run",
    )


def no_longer_captured(table: object, node: str) -> SourceError:
    """Return the error for a table whose changes triggers captured once, and do not now."""
    return SourceError(
        f'the triggers of table "{table}" on "{node}" are gone or disabled',
        "changes of it may have been missed since; put them back with: streamer setup, and compare the rows",
    )

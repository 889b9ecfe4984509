"""Where events go: files that are rotated by size, or standard output.

The first file has the name of the url, those after it a number of six digits behind that: changes.jsonl, changes.jsonl.000001, …
They never change their names, so the highest number is the newest file. Rotation happens between transactions only.

The trap: what was written is undone by cutting the file back, so files must be ours alone: one that was moved, replaced or changed
by others is an error and is never written over.
"""

from __future__ import annotations

import errno
import os
import re
import select
import stat
import sys
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import ClassVar, Final, Protocol

from streamer.errors import ConnectError, StreamerError, TargetError
from streamer.sinks.jsonl_progress import Place, failure, sync_directory

POLL_MS: Final = 100
"""How often a writer whose reader does not read looks whether it was told to stop."""
_NUMBER: Final = re.compile(r"\.(\d{6,})")


class Output(Protocol):
    """What a sink needs of a place for lines. All but `cancel` and `close` raise ConnectError or TargetError."""

    def open(self, place: Place | None) -> Place | None:
        """Get ready to write after `place`, undoing what follows; with None, after all that is there. Return where that is."""

    def check(self) -> None:
        """Make sure that nobody else has changed anything since we wrote last."""

    def begin(self) -> None:
        """Note that a transaction begins."""

    def write(self, data: bytes) -> None:
        """Append whole lines, possibly none."""

    @property
    def place(self) -> Place | None:
        """Where what was written ends."""

    def sync(self) -> None:
        """Make durable what was written."""

    def cancel(self) -> None:
        """Make a `write` that waits fail soon. Never raises."""

    def close(self) -> None:
        """Let go. Never raises."""


class FileOutput:
    """Implements Output for the files of a node; one that holds `limit` bytes takes no further transaction."""

    def __init__(self, node: str, path: Path, limit: int | None = None) -> None:
        self._node = node
        self._first = path
        self._limit = limit
        self._path = path
        self._descriptor: int | None = None
        self._size = 0

    def open(self, place: Place | None) -> Place:
        """Open the newest file, cut it back to `place`, and remove files that were begun after it.

        A file that somebody has emptied is begun anew; whoever did so has its events.
        """
        self.close()
        try:
            if place is None:
                numbers = self._numbers()
                self._path, flags = self._numbered(max(numbers, default=0)), os.O_CREAT
            else:
                self._path, flags = self._first.parent / place.file, 0
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | flags, 0o666)
            self._size = os.fstat(self._descriptor).st_size
            if place is None:
                self._require_whole_lines()
                sync_directory(self._path.parent)
            else:
                self._go_back_to(place)
        except FileNotFoundError as error:
            if place is None or not self._path.parent.is_dir():
                raise failure(self._node, self._path, error) from error
            raise self._lost(f"does not exist any more, with {place.offset} bytes of events", f"touch {self._path}") from error
        except OSError as error:
            raise failure(self._node, self._path, error) from error
        return self.place

    def _numbers(self) -> list[int]:
        """Of the files that there are."""
        return [n for path in self._first.parent.iterdir() if (n := self._number(path)) is not None]

    def _number(self, path: Path) -> int | None:
        """The number of one of our files, 0 for the first; None if it is not ours."""
        if path.name == self._first.name:
            return 0
        match = _NUMBER.fullmatch(path.name.removeprefix(self._first.name)) if path.name.startswith(self._first.name) else None
        return int(match[1]) if match else None

    def _numbered(self, number: int) -> Path:
        return self._first.with_name(f"{self._first.name}.{number:06}") if number else self._first

    def _require_whole_lines(self) -> None:
        assert self._descriptor is not None
        if self._size and os.pread(self._descriptor, 1, self._size - 1) != b"\n":
            raise TargetError(
                f'node "{self._node}": file "{self._path}" ends in the middle of a line, and no progress says where',
                f"move it away: mv {self._path} {self._path}.old",
            )

    def _go_back_to(self, place: Place) -> None:
        assert self._descriptor is not None
        number = self._number(self._path)
        if number is None:
            raise TargetError(
                f'node "{self._node}": its progress is about file "{self._path}", not about "{self._first}"',
                f"correct nodes.{self._node}.url or nodes.{self._node}.progress",
            )
        if 0 < self._size < place.offset:
            told = f"has {self._size} bytes, of the {place.offset} that streamer has written"
            raise self._lost(told, f"truncate -s 0 {self._path}")
        if self._size > place.offset:
            os.ftruncate(self._descriptor, place.offset)
            self._size = place.offset
        later = [n for n in self._numbers() if n > number]
        for n in later:
            self._numbered(n).unlink()
        if later:
            sync_directory(self._first.parent)

    def _lost(self, what: str, anew: str) -> StreamerError:
        return TargetError(
            f'node "{self._node}": file "{self._path}" {what}', f"put it back; or begin a new one without these events: {anew}"
        )

    def check(self) -> None:
        """Compare the file at its path with ours."""
        descriptor = self._opened
        try:
            there, ours = self._path.stat(), os.fstat(descriptor)
            same = os.path.samestat(there, ours) and ours.st_size == self._size
        except FileNotFoundError:
            same = False
        except OSError as error:
            raise failure(self._node, self._path, error) from error
        if not same:
            raise TargetError(
                f'node "{self._node}": file "{self._path}" was moved, replaced or changed by another program',
                "put it back; streamer tries again by itself",
            )

    @property
    def _opened(self) -> int:
        if self._descriptor is None:
            raise ConnectError(f'node "{self._node}": file "{self._path}" is not open')
        return self._descriptor

    def begin(self) -> None:
        """Go on in the next file if this one is full."""
        if self._limit is None or self._size < self._limit:
            return
        number = self._number(self._path)
        assert number is not None
        try:
            os.fsync(self._opened)
            self.close()
            self._path, self._size = self._numbered(number + 1), 0
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            self._descriptor = os.open(self._path, flags, 0o666)
            sync_directory(self._path.parent)
        except OSError as error:
            raise failure(self._node, self._path, error) from error

    def write(self, data: bytes) -> None:
        """Append; what a failed write left is counted too, so that it is cut off."""
        view = memoryview(data)
        try:
            while view:
                written = os.write(self._opened, view)
                self._size += written
                view = view[written:]
        except OSError as error:
            raise failure(self._node, self._path, error) from error

    @property
    def place(self) -> Place:
        """The end of the newest file."""
        return Place(self._path.name, self._size)

    def sync(self) -> None:
        """Flush the file to the disk."""
        try:
            os.fsync(self._opened)
        except OSError as error:
            raise failure(self._node, self._path, error) from error

    def cancel(self) -> None:
        """Do nothing: a disk does not wait for anybody."""

    def close(self) -> None:
        """Close the file."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with suppress(OSError):
                os.close(descriptor)


class StandardOutput:
    """Implements Output for standard output, where nothing can be undone: what was not recorded comes again."""

    #: the last line is torn: of the process, because its next writer must part its own from that
    _torn: ClassVar[bool] = False

    def __init__(self, node: str, descriptor: int | None = None) -> None:
        self._node = node
        self._descriptor = sys.__stdout__.fileno() if descriptor is None and sys.__stdout__ else descriptor
        self._cancelled = Event()

    def open(self, place: Place | None) -> None:
        """Part what comes from a torn line."""
        if StandardOutput._torn:
            self.write(b"\n")

    def check(self) -> None:
        """Do nothing: only a write can tell."""

    def begin(self) -> None:
        """Do nothing: there is nothing to rotate."""

    def write(self, data: bytes) -> None:
        """Write, and wait for the reader as long as it takes, unless cancelled.

        In portions that a pipe takes whole once it is writable: a larger write would block, and could not be broken off.
        """
        descriptor = self._opened
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        view = memoryview(data)
        try:
            while view:
                if self._cancelled.is_set():
                    raise ConnectError(
                        f'node "{self._node}": standard output was not read', "read it; streamer tries again by itself"
                    )
                if poll.poll(POLL_MS):
                    written = os.write(descriptor, view[: select.PIPE_BUF])
                    StandardOutput._torn = view[written - 1] != ord("\n")
                    view = view[written:]
        except OSError as error:
            raise self._failure(error) from error

    @property
    def place(self) -> None:
        """None: there is no going back to it."""
        return None

    def sync(self) -> None:
        """Flush a file that standard output goes to; all else is gone from our hands."""
        try:
            if stat.S_ISREG(os.fstat(self._opened).st_mode):
                os.fsync(self._opened)
        except OSError as error:
            raise self._failure(error) from error

    @property
    def _opened(self) -> int:
        if self._descriptor is None:
            raise ConnectError(f'node "{self._node}": standard output is closed', "run streamer with a standard output")
        return self._descriptor

    def _failure(self, error: OSError) -> StreamerError:
        if error.errno == errno.EPIPE:
            remedy = "start the program that reads it, then streamer run; a reader of a named pipe may come back by itself"
            return ConnectError(f'node "{self._node}": nobody reads standard output any more', remedy)
        remedy = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "correct where it goes"
        return ConnectError(
            f'node "{self._node}": standard output cannot be written: {error.strerror}', f"{remedy}; streamer tries again by itself"
        )

    def cancel(self) -> None:
        """Make a write that waits for its reader give up."""
        self._cancelled.set()

    def close(self) -> None:
        """Do nothing: standard output stays open for the next attempt."""

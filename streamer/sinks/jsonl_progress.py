"""The progress of a jsonl node: a small JSON file beside the events, replaced as a whole whenever they are durable.

It says where in which file the last whole transaction ends, so that a start after a crash can cut off what came later, and whose
edge it is. A lock on it (flock) keeps a second daemon away.

The trap: replacing a file by rename leaves the lock behind on the old one. So the new file is locked before it takes the name, and
whoever gets a lock looks whether the file still has its name.

https://man7.org/linux/man-pages/man2/flock.2.html, https://man7.org/linux/man-pages/man2/fsync.2.html
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from streamer.errors import ConnectError, StreamerError, TakenError, TargetError
from streamer.model import LSN, EdgeName, SlotIdentity, TableName

_VERSION: Final = 1
_RIGHTS: Final = "give the user that runs streamer the right to write the file and its directory"
_ROOM: Final = "make room; streamer tries again by itself"
_REMEDIES: Final = {
    **dict.fromkeys((errno.EACCES, errno.EPERM), _RIGHTS),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _ROOM),
    errno.EROFS: "mount it for writing; streamer tries again by itself",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or set rotate_mb below it",
    errno.EIO: "look for errors of the disk in the kernel's log: dmesg; streamer tries again by itself",
}


def failure(node: str, path: Path, error: OSError) -> StreamerError:
    """Return what the operating system said of a file, for people."""
    if isinstance(error, FileNotFoundError) and not path.parent.is_dir():
        return ConnectError(f'node "{node}": directory "{path.parent}" does not exist', f"mkdir -p {path.parent}")
    kind = TargetError if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ConnectError
    remedy = _REMEDIES.get(error.errno or 0, f"correct nodes.{node}, or what is at that place; streamer tries again by itself")
    return kind(f'node "{node}": file "{path}" cannot be written: {error.strerror}', remedy)


@dataclass(frozen=True, slots=True)
class Place:
    """The end of the events in a file: its name, without the directory, and how many bytes of it count."""

    file: str
    offset: int


@dataclass(frozen=True, slots=True)
class Record:
    """What the file says: everything of `edge` that was committed before `position` is in the events."""

    edge: EdgeName
    slot: SlotIdentity
    position: LSN
    copied: dict[TableName, LSN]
    #: None where the events go to standard output
    place: Place | None

    def encode(self) -> bytes:
        """Return the file's content."""
        document = {
            "version": _VERSION,
            "sync": self.edge.sync,
            "source": self.edge.source,
            "target": self.edge.target,
            "slot": {"system_identifier": self.slot.system_identifier, "database": self.slot.database, "name": self.slot.slot},
            "position": str(self.position),
            "file": self.place.file if self.place else None,
            "offset": self.place.offset if self.place else None,
            "copied": [{"schema": t.schema, "table": t.name, "position": str(at)} for t, at in self.copied.items()],
        }
        return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"

    @classmethod
    def decode(cls, content: bytes) -> Record:
        """Return what the content of the file says. Raises ValueError, KeyError or TypeError if it is not ours."""
        found: Any = json.loads(content)
        if found["version"] != _VERSION:
            raise ValueError(f"version {found['version']}")
        slot = found["slot"]
        return cls(
            EdgeName(found["sync"], found["source"], found["target"]),
            SlotIdentity(slot["system_identifier"], slot["database"], slot["name"]),
            LSN.parse(found["position"]),
            {TableName(c["schema"], c["table"]): LSN.parse(c["position"]) for c in found["copied"]},
            None if found["file"] is None else Place(str(found["file"]), int(found["offset"])),
        )


def read(node: str, path: Path) -> Record | None:
    """Return what the progress file says; None if there is none. Takes no lock. Raises ConnectError, TargetError."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise failure(node, path, error) from error
    return _decoded(node, path, content)


def _decoded(node: str, path: Path, content: bytes) -> Record | None:
    """The record in the content of the file; an empty file is one that was only locked."""
    try:
        return Record.decode(content) if content else None
    except (ValueError, KeyError, TypeError) as error:
        raise TargetError(
            f'node "{node}": "{path}" is no progress file of this version of streamer',
            f"restore it; or move it away: the sync {node} is a target of then begins anew, with the rows read again",
        ) from error


class ProgressFile:
    """The progress file of an edge's target, while the edge writes it."""

    def __init__(self, edge: EdgeName, path: Path) -> None:
        self._edge = edge
        self._node = edge.target
        self._path = path
        self._descriptor: int | None = None

    def open(self) -> Record | None:
        """Lock the file, making it if it is missing, and return what it says. Raises ConnectError, TargetError."""
        try:
            descriptor = self._locked()
            with open(descriptor, "rb", closefd=False) as file:
                content = file.read()
        except BlockingIOError:
            raise TakenError(
                f'edge {self._edge}: its progress file "{self._path}" is locked by another daemon',
                f"streamer takes over when that ends; to see which it is: fuser -v {self._path}",
            ) from None
        except OSError as error:
            raise failure(self._node, self._path, error) from error
        return _decoded(self._node, self._path, content)

    def _locked(self) -> int:
        while True:
            descriptor = self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(self._path, descriptor):
                return descriptor
            self.close()  # replaced between our opening and locking it

    def store(self, record: Record) -> None:
        """Replace what the file says; returning means durable. Raises ConnectError, TargetError."""
        fresh = self._path.with_name(self._path.name + ".new")
        try:
            descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with open(descriptor, "wb", closefd=False) as file:
                    file.write(record.encode())
                os.fsync(descriptor)
                if self._descriptor is None or not _is_at(self._path, self._descriptor):
                    raise FileNotFoundError(errno.ENOENT, "it was removed or replaced")
                fresh.rename(self._path)
            except BaseException:
                os.close(descriptor)
                raise
            self.close()
            self._descriptor = descriptor
            sync_directory(self._path.parent)
        except OSError as error:
            raise failure(self._node, self._path, error) from error

    def close(self) -> None:
        """Give up the lock. Never raises."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with suppress(OSError):
                os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the open file is the one at the path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def sync_directory(path: Path) -> None:
    """Make durable which files the directory has. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

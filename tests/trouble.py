"""Trouble with files that anybody may have: no right to write, no room to grow, no room on the disk. Root has neither by itself."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NOBODY = 65534


@contextmanager
def unprivileged(*owned: str | Path) -> Iterator[None]:
    """Be nobody for a while, and the owner of these files, if we are root, for whom nothing is read-only."""
    was = os.geteuid()
    if was == 0:
        for path in owned:
            os.chown(path, NOBODY, -1)
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(was)


@contextmanager
def file_size_limit(size: int, pid: int = 0) -> Iterator[None]:
    """No file of the process, by default our own, grows beyond `size` bytes: like a full disk, while the context lasts."""
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


class SmallDisk:
    """A file system of `size` bytes at `place`, which only those see who are started with `enter` before their command.

    It is mounted in a namespace of its own: that takes no rights, and it is gone with the process that holds it, whatever happens.
    The trap: from outside, a path through `/proc` leads there, but SQLite resolves links by itself and comes out elsewhere.

    https://man7.org/linux/man-pages/man7/mount_namespaces.7.html
    """

    def __init__(self, place: Path, size: int) -> None:
        place.mkdir()
        user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        mount = f'mount -t tmpfs -o size={size},mode=777 none "$1" && echo mounted && exec cat'
        self._holder = subprocess.Popen(
            ["unshare", *user, "--mount", "sh", "-c", mount, "sh", str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"mounted\n":
            raise RuntimeError("a small disk needs a mount namespace: run the tests where unshare --user --mount is allowed")
        self.enter = ["nsenter", f"--target={self._holder.pid}", *(["--user", "--preserve-credentials"] if user else []), "--mount"]
        #: the same place, for all
        self.root = Path(f"/proc/{self._holder.pid}/root{place}")

    def fill(self) -> None:
        """Leave not one byte."""
        with (self.root / "ballast").open("ab", buffering=0) as ballast:
            for size in (1 << 16, 1):
                with suppress(OSError):
                    while ballast.write(bytes(size)):
                        pass

    def relieve(self) -> None:
        """Take away what fills it."""
        (self.root / "ballast").unlink()

    def close(self) -> None:
        """End it."""
        self._holder.communicate()

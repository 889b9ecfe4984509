"""Trouble with files that anybody may have: no right to write, no room to grow. Root has neither by itself."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
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

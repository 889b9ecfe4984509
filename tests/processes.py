"""What the kernel knows of running processes: their children, the CPU time that they have used, and the most memory they ever had.

The trap: what a process used is forgotten when it ends, but for a sum that its parent keeps once it has waited for it.
https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html https://man7.org/linux/man-pages/man5/proc_pid_status.5.html
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_UTIME: Final = 11  # its place in /proc/PID/stat behind the name; stime, cutime and cstime follow


def with_children(pid: int) -> Iterator[int]:
    """Give the process, its children, and theirs, as far as they run."""
    yield pid
    with contextlib.suppress(OSError):  # it ended while we looked
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in children.read_text().split():
                yield from with_children(int(child))


def runs(pid: int) -> bool:
    """Whether the process has not ended; one that nobody has waited for has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def cpu_seconds(pid: int, *, ended_children: bool = False) -> float:
    """CPU time of a process so far, and if wanted of the children that it has waited for; 0.0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    times = fields[_UTIME : _UTIME + (4 if ended_children else 2)]
    return sum(map(int, times)) / _TICKS


def peak_memory(pid: int) -> int:
    """The most that the process ever had in memory, in MiB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) // 1024

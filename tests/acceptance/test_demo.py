"""`streamer demo` as a stranger runs it: what it prints, how it ends, and that nothing is left behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import wait_for

DEMO = [sys.executable, "-m", "streamer.cli", "demo"]
TABLES = ("pgbench_accounts", "pgbench_branches", "pgbench_history", "pgbench_tellers", "prices")
MONEY = ("accounts", "tellers", "branches", "history")


@pytest.fixture
def room() -> Iterator[Path]:
    """A directory for temporary files, which every user may enter: PostgreSQL does not run as root."""
    room = Path(tempfile.mkdtemp(prefix="streamer-test-"))
    room.chmod(0o755)
    yield room
    shutil.rmtree(room)


def start(room: Path, *options: str) -> subprocess.Popen[str]:
    environment = os.environ | {"TMPDIR": str(room), "COLUMNS": "80"}
    return subprocess.Popen([*DEMO, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def cells(row: str, printed: str) -> list[str]:
    """What a table of the demo shows of each node."""
    line = next(line for line in printed.splitlines() if line.startswith(f"│ {row} "))
    return [cell.strip() for cell in line.split("│")[2:7]]


def processes(room: Path) -> list[str]:
    """The command lines of processes that have to do with the directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_text().replace("\0", " ")
        except OSError:  # it ended while we looked
            continue
        if str(room) in line:
            found.append(line)
    return found


def test_the_demo_ends_with_equal_rows_and_leaves_nothing_behind(room: Path) -> None:
    demo = start(room, "--seconds", "6")
    printed, _ = demo.communicate()
    assert demo.returncode == 0, printed
    for row in (*TABLES, *MONEY):
        assert re.search(rf"│ {row} .* equal ", printed), printed
    assert "Every row of every table is equal on all 5, and not one payment is lost or counted twice." in printed
    assert len(set(cells("pgbench_history", printed))) == 1
    assert len({amount for where in MONEY for amount in cells(where, printed)}) == 1
    assert int(cells("pgbench_history", printed)[0].replace(",", "")) > 100
    assert re.search(r"\d+ conflicts were resolved: \d+ \w+", printed), printed
    assert list(room.iterdir()) == []
    assert processes(room) == []


def test_an_interrupted_demo_leaves_nothing_behind(room: Path) -> None:
    demo = start(room, "--seconds", "100")
    assert demo.stdout is not None
    for line in demo.stdout:
        if "; lag " in line:
            break
    demo.send_signal(signal.SIGINT)
    printed, _ = demo.communicate()
    assert demo.returncode == 130, printed
    assert "Traceback" not in printed
    assert list(room.iterdir()) == []
    assert processes(room) == []


def test_what_a_kept_demo_says_about_looking_around_and_removing_it_is_true(room: Path) -> None:
    demo = start(room, "--seconds", "1", "--keep")
    printed, _ = demo.communicate()
    assert demo.returncode == 0, printed
    commands = [line.strip() for line in printed.split("To look around:")[1].splitlines() if line.startswith("  ")]
    config, _, status, conflicts, psql, _, removal = commands
    try:
        assert "[syncs.archive]" in _shell(config)
        assert "not running" in _shell(f"{status} || [ $? = 2 ]")
        _shell(f"{conflicts} --json")
        assert _shell(f"{psql} -Atc 'SELECT count(*) FROM pgbench_accounts'").strip() == "100000"
        assert next(room.glob("*/shop.sqlite")).stat().st_size > 0
    finally:
        _shell(removal)
    wait_for(lambda: not processes(room), "the server of the demo to end")
    assert list(room.iterdir()) == []


def _shell(command: str) -> str:
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout

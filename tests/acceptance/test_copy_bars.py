"""`streamer run` on a terminal: bars while rows are copied, and the log above them."""

from __future__ import annotations

import os
import pty
import select
import subprocess
from pathlib import Path

from tests.acceptance.daemon import PROGRAM, REPOSITORY, Streamer
from tests.servers import Database
from tests.waiting import wait_for


class Terminal:
    """A program on a terminal of 80 columns, and what it has shown so far."""

    def __init__(self, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        self._shown = b""
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24", "NO_COLOR": "1"}
        self.process = subprocess.Popen(
            [*PROGRAM, *arguments], cwd=REPOSITORY, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)

    def shows(self, text: str) -> bool:
        """Whether it has shown that by now."""
        while select.select([self._ours], [], [], 0.1)[0]:
            try:
                self._shown += os.read(self._ours, 65536)
            except OSError:  # nobody has the other end any more
                break
        return text in self._shown.decode(errors="replace")

    def stop(self) -> int:
        """Have the program end; return its exit code."""
        self.process.terminate()
        try:
            return self.process.wait(timeout=30)
        finally:
            os.close(self._ours)


def test_bars_show_a_copy_while_it_lasts_and_when_it_is_whole(source15: Database, target18: Database, tmp_path: Path) -> None:
    for node in (source15, target18):
        node.execute("CREATE TABLE t (id int PRIMARY KEY)")
    source15.execute("INSERT INTO t SELECT generate_series(1, 1000); ANALYZE t")
    streamer = Streamer(tmp_path, {"a": source15.url, "b": target18.url}).setup()
    with target18.connect() as locker:
        locker.execute("BEGIN; LOCK TABLE t IN EXCLUSIVE MODE")
        terminal = Terminal("run", "--config", str(streamer.path))
        try:
            wait_for(lambda: terminal.shows("shop: a -> b, 0/1"), "the bar of the edge")
            assert terminal.shows("  public.t")
            locker.execute("COMMIT")
            wait_for(lambda: terminal.shows("stream_reading"), "the stream to be read")
            wait_for(lambda: terminal.shows("shop: a -> b, 1/1"), "the last bar")
            assert terminal.shows("100%")
            assert terminal.shows(" 1k/1k ")
        finally:
            code = terminal.stop()
    assert code == 0

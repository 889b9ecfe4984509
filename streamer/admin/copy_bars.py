"""How far an initial copy is, as progress bars on a terminal. They look at the daemon's reports now and then."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from streamer.report import CopyReport, StreamReport

LOOK_SECONDS: Final = 0.3

Report = Callable[[], Sequence[StreamReport]]


@contextmanager
def shown(report: Report) -> Iterator[None]:
    """Show running copies on standard error while the context lasts, if that is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(report, ended), name="copy bars", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _watch(report: Report, ended: threading.Event) -> None:
    finished: set[str] = set()
    last = False
    while not last:
        last = ended.wait(LOOK_SECONDS)
        if running := _copies(report, finished):
            with _Bars() as bars:
                while running and not last:
                    bars.show(running)
                    finished |= {name for name, copy in running.items() if copy.done}
                    last = ended.wait(LOOK_SECONDS)
                    running = _copies(report, finished)


def _copies(report: Report, finished: Collection[str]) -> dict[str, CopyReport]:
    """The copies that are not known to be finished, by name."""
    edges = (edge for stream in report() for edge in stream.edges)
    copies = ((f"{edge.sync}: {edge.source} -> {edge.target} {copy.table}", copy) for edge in edges for copy in edge.copy)
    return {name: copy for name, copy in copies if name not in finished}


class _Bars(Progress):
    """A bar for each table; they stay in place when they are full."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        super().__init__(*columns, console=Console(stderr=True))
        self._known: dict[str, TaskID] = {}

    def show(self, copies: Mapping[str, CopyReport]) -> None:
        """Move the bars of these tables."""
        for name, copy in copies.items():
            if name not in self._known:
                self._known[name] = self.add_task(name, total=None)
            total = copy.rows if copy.done else max(copy.total, copy.rows) or None  # the catalog only estimates
            self.update(self._known[name], completed=copy.rows, total=total)

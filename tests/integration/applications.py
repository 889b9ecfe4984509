"""Applications that write on the nodes of a test without a pause, each in a thread of its own."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, TypeAlias, TypeVar

import psycopg

from tests.servers import Database
from tests.waiting import wait_for

Statement: TypeAlias = tuple[str, Sequence[object]]


class Application(ABC):
    """Writes one transaction after the other, from `start` to `stop`."""

    #: what the server may refuse a transaction for, because another node's change was there first; it is not tried again
    refusals: ClassVar[tuple[type[psycopg.Error], ...]] = ()

    def __init__(self, name: str, database: Database) -> None:
        self.name, self._database = name, database
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"application {name}", daemon=True)
        self._broken: Exception | None = None
        self.transactions = 0

    @abstractmethod
    def next(self) -> Sequence[Statement]:
        """Return the statements of the next transaction."""

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self) -> None:
        """End, and raise what has gone wrong."""
        self._stop.set()
        self._thread.join()
        if self._broken is not None:
            raise self._broken

    def _run(self) -> None:
        with self._database.connect() as connection:
            connection.autocommit = True
            while not self._stop.wait(0.002):
                try:
                    with connection.transaction():
                        for statement, parameters in self.next():
                            connection.execute(statement.encode(), parameters or None)
                except self.refusals:
                    continue
                except Exception as error:
                    self._broken = error
                    return
                self.transactions += 1


A = TypeVar("A", bound=Application)


@contextmanager
def writing(applications: Sequence[A]) -> Iterator[list[A]]:
    """They write while the context lasts."""
    for application in applications:
        application.start()
    try:
        yield list(applications)
    finally:
        for application in applications:
            application.stop()


def more(applications: Sequence[Application], transactions: int = 50) -> None:
    """Wait until each of them has written some more."""
    goals = {application: application.transactions + transactions for application in applications}
    wait_for(lambda: all(a.transactions >= goal for a, goal in goals.items()), "applications to write on")

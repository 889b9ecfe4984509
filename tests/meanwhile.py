"""Work that goes on in threads while a test does something else, like the application that writes while rows are copied.

The trap: nobody sees an error in a thread; here it is raised when the context ends, so that no test succeeds without its load.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

Work: TypeAlias = Callable[[threading.Event], None]
"""Works until it is told to stop."""


@contextmanager
def meanwhile(*works: Work) -> Iterator[None]:
    """Have each work done by a thread of its own while the context lasts; raises what the first of them raised."""
    stop, errors = threading.Event(), list[BaseException]()

    def run(work: Work) -> None:
        try:
            work(stop)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=[work]) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]

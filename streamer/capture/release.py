"""When a source would remove WAL if only a small step of progress were noted, which is not noted for its own sake.

Where decoding could begin anew (restart_lsn) moves only when something is confirmed that lies behind it, and where nobody writes
much more, that would not come by itself. The traps: a transaction that is left open holds WAL back too, and no step helps; and what
the targets write may in turn be read by others, which hold WAL back for the same reason.

https://www.postgresql.org/docs/current/view-pg-replication-slots.html
"""

from __future__ import annotations

import time
from typing import Final

from streamer.model import LSN

HELD_BYTES: Final = 16 << 20
"""WAL that is worth a write on the targets to have the source remove it: by default it is removed in files of this size."""
FIRST_SECONDS: Final = 5.0
AT_MOST_SECONDS: Final = 600.0
"""How often targets are asked to write for that while it does not help: at first, and less and less often."""


class Release:
    """Decides for one session when to ask. `kept_from` is from where on the server keeps WAL for us, as far as we know."""

    def __init__(self, held_bytes: int) -> None:
        self.kept_from: LSN | None = None
        self._held_bytes = held_bytes
        #: from where it kept WAL when we last asked, and when to ask again if it still does
        self._asked_at: LSN | None = None
        self._again, self._rest = 0.0, FIRST_SECONDS

    def is_due(self, position: LSN, confirmed: LSN) -> bool:
        """Return whether noting this position may help now. Not where a target is far behind: then it is that one which holds the
        WAL back. Once for every time that `kept_from` is learnt."""
        kept_from = self.kept_from
        if kept_from is None or position - kept_from < self._held_bytes or position - confirmed > self._held_bytes:
            return False
        now = time.monotonic()
        if kept_from != self._asked_at:
            self._asked_at, self._rest = kept_from, FIRST_SECONDS
        elif now < self._again:
            return False
        self._again, self._rest = now + self._rest, min(2 * self._rest, AT_MOST_SECONDS)
        self.kept_from = None
        return True

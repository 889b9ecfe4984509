"""Names of nodes and syncs, from Bucardo's: those may have upper-case letters and any length, and ours may not."""

from __future__ import annotations

import re
from typing import Final

_LONGEST: Final = 25


class Names:
    """The names that are given to one kind of things, each once."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def take(self, wanted: str) -> str:
        """Return a name that is allowed and free, as near to the wanted one as can be."""
        plain = re.sub(r"[^a-z0-9_]", "_", wanted.lower())
        plain = plain if plain[:1].isalpha() else f"b{plain}"
        name, number = plain[:_LONGEST], 2
        while name in self._taken:
            end = f"_{number}"
            name, number = plain[: _LONGEST - len(end)] + end, number + 1
        self._taken.add(name)
        return name

"""How much WAL the slots of a node may hold back, and what follows when it is more. Pure.

The level is that of the worst slot of ours; those of others are shown, and never judged. The trap: a stream that holds WAL back
gets well by being let go on, never by being paused; so what waits is only the other work on its node, and it waits until the level
is `ok` again, else it would come and go at the limit.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from streamer.node_config import WalGuard
from streamer.report import GuardLevel, SlotReport

_UNITS: Final = ("bytes", "kB", "MB", "GB", "TB")


def size(number: float) -> str:
    """Return a number of bytes for people, in units of 1024."""
    unit = 0
    while number >= 1024 and unit < len(_UNITS) - 1:
        number, unit = number / 1024, unit + 1
    return f"{number:.0f} {_UNITS[unit]}" if unit == 0 or number >= 100 else f"{number:.1f} {_UNITS[unit]}"


class Guard:
    """The guard of one node; `limit` in bytes, None for none."""

    def __init__(self, node: str, limit: int | None, mode: WalGuard) -> None:
        self.limit = limit
        self.mode = mode
        self.level = GuardLevel.OK
        self._node = node
        self._worst: SlotReport | None = None
        self._holding = False
        self._relieved: Collection[tuple[str, str]] = ()

    def look(self, slots: Sequence[SlotReport]) -> bool:
        """Take note of the node's slots; return whether the level is another one now."""
        ours = [slot for slot in slots if slot.sync and slot.retained_bytes is not None]
        self._worst = max(ours, key=_retained, default=None)
        before, self.level = self.level, self._level_of(self._worst)
        self._holding = self.level is GuardLevel.EXCEEDED or (self._holding and self.level is GuardLevel.HALF)
        self._relieved = {(s.sync, s.source) for s in ours if self._level_of(s) is not GuardLevel.OK}
        return self.level is not before

    def _level_of(self, slot: SlotReport | None) -> GuardLevel:
        if slot is None or self.limit is None or 2 * _retained(slot) <= self.limit:
            return GuardLevel.OK
        return GuardLevel.HALF if _retained(slot) <= self.limit else GuardLevel.EXCEEDED

    def doomed(self, slots: Sequence[SlotReport]) -> list[SlotReport]:
        """Return the slots that are to be dropped."""
        if self.mode != "drop-slot":
            return []
        return [slot for slot in slots if slot.sync and self._level_of(slot) is GuardLevel.EXCEEDED]

    def obstacle(self, sync: str, source: str) -> str:
        """Why a stream's run or initial copy must not begin now; empty if it may."""
        if self.mode != "pause" or not self._holding or (sync, source) in self._relieved:
            return ""
        return f"the WAL guard lets no other work begin: {self.finding}"

    @property
    def finding(self) -> str:
        """How much the worst slot holds back, for people."""
        if self._worst is None or self.limit is None:
            return "no slot holds WAL back"
        held, limit = size(_retained(self._worst)), size(self.limit)
        return f'slot "{self._worst.slot}" holds back {held} of WAL on "{self._node}" (max_retained_wal is {limit})'


def _retained(slot: SlotReport) -> int:
    return slot.retained_bytes or 0

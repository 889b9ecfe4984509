"""A source that finds out at its first connection how it is read: `auto` goes by the server's version."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from streamer.capture.assemble import Interest
from streamer.capture.slot import SlotSource
from streamer.capture.snapshot import ExportedSnapshot
from streamer.capture.trigger_source import TriggerSource
from streamer.node_config import Node, choose_capture
from streamer.ports import CopyTable, Place, Reader, SlotState
from streamer.session import connect, version


class ChosenSource:
    """Implements ports.Source by what the node named `name` turns out to need. Raises what that raises."""

    def __init__(self, name: str, node: Node, sync: str, slot: str, interest: Interest) -> None:
        self._name = name
        self._node = node
        self._sync = sync
        self._slot = slot
        self._interest = interest
        self._source: SlotSource | TriggerSource | None = None

    def state(self) -> SlotState:
        """Return where the stream stands."""
        return self._chosen().state()

    def tables(self) -> Sequence[CopyTable]:
        """Return the tables that the sync selects."""
        return self._chosen().tables()

    def read_from(self, places: Sequence[Place]) -> AbstractContextManager[Reader]:
        """Open the stream."""
        return self._chosen().read_from(places)

    def snapshot(self) -> AbstractContextManager[ExportedSnapshot]:
        """Hold a consistent state of the tables."""
        return self._chosen().snapshot()

    def _chosen(self) -> SlotSource | TriggerSource:
        if self._source is None:
            self._source = self._choose()
        return self._source

    def _choose(self) -> SlotSource | TriggerSource:
        capture: str = self._node.capture
        if capture == "auto":
            with connect(self._name, self._node.url, application=f"streamer {self._sync} {self._name}") as connection:
                capture, _ = choose_capture(capture, version(connection))
        if capture == "trigger":
            return TriggerSource(self._name, self._node.url, self._sync, self._slot, self._interest)
        return SlotSource(self._name, self._node, self._sync, self._slot, self._interest)

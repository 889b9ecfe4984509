"""Which versions of copied rows may matter to changes that are still on their way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

from streamer.joining import OUT_OF_ORDER, settled
from streamer.model import LSN, POSTGRES_EPOCH, TableName, Version
from streamer.ports import Held, Progress, RowVersion
from tests.memory_source import SLOT, START, MemorySnapshot

TABLE = TableName("public", "t")
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


def at(minutes: float) -> datetime:
    return NOON + timedelta(minutes=minutes)


def held(minutes: float, **seen: float) -> Held:
    """What the snapshot has of a node: up to then, when that had seen so much of others."""
    return Held(Progress(SLOT, START, {}, {node: at(time) for node, time in seen.items()}), at(minutes))


class Snapshot(MemorySnapshot):
    """Rows that were written by each of four nodes in each minute of half an hour."""

    asked: datetime

    def versions(self, table: TableName, key: Sequence[str], since: datetime) -> Iterator[RowVersion]:
        self.asked = since
        for minute in range(30):
            for node in "abcd":
                if at(minute) > since:
                    yield RowVersion((str(minute),), Version(at(minute), node), deleted=False)


def oldest(
    others: str, holds: dict[str, Held], floor: datetime = POSTGRES_EPOCH, here: datetime | None = None
) -> tuple[dict[str, int], Snapshot]:
    """By node, the first minute whose rows keep their version in a copy from a to d."""
    snapshot, found = Snapshot(LSN(100), {}), dict[str, int]()
    for row in settled("a", "d", others, holds).unsettled(snapshot, TABLE, ["id"], floor, here):
        found.setdefault(row.version.node, int(row.key[0]))
    return found, snapshot


def test_a_node_is_not_in_doubt_about_what_it_had_seen_and_wrote_after() -> None:
    found, _ = oldest("b", {"b": held(20, a=10, d=25)})
    slack = OUT_OF_ORDER // timedelta(minutes=1)
    assert found == {"a": 11 - slack, "d": 21 - slack, "c": 21 - slack}  # c is not of this sync


def test_the_one_who_is_furthest_behind_decides() -> None:
    found, _ = oldest("bc", {"b": held(20, a=19, c=19, d=19), "c": held(15, a=14, b=5, d=14)})
    slack = OUT_OF_ORDER // timedelta(minutes=1)
    assert found == {"a": 15 - slack, "b": 6 - slack, "c": 20 - slack, "d": 15 - slack}


def test_of_a_node_that_has_not_been_heard_of_all_that_others_wrote_is_in_doubt() -> None:
    assert oldest("b", {})[0] == dict.fromkeys("acd", 0)
    assert oldest("b", {}, floor=at(7))[0] == dict.fromkeys("acd", 8)


def test_no_version_is_needed_where_nobody_else_writes_but_for_rows_that_the_target_wrote_itself() -> None:
    found, snapshot = oldest("", {})
    assert found == {}
    assert not hasattr(snapshot, "asked")
    assert oldest("", {}, here=at(25))[0] == dict.fromkeys("abcd", 26)

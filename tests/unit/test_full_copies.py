"""When tables are copied whole, and what the config may say of it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from streamer import periods
from streamer.full_copies import FullCopies
from streamer.model import TableName
from streamer.ports import CopyTable
from tests.configs import checked, make_config

A, B = (CopyTable(TableName("public", name), (), (), 0, whole=True) for name in "ab")
NODES = {"a": "postgresql://x@127.0.0.1:1/a", "b": "postgresql://x@127.0.0.1:1/b", "j": "jsonl:///tmp/j"}


class Clock:
    """Seconds that pass when the test says so."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_they_are_copied_when_the_edge_begins_and_then_every_so_often() -> None:
    clock = Clock()
    copies = FullCopies(60, clock)
    assert not copies.due  # nobody knows yet whether there are any
    assert copies.wanted([A, B]) == [A, B]
    assert copies.due
    copies.note(A, 5)
    assert copies.wanted([A, B]) == [B]  # the copy of b has failed, and is tried again
    clock.now += 30
    copies.note(B, 6)
    copies.end_round()
    assert not copies.due
    clock.now += 59
    copies.begin_run()  # after a pause
    assert copies.wanted([A, B]) == []
    clock.now += 1
    assert copies.due
    assert copies.wanted([A, B]) == [A, B]
    assert [(r.table, r.rows) for r in copies.reports()] == [("public.a", 5), ("public.b", 6)]


def test_without_a_time_they_are_copied_once_a_run() -> None:
    copies = FullCopies(None)
    for _ in range(2):
        copies.begin_run()
        assert copies.wanted([A]) == [A]
        copies.note(A, 1)
        copies.end_round()
        assert not copies.due
        assert copies.wanted([A]) == []  # an edge that begins again within the run


def test_an_edge_without_such_tables_is_never_due() -> None:
    copies = FullCopies(1)
    assert copies.wanted([]) == []
    assert not copies.due


@pytest.mark.parametrize(
    ("period", "length"), [("10m", 600), ("1 h", 3600), ("2d", 172_800), ("m", None), ("1.5h", None), ("", None)]
)
def test_periods(period: str, length: int | None) -> None:
    assert periods.seconds(period) == length


def config(table: dict[str, Any], /, sync: dict[str, Any] | None = None) -> None:
    nodes = {name: NODES[name] for name in ("a", "b")}
    make_config(nodes, tables=["t"], table={"t": table}, **(sync or {}))


def problem(table: dict[str, Any], /, sync: dict[str, Any] | None = None) -> str:
    with pytest.raises(ValidationError) as error:
        config(table, sync)
    return str(error.value)


def test_what_makes_no_sense_is_refused() -> None:
    masters: dict[str, Any] = {"sources": ["a", "b"], "targets": []}
    config({"fullcopy": True}, {"fullcopy_every": "10m"})
    config({"key": ["a", "b"]})
    assert "makes no sense with fullcopy" in problem({"fullcopy": True, "key": ["a"]})
    assert "is empty" in problem({"key": []})
    assert 'column "a" is named twice' in problem({"key": ["a", "a"]})
    assert "conflicts are noticed by keys" in problem({"key": ["a"]}, masters)
    assert "a copy of one would take away the rows of the others" in problem({"fullcopy": True}, masters)
    for period in ("0s", "367d", "often"):
        assert 'must be "NUMBER UNIT"' in problem({}, {"fullcopy_every": period})


def test_a_full_copy_goes_nowhere_where_it_would_do_harm() -> None:
    def document(shop: dict[str, Any], more: dict[str, Any] | None = None) -> dict[str, Any]:
        shop = {"sources": ["a"], "targets": ["b"], "tables": ["t"], "table": {"t": {"fullcopy": True}}} | shop
        nodes = {name: {"url": url} for name, url in (NODES | {"c": "postgresql://x@127.0.0.1:1/c"}).items()}
        return {"nodes": nodes, "syncs": {"shop": shop} | ({"more": more} if more else {})}

    with pytest.raises(ValidationError, match='target "j" is a file of events, whose rows nobody can replace'):
        checked(document({"targets": ["b", "j"]}))
    onward: dict[str, Any] = {"sources": ["b"], "targets": ["c"], "tables": ["*"]}
    with pytest.raises(ValidationError, match='target "b" hands the table on by sync "more"'):
        checked(document({}, onward))
    checked(document({}, onward | {"exclude": ["t"]}))
    checked(document({}, onward | {"table": {"t": {"fullcopy": True}}}))  # copied whole from there, too

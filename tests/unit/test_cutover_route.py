"""From where to where a cutover goes, by which sync it comes back, and what else reads and writes the two nodes."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from streamer.admin.copy import consequences
from streamer.admin.cutover_route import NoWayBack, Route, beside, compared_as, is_fed, left_behind, neighbours, route
from streamer.admin.cutover_sequences import ahead
from streamer.config import Config
from streamer.errors import UsageError
from streamer.model import EdgeName, TableName
from streamer.sequence_ports import SequenceState
from tests.configs import make_config

NODES = {
    "old": "postgresql://h/a",
    "new": "postgresql://h/b",
    "third": "postgresql://h/c",
    "lite": "sqlite:///x",
    "log": "jsonl:///y",
}
FORTH: dict[str, Any] = {"sources": ["old"], "targets": ["new"], "tables": ["public.*"]}
BACK: dict[str, Any] = {"sources": ["new"], "targets": ["old"], "tables": ["public.*"]}


def config(**syncs: Any) -> Config:  # noqa: ANN401  # keys of syncs
    return make_config(NODES, syncs=syncs)


def test_the_way_back_is_the_sync_from_the_new_node_to_the_old_one() -> None:
    found = route(config(forth=FORTH, home=BACK), "forth", "new", way_back=True)
    assert found == Route(EdgeName("forth", "old", "new"), EdgeName("home", "new", "old"))


def test_without_a_way_back_the_lines_that_are_missing_are_told() -> None:
    with pytest.raises(NoWayBack, match="streamer setup --sync back") as missing:
        route(config(forth=FORTH | {"exclude": ["public.log"]}), "forth", "new", way_back=True)
    assert tomllib.loads("\n".join(missing.value.lines))["syncs"] == {
        "back": BACK | {"exclude": ["public.log"], "sequences": True, "copy": "never"}
    }


def test_the_missing_sync_gets_a_name_that_is_free() -> None:
    with pytest.raises(NoWayBack) as missing:
        route(config(back=FORTH), "back", "new", way_back=True)
    assert missing.value.lines[0] == "[syncs.back_back]"


def test_rows_are_compared_from_the_first_source_on_though_the_move_goes_there() -> None:
    masters = config(both={"sources": ["old", "new"], "tables": ["public.*"]})
    moved = route(masters, "both", "old", way_back=True).forth
    assert moved == EdgeName("both", "new", "old")
    assert compared_as(masters, moved) == EdgeName("both", "old", "new") == compared_as(masters, EdgeName("both", "old", "new"))


def test_a_way_back_is_not_looked_for_where_nobody_wants_one() -> None:
    assert route(config(forth=FORTH), "forth", "new", way_back=False).back is None


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ("fourth", 'no node "fourth"'),
        ("third", "not a target"),
        ("old", "not a target"),
        ("log", "events, not tables"),
        ("lite", "sqlite"),
    ],
)
def test_a_node_that_nobody_can_move_to_is_refused(node: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        route(config(forth=FORTH | {"targets": ["new", "lite", "log"]}, back=BACK), "forth", node, way_back=True)


def test_two_sources_move_with_the_sync_itself_as_the_way_back_and_three_are_refused() -> None:
    two = config(both={"sources": ["old", "new"], "tables": ["public.*"]})
    assert route(two, "both", "new", way_back=True).back == EdgeName("both", "new", "old")
    three = config(all={"sources": ["old", "new", "third"], "tables": ["public.*"]})
    with pytest.raises(UsageError, match="several sources"):
        route(three, "all", "new", way_back=True)


def test_tables_that_the_way_back_leaves_out_are_named() -> None:
    found = config(forth=FORTH, back=BACK | {"exclude": ["public.b"]})
    tables = [TableName("public", name) for name in "abc"]
    assert left_behind(found, route(found, "forth", "new", way_back=True), tables) == [TableName("public", "b")]


def test_a_renamed_table_is_looked_for_by_its_new_name() -> None:
    renamed = FORTH | {"table": {"public.a": {"rename": "public.z"}}}
    found = config(forth=renamed, back=BACK | {"tables": ["public.z"], "table": {"public.z": {"rename": "public.a"}}})
    assert left_behind(found, route(found, "forth", "new", way_back=True), [TableName("public", "a")]) == []


def test_other_readers_and_writers_of_both_nodes_are_told() -> None:
    feed = {"sources": ["third"], "targets": ["old"], "tables": ["other.*"]}
    found = config(forth=FORTH | {"targets": ["new", "lite"]}, back=BACK, feed=feed)
    chosen = route(found, "forth", "new", way_back=True)
    assert neighbours(found, chosen) == [
        'sync "forth" goes on to bring "lite" what "old" gets: by the way back all that is written on "new"',
        'sync "feed" goes on to write to "old" what it reads on "third"',
    ]
    assert is_fed(found, chosen)
    assert beside(found, chosen) == []


def test_another_sync_that_goes_the_same_way_is_told() -> None:
    found = config(forth=FORTH, back=BACK, more=FORTH | {"tables": ["more.*"]})
    chosen = route(found, "forth", "new", way_back=True)
    assert beside(found, chosen) == ["more"]
    assert not is_fed(found, chosen)


@pytest.mark.parametrize(
    ("last", "increment", "low", "high", "moved"),
    [
        (5, 1, 1, 1000, 105),
        (5, 3, 1, 1000, 305),
        (-5, -1, -1000, -1, -105),
        (950, 1, 1, 1000, 950),
        (900, 1, 1, 1000, 900),
        (899, 1, 1, 1000, 999),
    ],
)
def test_a_sequence_is_moved_on_by_the_margin_unless_that_would_leave_it_without_numbers(
    last: int, increment: int, low: int, high: int, moved: int
) -> None:
    state = SequenceState(TableName("public", "s"), last, True, increment)
    assert ahead(state, 100, low, high).last == moved


def test_a_table_is_not_copied_again_over_what_clients_write_without_a_word() -> None:
    [goes] = consequences(config(forth=FORTH), "forth", "t")
    assert goes == 'the rows of table "t" on the targets of sync "forth" go'
    assert consequences(config(forth=FORTH, home=BACK), "forth", "t") == [
        goes,
        'also what clients write to it on "new", which sync "home" reads: do this while they write elsewhere',
    ]

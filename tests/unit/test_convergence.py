"""The nodes of a multi-master sync agree, whatever they write and however it is delivered; and each rule is needed for that.

The nodes are those of conflict_nodes.py, which use the real Resolver. A failure prints the history and what every node did.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from streamer.model import Kind
from streamer.sinks.conflict import ConflictKind, Rules
from tests.unit.batch_nodes import LateWorld, play_batches
from tests.unit.conflict_model import (
    LATEST,
    NAMES,
    PLAIN,
    SUMS,
    SUMS_DELETED,
    TOASTED,
    TWO_UNIQUES,
    UNIQUE,
    History,
    Shape,
    Write,
    history,
    small_histories,
)
from tests.unit.conflict_nodes import Node, Rule, World, every_order, play

SEEDS = 400
MORE_SEEDS = 4000
"""Seeds among which one must fail if a rule is off."""
ONLY_UPDATES = replace(SUMS_DELETED, inserts=0)
"""A deleted key is not used again."""
FILLED = [Write(Kind.INSERT, key, (("v", "x"),), add=100, raise_to=1) for key in SUMS.keys]


def equal_or_fail(world: World, seed: object, writes: History) -> None:
    if not world.equal():
        pytest.fail(f"seed {seed}: {shown(writes)}\n{world.told()}")


def shown(writes: History) -> str:
    return "".join(f"\n    {name}: {'; '.join(map(str, transaction))}" for name, transaction in writes)


@pytest.mark.parametrize("nodes", [2, 3, 4])
@pytest.mark.parametrize(
    "shape", [PLAIN, UNIQUE, TWO_UNIQUES, TOASTED, SUMS], ids=["plain", "unique", "two uniques", "toast", "sums"]
)
def test_latest_makes_all_nodes_equal(shape: Shape, nodes: int) -> None:
    for seed in range(SEEDS):
        equal_or_fail(play(seed, shape, nodes), seed, history(seed, shape, nodes))


@pytest.mark.parametrize(("shape", "nodes"), [(UNIQUE, 3), (TWO_UNIQUES, 4), (SUMS, 3), (TOASTED, 3)])
def test_latest_does_not_depend_on_waiting_for_other_nodes(shape: Shape, nodes: int) -> None:
    for seed in range(SEEDS):
        equal_or_fail(play(seed, shape, nodes, frozenset({Rule.PATIENCE})), seed, history(seed, shape, nodes))


@pytest.mark.parametrize("off", [frozenset[Rule](), frozenset({Rule.PATIENCE})], ids=["waiting", "not waiting"])
@pytest.mark.parametrize("nodes", [2, 3, 4])
def test_a_delta_column_ends_as_the_sum_of_all_deltas_and_a_max_column_as_the_greatest(nodes: int, off: frozenset[Rule]) -> None:
    for seed in range(SEEDS):
        world = play(seed, SUMS, nodes, off)
        equal_or_fail(world, seed, history(seed, SUMS, nodes))
        merged = {key[0]: row[2:] for key, row in world.contents()[0].items()}
        assert merged == {k: (str(world.added[k]), str(world.greatest[k])) for k in merged}, f"seed {seed}\n{world.told()}"


@pytest.mark.parametrize(
    ("shape", "nodes"), [(PLAIN, 2), (PLAIN, 3), (UNIQUE, 3), (TWO_UNIQUES, 2), (SUMS, 2), (SUMS, 3), (SUMS_DELETED, 2)]
)
def test_a_table_may_be_truncated_while_others_write_it(shape: Shape, nodes: int) -> None:
    truncated = replace(shape, truncates=3)
    for seed in range(SEEDS // 2):
        equal_or_fail(play(seed, truncated, nodes), seed, history(seed, truncated, nodes))


@pytest.mark.parametrize(("shape", "nodes"), [(SUMS_DELETED, 2), (ONLY_UPDATES, 3), (ONLY_UPDATES, 4)])
def test_rows_with_merge_columns_may_be_deleted(shape: Shape, nodes: int) -> None:
    for seed in range(SEEDS):
        equal_or_fail(play(seed, shape, nodes, prefilled=FILLED), seed, history(seed, shape, nodes))


@pytest.mark.parametrize("shape", [PLAIN, UNIQUE, TWO_UNIQUES], ids=["plain", "unique", "two uniques"])
@pytest.mark.parametrize("priority", ["ab", "ba"])
def test_a_priority_list_makes_two_nodes_equal(priority: str, shape: Shape) -> None:
    by_priority = replace(shape, rules=Rules(tuple(priority)))
    for seed in range(SEEDS):
        equal_or_fail(play(seed, by_priority, 2), seed, history(seed, shape, 2))


@pytest.mark.parametrize("batched", ["a", "b", "ab", "abc"])
@pytest.mark.parametrize(("shape", "nodes"), [(PLAIN, 3), (UNIQUE, 2), (UNIQUE, 3), (TWO_UNIQUES, 3), (TWO_UNIQUES, 4)])
def test_nodes_that_tell_only_the_last_state_of_a_row_become_equal_too(shape: Shape, nodes: int, batched: str) -> None:
    """Those that triggers capture, and whose edges may be broken off inside of a batch."""
    for seed in range(SEEDS):
        world = play_batches(history(seed, shape, nodes), seed, shape, nodes, batched[:nodes])
        equal_or_fail(world, seed, history(seed, shape, nodes))


@pytest.mark.parametrize("batched", ["a", "abc"])
@pytest.mark.parametrize(("shape", "nodes"), [(PLAIN, 3), (UNIQUE, 2), (UNIQUE, 3), (TWO_UNIQUES, 4)])
def test_nodes_become_equal_though_transactions_commit_long_after_the_time_that_they_tell(
    shape: Shape, nodes: int, batched: str
) -> None:
    """As those that triggers capture do where the server keeps no commit times."""
    for seed in range(SEEDS):
        world = play_batches(history(seed, shape, nodes), seed, shape, nodes, batched[:nodes], kind=LateWorld)
        equal_or_fail(world, seed, history(seed, shape, nodes))


# -- every order of small histories ------------------------------------------------------------------------------------------------


def worlds(shape: Shape, skews: Sequence[int]) -> Iterator[World]:
    """Empty nodes, and nodes with one row."""
    for filled in (False, True):
        world = World(shape, [Node(name, skew) for name, skew in zip(NAMES, skews, strict=False)])
        world.time = 20  # past every skew
        if filled:
            world.write("a", [Write(Kind.INSERT, "1", tuple((c, "x") for c in shape.columns if c in "uv"))])
            deliver_all(world)
        yield world


def deliver_all(world: World) -> None:
    world.settle(lambda waiting: waiting[0])


@pytest.mark.parametrize(
    ("shape", "skews", "length"),
    [
        (UNIQUE, (0, 0), 2),
        (UNIQUE, (3, 0), 2),
        (UNIQUE, (0, 0, 0), 2),
        (UNIQUE, (0, 3, -3), 2),
        (PLAIN, (0, 0, 0), 2),
        (PLAIN, (-3, 3, 0), 2),
        (PLAIN, (0, 2), 3),
    ],
)
def test_every_order_of_every_small_history_makes_the_nodes_equal(shape: Shape, skews: Sequence[int], length: int) -> None:
    for world in worlds(shape, skews):
        for writes in small_histories(shape, len(skews), length):
            for end in every_order(world, writes):
                equal_or_fail(end, "none", writes)


def test_every_order_of_a_priority_list_makes_two_nodes_equal() -> None:
    for priority in ("ab", "ba"):
        for world in worlds(replace(UNIQUE, rules=Rules(tuple(priority))), (0, 0)):
            for writes in small_histories(UNIQUE, 2, 2):
                for end in every_order(world, writes):
                    equal_or_fail(end, "none", writes)


# -- each rule is needed -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("off", "shape", "nodes"),
    [
        ({Rule.TOMBSTONE}, PLAIN, 2),
        ({Rule.WAIT}, PLAIN, 3),
        ({Rule.EMIT}, UNIQUE, 2),
        ({Rule.EMIT_INCOMING}, UNIQUE, 2),
        ({Rule.SIDE_VERSION}, SUMS, 2),
        ({Rule.OLDEST, Rule.PATIENCE}, SUMS, 3),
        ({Rule.UNDER}, SUMS_DELETED, 2),
        ({Rule.PATIENCE}, SUMS_DELETED, 3),
    ],
    ids=lambda value: " ".join(sorted(rule.name.lower() for rule in value)) if isinstance(value, set) else None,
)
def test_without_a_rule_the_nodes_diverge(off: set[Rule], shape: Shape, nodes: int) -> None:
    assert any(not play(seed, shape, nodes, frozenset(off)).equal() for seed in range(MORE_SEEDS))


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(replace(PLAIN, rules=Rules("apply")), id="what comes last wins"),
        pytest.param(replace(PLAIN, rules=Rules("keep")), id="what came first stays"),
        pytest.param(replace(TOASTED, full=False), id="TOAST without FULL"),
    ],
)
def test_two_nodes_diverge_by(shape: Shape) -> None:
    assert any(not play(seed, shape, 2).equal() for seed in range(MORE_SEEDS))


def test_without_delta_what_was_added_at_the_same_time_is_lost() -> None:
    def lost(world: World) -> bool:
        return any(row[2] != str(world.added[key[0]]) for key, row in world.contents()[0].items())

    assert any(lost(play(seed, replace(SUMS, rules=LATEST), 2)) for seed in range(SEEDS))


# -- the smallest counterexamples, as docs/multi-master.md tells them --------------------------------------------------------------


class Story(World):
    """Two or three nodes that do what they are told, step by step."""

    def __init__(self, shape: Shape, *off: Rule, skews: Sequence[int] = (0, 0, 0)) -> None:
        super().__init__(shape, [Node(name, skew) for name, skew in zip(NAMES, skews, strict=False)], frozenset(off))
        self.time = 20

    def says(self, name: str, kind: Kind, key: str, add: int = 0, **values: str) -> None:
        self.write(name, [Write(kind, key, tuple(values.items()), add)])

    def rows(self, name: str) -> list[str]:
        return ["/".join(str(value) for value in row) for _, (row, _) in sorted(self.nodes[name].rows.items())]


def test_without_tombstones_an_update_brings_a_deleted_row_back() -> None:
    for off, expected in (((), []), ((Rule.TOMBSTONE,), ["1/y"])):
        story = Story(PLAIN, *off)
        story.says("a", Kind.INSERT, "1", v="x")
        deliver_all(story)
        story.says("a", Kind.UPDATE, "1", v="y")
        story.says("b", Kind.DELETE, "1")
        deliver_all(story)
        assert (story.rows("a"), story.rows("b")) == ([], expected)


def test_without_waiting_for_the_clock_a_delete_looks_older_than_the_row_that_it_deletes() -> None:
    for off, expected in (((), []), ((Rule.WAIT,), ["1/x"])):
        story = Story(PLAIN, *off, skews=(3, 0, 0))
        story.says("a", Kind.INSERT, "1", v="x")
        while not story.deliver("a", "b"):
            pass
        story.says("b", Kind.DELETE, "1")
        story.deliver("b", "a")
        story.deliver("b", "c")
        while not story.deliver("a", "c"):
            pass
        assert (story.rows("a"), story.rows("b"), story.rows("c")) == ([], [], expected)


def test_a_loser_that_is_removed_silently_lives_on_where_its_rival_came_too_late() -> None:
    for off, expected in (((), ["2/y/None"]), ((Rule.EMIT_INCOMING,), ["1/x/None", "2/y/None"])):
        story = Story(UNIQUE, *off, skews=(0, 0))
        story.says("a", Kind.INSERT, "1", u="x")
        story.says("b", Kind.INSERT, "2", u="x")
        story.says("a", Kind.INSERT, "2", u="y")
        deliver_all(story)
        assert (story.rows("a"), story.rows("b")) == (expected, ["2/y/None"])


def test_a_change_that_outruns_the_one_it_rests_on_waits_or_else_an_innocent_row_is_lost() -> None:
    for off, expected in (((), ["1/y/None", "2/x/None"]), ((Rule.PATIENCE,), ["2/x/None"])):
        story = Story(UNIQUE, *off)
        story.says("a", Kind.INSERT, "1", u="x")
        deliver_all(story)
        story.says("a", Kind.UPDATE, "1", u="y")
        story.deliver("a", "b")
        story.says("b", Kind.INSERT, "2", u="x")
        assert story.deliver("b", "c") == bool(off)
        deliver_all(story)
        assert [story.rows(name) for name in "abc"] == [expected] * 3
        assert any(node.conflicts for node in story.nodes.values()) == bool(off)


def test_three_nodes_diverge_by_a_priority_list() -> None:
    """What b wrote loses against a's row, and wins over what c made of a's row: which of them c's change meets decides."""
    story = Story(replace(PLAIN, rules=Rules(("a", "b", "c"))))
    story.says("a", Kind.INSERT, "1", v="x")
    story.says("b", Kind.INSERT, "1", v="z")
    story.deliver("a", "b")
    story.deliver("a", "c")
    story.says("c", Kind.UPDATE, "1", v="y")
    for edge in (("b", "a"), ("c", "a"), ("c", "b"), ("b", "c")):
        assert story.deliver(*edge)
    assert [story.rows(name) for name in "abc"] == [["1/y"], ["1/y"], ["1/z"]]


def test_all_kinds_of_conflicts_come_about() -> None:
    off = frozenset({Rule.PATIENCE})  # a row that is waited for is not missing
    worlds = [play(seed, shape, off=off) for shape in (PLAIN, TWO_UNIQUES) for seed in range(SEEDS)]
    assert {c.kind for world in worlds for node in world.nodes.values() for c in node.conflicts} == set(ConflictKind)


def test_the_same_seed_gives_the_same_history() -> None:
    assert history(7, UNIQUE) == history(7, UNIQUE) != history(8, UNIQUE)
    assert play(7, UNIQUE).told() == play(7, UNIQUE).told()

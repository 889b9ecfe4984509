"""The verdicts of `streamer check` on syncs with several sources, without a server."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest

from streamer.admin.check_identity import Part, demand, lacking
from streamer.admin.check_multi_master import Clock, judge_clocks, judge_replica_right, judge_triggers, policies
from streamer.admin.check_sequences import Counter, judge_counters
from streamer.config import Sync
from streamer.conflict_config import TableRules
from streamer.model import Identity, TableName
from tests.unit.test_check_verdicts import told

T = TableName("public", "t")
NAMES = ("a", "b", "c")


def counter(following: int, increment: int = 1, minimum: int = 1, maximum: int = 2**31 - 1) -> Counter:
    return Counter(TableName("public", "s"), following, increment, minimum, maximum)


def judged(*counters: Counter) -> list[str]:
    return told(judge_counters(NAMES, {node: {(T, "id"): c} for node, c in zip(NAMES, counters, strict=False)}))


@pytest.mark.parametrize(
    "counters",
    [
        [counter(7)],
        [counter(1, 2), counter(2, 2)],
        [counter(1, 10), counter(2, 10), counter(13, 10)],
        [counter(1, 4), counter(2, 2)],
        [counter(5, minimum=1, maximum=1000), counter(1001, minimum=1001)],
        [counter(-1, -2), counter(-2, -2)],
    ],
)
def test_sequences_that_never_meet_are_good(counters: list[Counter]) -> None:
    assert judged(*counters) == []


@pytest.mark.parametrize(
    "counters",
    [
        [counter(1), counter(1)],
        [counter(5), counter(90)],  # the lower one gets there
        [counter(1, 2), counter(3, 2)],
        [counter(1, 2), counter(2, 3)],
        [counter(1, 2), counter(2, 2), counter(3, 2)],
    ],
)
def test_sequences_that_meet_are_told_with_a_remedy_that_works(counters: list[Counter]) -> None:
    (line,) = judged(*counters)
    steps = [part.split("INCREMENT BY ")[1].split(" RESTART WITH ") for part in line.split("; ")[1:]]
    cured = [counter(int(start), int(step)) for step, start in steps]
    assert judged(*cured) == []
    assert min(c.following for c in cured) >= max(c.following for c in counters)
    assert line.startswith('warning: column "id" of table "public.t": its sequences on a, b')


def test_any_sequences_are_kept_apart_by_the_remedy() -> None:
    seed = random.randrange(2**32)
    dice = random.Random(seed)
    for _ in range(300):
        sign = dice.choice((1, -1))
        counters = [counter(sign * dice.randint(1, 99), sign * dice.randint(1, 4), -(10**6), 10**6) for _ in NAMES]
        for line in judged(*counters):
            steps = [part.split("INCREMENT BY ")[1].split(" RESTART WITH ") for part in line.split("; ")[1:]]
            given = [set(range(int(start), int(start) + 40 * int(step), int(step))) for step, start in steps]
            assert sum(map(len, given)) == len(set.union(*given)), f"seed {seed}: {counters}"
            assert sign * min(map(abs, set.union(*given))) * sign >= max(abs(c.following) for c in counters), f"seed {seed}"


def test_a_sequence_on_one_node_only_meets_nothing() -> None:
    assert told(judge_counters(NAMES, {"a": {(T, "id"): counter(1)}, "b": {}})) == []


def test_a_sequence_that_may_not_be_read_is_told() -> None:
    denied = Counter(TableName("public", "s"), 0, 1, 0, 0, denied="plain")
    assert judged(counter(1), denied) == [
        'warning: column "id" of table "public.t": its sequence may not be read on b; '
        'on b: GRANT SELECT ON SEQUENCE "public"."s" TO "plain"'
    ]


# -- clocks ------------------------------------------------------------------------------------------------------------------------

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def clock(node: str, ahead: float, doubt: float = 0.0) -> Clock:
    return Clock(node, NOON + timedelta(seconds=ahead), ahead, doubt)


@pytest.mark.parametrize(("ahead", "doubt", "fine"), [(0.0, 0.0, True), (5.0, 0.0, True), (5.1, 0.0, False), (6.0, 1.0, True)])
def test_clocks_may_differ_by_the_limit_as_far_as_we_can_tell(ahead: float, doubt: float, fine: bool) -> None:
    sync = Sync(sources=("a", "b"), tables=("*",))
    lines = told(judge_clocks("shop", sync, [clock("a", 0), clock("b", ahead, doubt), clock("c", 0)]))
    assert (
        lines == []
        if fine
        else [
            'error: sync "shop": the clock of "b" (12:00:05 UTC) is 5.1 s ahead of that of "a", max_clock_skew is 5 s; '
            "set both clocks right (chrony or another NTP client)"
        ]
    )


def test_one_clock_is_no_skew() -> None:
    assert list(judge_clocks("shop", Sync(sources=("a", "b"), tables=("*",)), [clock("a", 0)])) == []


# -- tables ------------------------------------------------------------------------------------------------------------------------


def part(name: str = "t", identity: Identity = Identity.DEFAULT, *, toasted: bool = False) -> Part:
    return Part(TableName("public", name), identity, toasted)


@pytest.mark.parametrize(
    ("rules", "toasted", "has_key", "needed"),
    [
        (TableRules("latest"), False, True, False),
        (TableRules("latest"), True, True, True),
        (TableRules("latest"), True, False, False),
        (TableRules(("a", "b")), True, True, True),
        (TableRules("python:m:f"), True, True, True),
        (TableRules("apply"), True, True, False),
        (TableRules("apply", delta=frozenset({"n"})), False, True, True),
    ],
)
def test_old_rows_are_demanded_where_they_are_needed(rules: TableRules, toasted: bool, has_key: bool, needed: bool) -> None:
    assert bool(demand(rules, [part(), part("p1", toasted=toasted)], has_key=has_key)) is needed


def test_each_partition_has_an_identity_of_its_own() -> None:
    parts = [part(identity=Identity.FULL), part("p1"), part("p2", Identity.FULL)]
    assert [p.remedy for p in lacking(parts)] == ['ALTER TABLE "public"."p1" REPLICA IDENTITY FULL']


def test_what_a_function_falls_back_to_is_a_policy_too() -> None:
    def sync(**keys: object) -> Sync:
        return Sync.model_validate({"sources": ["a", "b"], "tables": ["*"], **keys})

    assert policies(sync(conflict="python:m:f", conflict_fallback="latest")) == {"python:m:f", "latest"}
    assert policies(sync(conflict="keep", conflict_fallback="latest")) == {"keep"}
    tables = {"public.t": {"conflict": "latest"}}
    assert policies(sync(conflict=["a", "b"], table=tables)) == {("a", "b"), "latest"}


def test_missing_triggers_are_one_finding() -> None:
    many = [TableName("public", f"t{i}") for i in range(7)]
    assert told(judge_triggers("a", many)) == [
        'warning: node "a": 7 tables lack the triggers that keep deleted keys: public.t0, public.t1, public.t2, public.t3, '
        "public.t4, …; streamer setup makes them"
    ]
    assert told(judge_triggers("a", [])) == []


def test_a_role_that_merges_has_to_keep_triggers_quiet() -> None:
    assert told(judge_replica_right("a", "plain", may_be_replica=True, merged=[T])) == []
    assert told(judge_replica_right("a", "plain", may_be_replica=False, merged=[])) == []
    (line,) = told(judge_replica_right("a", "plain", may_be_replica=False, merged=[T]))
    assert line.startswith('error: node "a": role plain may not set session_replication_role')

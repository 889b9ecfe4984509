"""The topology check against named topologies, and against a simulation of every one of up to five nodes and of random ones.

The simulation knows nothing of paths or globs: it passes messages from node to node, one step at a time, by a
forwarding rule that is written out here a second time, and counts how often each node applies a transaction.

Of five nodes there are too many topologies to look at each. But one that holds a refused one is refused: a transaction takes at
least the same ways. So only accepted ones are extended, sync by sync until nothing more is accepted, and of those that differ in
the names of their nodes only one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, permutations, product

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamer.config import Config, Sync
from streamer.errors import ConfigError
from streamer.model import TableName
from streamer.node_config import Node
from streamer.topology import check, overlap

FILES = "xyz"
"""Nodes of these names are SQLite, the others PostgreSQL."""


@dataclass(frozen=True)
class Drawn:
    """A sync as the tests write it: each node is one letter."""

    sources: str
    targets: str = ""
    tables: tuple[str, ...] = ("*.*",)
    exclude: tuple[str, ...] = ()


def topology(syncs: Sequence[Drawn]) -> Config:
    return Config(
        nodes={name: Node(url=f"sqlite:///{name}" if name in FILES else f"postgresql://{name}/shop") for name in nodes_of(syncs)},
        syncs={
            f"s{number}": Sync(sources=tuple(s.sources), targets=tuple(s.targets), tables=s.tables, exclude=s.exclude)
            for number, s in enumerate(syncs, 1)
        },
    )


def refusal(syncs: Sequence[Drawn]) -> str | None:
    """What the check says; None if it accepts."""
    try:
        check(topology(syncs))
    except ConfigError as error:
        return str(error)
    return None


def applied(syncs: Sequence[Drawn], origin: str) -> Counter[str]:
    """How often each node holds a transaction made on `origin`, as far as a limited number of steps shows."""
    count = Counter({origin: 1})
    travelling = [(origin, origin)]
    for _ in range(20):
        travelling = list(chain.from_iterable(handed_on(syncs, origin, here, via) for here, via in travelling))
        count.update(here for here, _ in travelling)
        if not travelling or max(count.values()) > 1:
            break
    return count


def handed_on(syncs: Sequence[Drawn], origin: str, here: str, via: str) -> Iterator[tuple[str, str]]:
    """Where a node sends what it has applied or made, and via whom (itself): the rule in DESIGN's own words."""
    for sync in syncs:
        if here not in sync.sources:
            continue
        for there in sync.sources + sync.targets:
            senders = sync.sources[0] if there in FILES else sync.sources.replace(there, "")
            if here not in senders:
                continue
            local = origin == here
            to_origin_or_via = there in {origin, via}
            has_it_directly = (origin in senders or via in senders) and not local
            if not to_origin_or_via and not has_it_directly:
                yield there, here


def reachable(syncs: Sequence[Drawn], origin: str) -> set[str]:
    """The nodes that edges lead to from `origin`, whatever the rule says."""
    found = {origin}
    while new := {n for s in syncs if found & set(s.sources) for n in s.sources + s.targets} - found:
        found |= new
    return found


def some_node_applies_twice(syncs: Sequence[Drawn]) -> bool:
    return any(max(applied(syncs, origin).values()) > 1 for origin in nodes_of(syncs))


def some_node_misses_out(syncs: Sequence[Drawn]) -> bool:
    return any(set(applied(syncs, origin)) != reachable(syncs, origin) for origin in nodes_of(syncs))


def nodes_of(syncs: Sequence[Drawn]) -> list[str]:
    return sorted(set("".join(s.sources + s.targets for s in syncs)))


def assert_paths_are_real(message: str, syncs: Sequence[Drawn]) -> None:
    """The message names paths that a transaction really takes, each from where it was made to where it says."""
    match = re.fullmatch(
        r'a transaction made on "(\w)" would (?:reach "(\w)" twice: (.*) and (.*)|travel for ever: (.*)); \S.*', message
    )
    assert match, message
    origin, twice, *drawn = match.groups()
    paths = [re.findall(r"-\(s(\d+)\)-> (\w)", path) for path in drawn if path]
    for path, text in zip(paths, (d for d in drawn if d), strict=True):
        assert text.startswith(f"{origin} -(")
        here = via = origin
        for number, there in path:
            sync = syncs[int(number) - 1]
            assert (there, here) in set(handed_on([sync], origin, here, via)), message
            here, via = there, here
    if twice:
        assert paths[0] != paths[1]
        assert [path[-1][1] for path in paths] == [twice, twice]
    else:
        stops = [there for _, there in paths[0]]
        assert stops[-1] in stops[:-1]


def assert_check_agrees_with_simulation(syncs: Sequence[Drawn]) -> bool:
    """Return whether both accept."""
    message = refusal(syncs)
    assert (message is not None) == some_node_applies_twice(syncs), message
    if message is not None:
        assert_paths_are_real(message, syncs)
    else:
        assert not some_node_misses_out(syncs)
    return message is None


ACCEPTED = {
    "one way": [Drawn("a", "b")],
    "fan-out": [Drawn("a", "bcd")],
    "two sources": [Drawn("ab")],
    "mesh of three": [Drawn("abc")],
    "mesh of three and a target": [Drawn("abc", "d")],
    "hub": [Drawn("ah"), Drawn("hb")],
    "hub with three spokes": [Drawn("ah"), Drawn("hb"), Drawn("hc")],
    "a node in two syncs hands on": [Drawn("a", "b"), Drawn("b", "c")],
    "chain of four, with branches": [Drawn("a", "b"), Drawn("b", "cd"), Drawn("d", "ef")],
    "mesh whose third node feeds two more": [Drawn("abc", "d"), Drawn("c", "ms")],
    "two nodes that replicate to each other in two syncs": [Drawn("a", "b"), Drawn("b", "a")],
    "two sources fed by a third node": [Drawn("f", "a"), Drawn("ab")],
    "mesh of three fed by a fourth node": [Drawn("f", "a"), Drawn("abc")],
    "two meshes that share a node": [Drawn("abc"), Drawn("cde")],
    "mesh of three, a target, and other engines behind one source": [Drawn("abc", "d"), Drawn("c", "xy")],
    "mesh of three with a target of another engine": [Drawn("abc", "dx")],
    "mesh of three with a target of another engine, fed elsewhere": [Drawn("f", "b"), Drawn("abc", "x")],
    "hub with a target of another engine on one side": [Drawn("ah"), Drawn("bh", "x")],
    # each transaction goes round once and stops before the node it was made on
    "ring of three": [Drawn("a", "b"), Drawn("b", "c"), Drawn("c", "a")],
    "ring of four": [Drawn("a", "b"), Drawn("b", "c"), Drawn("c", "d"), Drawn("d", "a")],
    "diamond, half of the tables on each side": [
        Drawn("a", "b", ("public.x",)),
        Drawn("a", "c", ("public.y",)),
        Drawn("b", "d", ("public.*",)),
        Drawn("c", "d", ("public.*",)),
    ],
    "two syncs of other tables between the same nodes": [Drawn("a", "b", ("x.*",)), Drawn("a", "b", ("y.*",))],
    "everything but one table, and that one table": [
        Drawn("a", "b", ("public.*",), ("public.big",)),
        Drawn("a", "b", ("public.big",)),
    ],
}


@pytest.mark.parametrize("syncs", ACCEPTED.values(), ids=ACCEPTED)
def test_accepts(syncs: list[Drawn]) -> None:
    assert refusal(syncs) is None


REFUSED = {
    "triangle of one-way syncs": (
        [Drawn("a", "b"), Drawn("a", "c"), Drawn("b", "c")],
        'a transaction made on "a" would reach "c" twice: a -(s1)-> b -(s3)-> c and a -(s2)-> c; '
        'take "c" out of sync "s3" or "s2", or replicate other tables in one of them',
    ),
    "triangle that sends a row on to both others": (
        [Drawn("a", "bc"), Drawn("b", "c"), Drawn("c", "a")],
        'a transaction made on "a" would reach "c" twice: a -(s1)-> b -(s2)-> c and a -(s1)-> c; '
        'take "c" out of sync "s2" or "s1", or replicate other tables in one of them',
    ),
    "diamond": (
        [Drawn("a", "b"), Drawn("a", "c"), Drawn("b", "d"), Drawn("c", "d")],
        'a transaction made on "a" would reach "d" twice: a -(s2)-> c -(s4)-> d and a -(s1)-> b -(s3)-> d; '
        'take "d" out of sync "s4" or "s3", or replicate other tables in one of them',
    ),
    "ring with a tail": (
        [Drawn("t", "a"), Drawn("a", "b"), Drawn("b", "c"), Drawn("c", "a")],
        'a transaction made on "t" would travel for ever: t -(s1)-> a -(s2)-> b -(s3)-> c -(s4)-> a; '
        'take "a" out of sync "s4", or replicate other tables in it',
    ),
    "the same sync twice": (
        [Drawn("a", "b"), Drawn("a", "b")],
        'a transaction made on "a" would reach "b" twice: a -(s2)-> b and a -(s1)-> b; '
        'take "b" out of sync "s2" or "s1", or replicate other tables in one of them',
    ),
    "two sources fed on both sides": (
        [Drawn("f", "ab"), Drawn("ab")],
        'a transaction made on "f" would reach "b" twice: f -(s1)-> a -(s2)-> b and f -(s1)-> b; '
        'take "b" out of sync "s2" or "s1", or replicate other tables in one of them',
    ),
    "a third path that clashes with the first": (
        [Drawn("a", "b", ("x.*",)), Drawn("a", "b", ("y.*",)), Drawn("a", "b", ("x.t",))],
        'a transaction made on "a" would reach "b" twice: a -(s3)-> b and a -(s1)-> b; '
        'take "b" out of sync "s3" or "s1", or replicate other tables in one of them',
    ),
    "two meshes that share two nodes": (
        [Drawn("abc"), Drawn("bcd")],
        'a transaction made on "a" would reach "c" twice: a -(s1)-> b -(s2)-> c and a -(s1)-> c; '
        'take "c" out of sync "s2" or "s1", or replicate other tables in one of them',
    ),
    "a target of another engine that two syncs of a mesh feed": (
        [Drawn("abc", "x"), Drawn("c", "x")],
        'a transaction made on "a" would reach "x" twice: a -(s1)-> c -(s2)-> x and a -(s1)-> x; '
        'take "x" out of sync "s2" or "s1", or replicate other tables in one of them',
    ),
    "tables that overlap in one": (
        [Drawn("a", "b", ("public.x", "public.y")), Drawn("a", "b", ("public.y", "public.z"))],
        'a transaction made on "a" would reach "b" twice: a -(s2)-> b and a -(s1)-> b; '
        'take "b" out of sync "s2" or "s1", or replicate other tables in one of them',
    ),
}


@pytest.mark.parametrize(("syncs", "message"), REFUSED.values(), ids=REFUSED)
def test_refuses_with_the_paths_and_a_remedy(syncs: list[Drawn], message: str) -> None:
    assert refusal(syncs) == message
    assert_paths_are_real(message, syncs)


def every_sync(nodes: str) -> list[Drawn]:
    """Each choice of sources and targets among the nodes, and where it matters of the source that stands first."""
    found = []
    for roles in product("st-", repeat=len(nodes)):
        sources, targets = ("".join(n for n, r in zip(nodes, roles, strict=True) if r == role) for role in "st")
        if sources and len(sources + targets) > 1 and not set(sources) & set(FILES):
            firsts = sources if set(targets) & set(FILES) else sources[0]
            found += [Drawn(first + sources.replace(first, ""), targets) for first in firsts]
    return found


def renamings(nodes: str, syncs: Sequence[Drawn]) -> list[list[int]]:
    """For each way to swap names of nodes of a kind: which sync (by number) each sync becomes."""
    servers, files = ("".join(n for n in nodes if (n in FILES) == is_file) for is_file in (False, True))
    number = {sync: place for place, sync in enumerate(syncs)}
    found = []
    for renamed in product(permutations(servers), permutations(files)):
        name = str.maketrans(servers + files, "".join(chain(*renamed)))
        swapped = [Drawn(s.sources.translate(name), "".join(sorted(s.targets.translate(name)))) for s in syncs]
        found.append([number[in_order(sync)] for sync in swapped])
    return found


def in_order(sync: Drawn) -> Drawn:
    """The same sync as `every_sync` writes it."""
    if not set(sync.targets) & set(FILES):
        return Drawn("".join(sorted(sync.sources)), sync.targets)
    return Drawn(sync.sources[0] + "".join(sorted(sync.sources[1:])), sync.targets)


@pytest.mark.parametrize("nodes", ["abcde", "abcdx", "abcxy", "abxyz"])
def test_every_topology_of_five_nodes_is_judged_as_the_simulation_judges_it(nodes: str) -> None:
    syncs = every_sync(nodes)
    renamed = renamings(nodes, syncs)

    def judged(topologies: Iterable[tuple[int, ...]]) -> list[tuple[int, ...]]:
        return [numbers for numbers in topologies if assert_check_agrees_with_simulation([syncs[n] for n in numbers])]

    different = {min(swapped[number] for swapped in renamed) for number in range(len(syncs))}
    pairs = judged(product(different, range(len(syncs))))
    agreeable = {frozenset((swapped[one], swapped[other])) for one, other in pairs for swapped in renamed}
    accepted = set(judged((number,) for number in different))
    while accepted:
        longer = {
            tuple(sorted((*topology, number)))
            for topology in accepted
            for number in range(len(syncs))
            if all(frozenset((number, other)) in agreeable for other in topology)
        }
        accepted = {min(tuple(sorted(swapped[n] for n in numbers)) for swapped in renamed) for numbers in judged(longer)}


@st.composite
def drawn_syncs(draw: st.DrawFn, tables: st.SearchStrategy[tuple[str, ...]] | None = None) -> Drawn:
    nodes = draw(st.permutations("abcde"))
    size = draw(st.integers(2, 4))
    sources = draw(st.integers(1, size))
    chosen, rest = "".join(nodes[:sources]), "".join(nodes[sources:size]) + draw(st.sampled_from(["", "", "x", "y", "xy"]))
    if tables is None:
        return Drawn(chosen, rest)
    return Drawn(chosen, rest, draw(tables), draw(st.just(()) | tables))


@settings(deadline=None)
@given(st.lists(drawn_syncs(), min_size=1, max_size=5))
@example([Drawn("e", "a"), Drawn("a", "b"), Drawn("b", "c"), Drawn("c", "d"), Drawn("d", "a")])
def test_random_topologies_are_judged_as_the_simulation_judges_them(syncs: list[Drawn]) -> None:
    assert_check_agrees_with_simulation(syncs)


@settings(deadline=None)
@given(st.lists(drawn_syncs(), min_size=1, max_size=4), st.lists(drawn_syncs(), min_size=1, max_size=3))
def test_a_topology_that_holds_a_refused_one_is_refused(syncs: list[Drawn], more: list[Drawn]) -> None:
    if refusal(syncs) is not None:
        assert refusal(syncs + more) is not None


TABLES = [TableName(schema, name) for schema in ("public", "audit") for name in ("a", "b", "ab", "ba")]
PATTERNS = [
    "public.*",
    "*.a",
    "public.a",
    "public.b",
    "public.a*",
    "public.?",
    "audit.*",
    "audit.[ab]",
    "*b",
    "audit.b*",
    "ab",
]
SELECTIONS = st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=2, unique=True).map(tuple)


@settings(deadline=None)
@given(st.lists(drawn_syncs(SELECTIONS), min_size=2, max_size=5))
def test_every_table_of_an_accepted_topology_reaches_every_node_once(syncs: list[Drawn]) -> None:
    if refusal(syncs) is None:
        chosen = topology(syncs).syncs.values()
        for table in TABLES:
            carrying = [drawn for drawn, sync in zip(syncs, chosen, strict=True) if sync.selects(table)]
            assert not some_node_applies_twice(carrying), table
            assert not some_node_misses_out(carrying), table


def selection(tables: Sequence[str], exclude: Sequence[str] = ()) -> Sync:
    return Sync(sources=("a",), targets=("b",), tables=tuple(tables), exclude=tuple(exclude))


@given(SELECTIONS, st.just(()) | SELECTIONS, SELECTIONS, st.just(()) | SELECTIONS)
def test_syncs_that_select_one_table_in_common_overlap(
    tables: tuple[str, ...], exclude: tuple[str, ...], other_tables: tuple[str, ...], other_exclude: tuple[str, ...]
) -> None:
    one, other = selection(tables, exclude), selection(other_tables, other_exclude)
    if any(one.selects(table) and other.selects(table) for table in TABLES):
        assert overlap(one, other)
    assert overlap(one, other) == overlap(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(selection(["public.x"]), selection(["public.y"]), id="two names"),
        pytest.param(selection(["x"]), selection(["audit.x"]), id="one name in two schemas"),
        pytest.param(selection(["public.x"]), selection(["audit.*"]), id="a name and a glob that does not match it"),
        pytest.param(selection(["shop.*"]), selection(["audit.*"]), id="globs that begin differently"),
        pytest.param(selection(["public.*"], ["x"]), selection(["x"]), id="a name that one of them excludes"),
        pytest.param(selection(["*.*"], ["log.*"]), selection(["log.a*"]), id="a glob that one of them excludes"),
        pytest.param(selection(["streamer.x"]), selection(["streamer.x"]), id="what is never replicated"),
        pytest.param(selection(["public.a[*]"]), selection(["public.a", "public.ab"]), id="a name with a wildcard"),
        pytest.param(selection(["a", "b"]), selection(["c", "d*"]), id="several patterns"),
    ],
)
def test_syncs_of_certainly_different_tables_do_not_overlap(one: Sync, other: Sync) -> None:
    assert not overlap(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(selection(["*_a"]), selection(["*_b"]), id="globs that only end differently"),
        pytest.param(selection(["public.*"], ["public.x?"]), selection(["public.x*"]), id="a glob excluded in part"),
        pytest.param(selection(["public.*"], ["public.x[*]"]), selection(["public.x*"]), id="a set of characters"),
    ],
)
def test_syncs_whose_tables_cannot_be_told_apart_overlap(one: Sync, other: Sync) -> None:
    assert overlap(one, other)

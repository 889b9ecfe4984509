"""The forwarding rule, case by case, and a route's memory of it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from streamer.model import LSN, Origin, Transaction
from streamer.router import Route, forwards


@pytest.mark.parametrize(
    ("source", "target", "origin", "via", "feeders", "carried"),
    [
        pytest.param("a", "b", "a", "a", "a", True, id="made on the only source"),
        pytest.param("a", "d", "a", "a", "ab", True, id="made on the source that is read, of several"),
        pytest.param("b", "a", "a", "a", "b", False, id="back to where it was made"),
        pytest.param("b", "c", "a", "a", "ab", False, id="in a mesh, where the target hears of it from its origin"),
        pytest.param("b", "d", "a", "a", "abc", False, id="in a mesh, to a target that hears of it from its origin"),
        pytest.param("b", "c", "f", "a", "ab", False, id="in a mesh, where the target hears of it from where it came in"),
        pytest.param("a", "c", "f", "f", "ab", True, id="into a mesh, from the node where it comes in"),
        pytest.param("a", "s", "b", "b", "a", True, id="in a mesh, to a target that has this feeder only"),
        pytest.param("a", "s", "f", "b", "a", True, id="into a mesh elsewhere, to a target that has this feeder only"),
        pytest.param("b", "c", "a", "a", "b", True, id="handed on by a node in two syncs"),
        pytest.param("h", "b", "a", "a", "h", True, id="handed on by a hub"),
        pytest.param("c", "b", "a", "b", "c", False, id="back to who handed it on"),
        pytest.param("c", "a", "a", "b", "c", False, id="round a ring back to where it was made"),
        pytest.param("c", "d", "a", "b", "c", True, id="handed on a second time"),
    ],
)
def test_forwarding_rule(source: str, target: str, origin: str, via: str, feeders: str, carried: bool) -> None:
    assert forwards(source=source, target=target, origin=origin, via=via, feeders=frozenset(feeders)) is carried


def transaction(origin: str, via: str, position: int = 1) -> Transaction:
    return Transaction(LSN(position), Origin(origin, LSN(position), datetime(2026, 1, 1, tzinfo=UTC)), via)


def test_a_route_tells_transactions_apart_by_origin_and_via() -> None:
    route = Route("b", "c", ["b", "c"])
    answers = {
        (origin, via): route.accepts(transaction(origin, via)) for origin, via in [("b", "b"), ("a", "a"), ("a", "c"), ("c", "c")]
    }
    assert answers == {("b", "b"): True, ("a", "a"): True, ("a", "c"): False, ("c", "c"): False}


def test_a_route_gives_the_same_answer_again() -> None:
    route = Route("b", "c", ["a", "b", "c"])
    assert [route.accepts(transaction("a", "a", position)) for position in (1, 2)] == [False, False]
    assert [route.accepts(transaction("b", "b", position)) for position in (3, 4)] == [True, True]


def test_a_transaction_of_a_node_that_left_the_config_is_carried_on() -> None:
    assert Route("b", "c", ["b"]).accepts(transaction("gone", "gone"))

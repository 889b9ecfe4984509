"""When a connection is used again, and when it is closed."""

from __future__ import annotations

from typing import cast

import pytest

from streamer.session import Connection
from streamer.spare_connections import SpareConnections


class Fake:
    """Knows whether it was closed."""

    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        """Note it."""
        self.closed = True


@pytest.fixture
def made() -> list[Fake]:
    """All connections, in the order of their making."""
    return []


@pytest.fixture
def pool(made: list[Fake]) -> SpareConnections:
    """Makes them."""

    def make() -> Connection:
        made.append(Fake())
        return cast(Connection, made[-1])

    return SpareConnections(make)


def test_a_connection_is_used_again_and_two_at_once_are_two(pool: SpareConnections, made: list[Fake]) -> None:
    with pool.lent() as first:
        pass
    with pool.lent() as again, pool.lent() as other:
        assert again is first
        assert other is not first
    assert len(made) == 2


def test_a_connection_is_closed_after_an_error(pool: SpareConnections, made: list[Fake]) -> None:
    with pytest.raises(ZeroDivisionError), pool.lent():
        raise ZeroDivisionError
    with pool.lent():
        assert [fake.closed for fake in made] == [True, False]


def test_spare_connections_are_closed_and_those_in_use_kept(pool: SpareConnections, made: list[Fake]) -> None:
    with pool.lent() as kept:
        with pool.lent():
            pass
        pool.close_spare()
        assert [fake.closed for fake in made] == [False, True]
    with pool.lent() as again:
        assert again is kept


def test_a_connection_that_comes_back_after_the_end_is_closed(pool: SpareConnections, made: list[Fake]) -> None:
    with pool.lent():
        pool.close()
        assert not made[0].closed
    assert made[0].closed

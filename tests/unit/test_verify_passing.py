"""How long `verify` waits for an edge that does not get on: not at all for one it knows, seconds for one that is in trouble."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from streamer.config import Config
from streamer.model import LSN, EdgeName
from streamer.verify import passing
from streamer.verify.comparison import Behind
from streamer.verify.passing import TROUBLE_SECONDS, Passing
from tests.configs import make_config

LONG = 3600.0
TROUBLE = "it is retrying: the target is away"


class Clock:
    """Stands for the module time: its time passes by sleeping only."""

    def __init__(self) -> None:
        self._now = 1000.0

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds


class Position:
    """Implements EdgePosition: at `reached`, with WAL up to 10."""

    batches = False
    reached: Callable[[], LSN]

    def __init__(self, config: Config, edge: EdgeName) -> None:
        self.edge = edge

    def now(self) -> LSN:
        return LSN(10)

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(passing, "EdgePosition", Position)
    monkeypatch.setattr(passing, "time", clock)
    return clock


def waiting(trouble: Callable[[EdgeName], str]) -> Passing:
    config = make_config({"a": "postgresql://h/a", "b": "postgresql://h/b"})
    return Passing(config, "shop", ("a", "b"), LONG, lambda sync: None, trouble)


def test_an_edge_that_goes_on_retrying_is_given_up_long_before_the_wait_is_over(clock: Clock) -> None:
    Position.reached = staticmethod(lambda: LSN(3))
    began = clock.monotonic()
    with pytest.raises(Behind, match="edge shop: a -> b does not get on: it is retrying: the target is away"):
        waiting(lambda edge: TROUBLE).until_passed()
    assert clock.monotonic() - began == pytest.approx(TROUBLE_SECONDS, abs=0.3)


def test_an_edge_that_recovers_within_seconds_is_waited_for(clock: Clock) -> None:
    recovers = clock.monotonic() + TROUBLE_SECONDS - 0.5
    Position.reached = staticmethod(lambda: LSN(10 if clock.monotonic() > recovers else 3))
    waiting(lambda edge: TROUBLE).until_passed()


def test_trouble_that_comes_and_goes_is_counted_from_its_last_beginning(clock: Clock) -> None:
    began = clock.monotonic()
    Position.reached = staticmethod(lambda: LSN(10 if clock.monotonic() > began + 20 * TROUBLE_SECONDS else 3))
    waiting(lambda edge: "" if int(clock.monotonic()) % 4 == 0 else TROUBLE).until_passed()


def test_nobody_waits_twice_for_an_edge_that_stands_where_it_was_given_up(clock: Clock) -> None:
    Position.reached = staticmethod(lambda: LSN(3))
    told = waiting(lambda edge: "")
    began = clock.monotonic()
    with pytest.raises(Behind, match="has stood at 0/3, before 0/A, for 3600 s"):
        told.until_passed()
    given_up = clock.monotonic()
    assert given_up - began == pytest.approx(LONG, abs=1)
    with pytest.raises(Behind):
        told.until_passed()
    assert clock.monotonic() - given_up < 1

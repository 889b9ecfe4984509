"""One table compared over sides that are only dictionaries: parts, looks, and what happens when a side fails."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping

import pytest

from streamer.errors import ConnectError
from streamer.verify import comparison
from streamer.verify.candidates import Difference
from streamer.verify.comparison import Behind, Outcome, Pair, compare
from streamer.verify.parts import Digest, Digests, Key, Part, Rows, Seen, hash_of


class Table:
    """Implements both sides for rows {id: value}, in one range or bucket after the other."""

    def __init__(self, rows: Mapping[int, str]) -> None:
        self.table = dict(rows)
        self.reads = 0
        self.fails = self.hangs = False
        self.cancelled = threading.Event()

    def parts(self, rows: int, within: Part) -> Iterator[Part]:
        low = within.low
        while len(ids := sorted(self._ids(Part(low, within.high)))) >= rows:
            yield Part(low, str(ids[rows - 1]))
            low = str(ids[rows - 1])
        yield Part(low, within.high)

    def digests(self, part: Part) -> Digests:
        if self.fails:
            raise ConnectError('node "b": it has gone away')
        if self.hangs:
            assert self.cancelled.wait(30)
        found: dict[int, Digest] = {}
        for (key,), seen in self._rows(part).items():
            bucket = int(key or 0) % part.buckets
            old = found.get(bucket, Digest(0, 0))
            found[bucket] = Digest(old.rows + 1, old.total + seen.hash)
        return found

    def rows(self, part: Part, buckets: Collection[int]) -> Rows:
        self.reads += 1
        return {key: seen for key, seen in self._rows(part).items() if int(key[0] or 0) % part.buckets in buckets}

    def fetch(self, keys: Collection[Key]) -> Mapping[Key, tuple[Seen, tuple[str | None, ...]]]:
        raise AssertionError("nobody mends here")

    def cancel(self) -> None:
        self.cancelled.set()

    def _rows(self, part: Part) -> Rows:
        return {(str(i),): Seen(hash_of([i, self.table[i]]), self.table[i]) for i in self._ids(part)}

    def _ids(self, part: Part) -> list[int]:
        low, high = (None if end is None else int(end) for end in (part.low, part.high))
        return [i for i in self.table if (low is None or i > low) and (high is None or i <= high)]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "PART_ROWS", 50)
    monkeypatch.setattr(comparison, "FINE_ROWS", 10)


def compared(source: Table, target: Table, *, ranges: bool = True) -> Outcome:
    return compare(Pair(source, target, Part(buckets=7), ranges), lambda: None)


def found(outcome: Outcome) -> dict[str | None, str]:
    return {difference.key[0]: difference.kind for difference in outcome.different}


@pytest.mark.parametrize("ranges", [True, False])
def test_equal_tables_are_read_once(ranges: bool) -> None:
    source, target = (Table({i: "x" for i in range(1, 121)}) for _ in range(2))
    outcome = compared(source, target, ranges=ranges)
    assert (outcome.rows, outcome.parts, outcome.different) == (120, 3 if ranges else 7, [])
    assert (source.reads, target.reads) == (0, 0)


@pytest.mark.parametrize("ranges", [True, False])
def test_only_the_parts_that_differ_are_looked_into(ranges: bool) -> None:
    source, target = (Table({i: "x" for i in range(1, 121)}) for _ in range(2))
    del target.table[1]
    target.table |= {60: "y", 999: "x"}
    assert found(compared(source, target, ranges=ranges)) == {"1": "missing", "60": "different", "999": "extra"}
    assert target.reads == 6 if ranges else 2


def test_an_empty_table_is_one_part() -> None:
    assert compared(Table({}), Table({})) == Outcome(rows=0, parts=1)
    assert found(compared(Table({}), Table({7: "x"}))) == {"7": "extra"}


def test_what_arrives_while_the_stream_passes_is_no_difference() -> None:
    source, target = Table({i: "new" for i in range(40)}), Table({i: "old" for i in range(40)})
    passes = iter(range(0, 40, 10))

    def until_passed() -> None:
        first = next(passes)
        target.table |= {i: source.table[i] for i in range(first, first + 10)}
        source.table |= {i: f"newer {first}" for i in range(first + 10, 40)}  # goes on
        target.table |= {i: f"old {first}" for i in range(first + 10, 40)}

    outcome = compare(Pair(source, target, Part(), ranges=True), until_passed)
    assert (outcome.different, outcome.undecided) == ([], [])


def test_a_stream_that_does_not_get_on_is_no_verdict() -> None:
    def until_passed() -> None:
        raise Behind("it stands still")

    with pytest.raises(Behind):
        compare(Pair(Table({1: "x"}), Table({}), Part(), ranges=True), until_passed)


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("failing", ["source", "target"])
def test_a_side_that_fails_ends_it_and_breaks_off_the_other(failing: str, ranges: bool) -> None:
    source, target = Table({i: "x" for i in range(200)}), Table({i: "x" for i in range(200)})
    broken, other = (source, target) if failing == "source" else (target, source)
    broken.fails = other.hangs = True
    with pytest.raises(ConnectError, match="gone away"):
        compared(source, target, ranges=ranges)
    assert other.cancelled.is_set()


def test_whoever_hears_of_the_progress_can_break_it_off() -> None:
    class EnoughError(Exception):
        pass

    def progress(rows: int) -> None:
        raise EnoughError

    source, target = Table({1: "x"}), Table({1: "x"})
    source.hangs = True
    with pytest.raises(EnoughError):
        compare(Pair(source, target, Part(), ranges=False), lambda: None, progress)
    assert source.cancelled.is_set()


def test_after_many_differences_the_rest_is_counted_by_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "PROVEN", 20)
    monkeypatch.setattr(comparison, "ROWS_AT_ONCE", 10)
    outcome = compared(Table({i: "x" for i in range(100)}), Table({}))
    assert (len(outcome.different), outcome.unexplored) == (20, 8)
    assert all(isinstance(difference, Difference) for difference in outcome.different)

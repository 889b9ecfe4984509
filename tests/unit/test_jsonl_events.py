"""Events are what docs/events.md and docs/events.schema.json say, whatever the change."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import fastjsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.model import LSN, UNCHANGED, Change, EdgeName, Identity, Kind, Origin
from streamer.sinks.jsonl_events import READ, Lines, relation_of
from tests.changes import ITEMS, PLAIN, copy_of, delete, insert, relation, truncate, update
from tests.events import Event

DOCS: Final = Path(__file__).parents[2] / "docs"
EDGE: Final = EdgeName("shop", "a", "log")
TIME: Final = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SCHEMA: Final[dict[str, Any]] = json.loads((DOCS / "events.schema.json").read_text(encoding="utf-8"))
VALIDATE: Final[Callable[[object], object]] = fastjsonschema.compile(SCHEMA)
ITEM: Final = relation(ITEMS)


def lines_of(position: int = 0x16B3748) -> Lines:
    return Lines(EDGE, str(LSN(position)), LSN(position), Origin("z", LSN(7), TIME))


def parsed(block: bytes) -> list[Event]:
    """The events of a block of lines, each of which is valid."""
    found = [json.loads(line) for line in block.decode().split("\n")[:-1]]
    assert block == b"" or block.endswith(b"\n")
    for event in found:
        VALIDATE(event)
    return found


def event_of(change: Change) -> Event:
    (event,) = parsed(lines_of().add([change], end=True))
    return event


# -- what an event says --------------------------------------------------------------------------------------------------------


def test_an_event_says_where_and_when_its_transaction_was_made() -> None:
    event = event_of(insert(ITEM, "1", "a", None))
    assert {k: event[k] for k in ("version", "sync", "source", "position", "commit_time", "origin", "relation", "kind")} == {
        "version": 1,
        "sync": "shop",
        "source": "a",
        "position": "0/16B3748",
        "commit_time": "2026-01-02T03:04:05.000000+00:00",
        "origin": {"node": "z", "position": "0/7", "commit_time": "2026-01-02T03:04:05.000000+00:00"},
        "relation": {"schema": "public", "table": "t"},
        "kind": "insert",
    }


ROWS: Final = {
    "an insert": (insert(ITEM, "1", "a", None), {"id": "1"}, None, {"id": "1", "name": "a", "price": None}, []),
    "an update": (update(ITEM, "1", "b", "5"), {"id": "1"}, None, {"id": "1", "name": "b", "price": "5"}, []),
    "an update that leaves a value out of line": (
        (Kind.UPDATE, ITEM, None, ("1", UNCHANGED, None)),
        {"id": "1"},
        None,
        {"id": "1", "price": None},
        ["name"],
    ),
    "an update of the key": (
        update(ITEM, "2", "b", None, old=("1", UNCHANGED, UNCHANGED)),
        {"id": "1"},
        {"id": "1"},
        {"id": "2", "name": "b", "price": None},
        [],
    ),
    "a delete": (delete(ITEM, "1", None, None), {"id": "1"}, {"id": "1"}, None, []),
    "a delete with identity full": (
        delete(relation(ITEMS, Identity.FULL), "1", None, "2"),
        None,
        {"id": "1", "name": None, "price": "2"},
        None,
        [],
    ),
    "an insert without identity": (insert(relation(PLAIN, Identity.NOTHING), "1", "x"), None, None, {"a": "1", "b": "x"}, []),
    "a table without a key": (insert(relation(PLAIN), "1", "x"), None, None, {"a": "1", "b": "x"}, []),
    "a truncate": (truncate(ITEM), None, None, None, []),
}


@pytest.mark.parametrize(("change", "key", "old", "new", "unchanged"), ROWS.values(), ids=ROWS)
def test_an_event_has_the_key_and_both_rows_as_far_as_they_are_known(
    change: Change, key: object, old: object, new: object, unchanged: object
) -> None:
    event = event_of(change)
    assert (event["key"], event["old"], event["new"], event["unchanged"]) == (key, old, new, unchanged)


def test_rows_of_a_copy_have_the_key_of_their_table() -> None:
    for table, key in ((ITEMS, {"id": "1"}), (PLAIN, None)):
        r = relation_of(copy_of(table))
        row = tuple("1" for _ in r.names)
        (event,) = parsed(lines_of().add([(READ, r, None, row)], end=True))
        assert (event["kind"], event["key"], event["new"]) == ("read", key, dict.fromkeys(r.names, "1"))


@given(
    st.lists(
        st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))), min_size=3, max_size=3
    )
)
def test_every_text_comes_back_as_it_was(values: list[str | None]) -> None:
    block = lines_of().add([insert(ITEM, *values)], end=True)
    (event,) = parsed(block)
    assert list(event["new"].values()) == values
    assert block.count(b"\n") == 1


# -- transactions --------------------------------------------------------------------------------------------------------------


def numbered(events: Iterable[Event]) -> list[tuple[str, int, bool]]:
    return [(e["new"]["id"], e["transaction"]["sequence"], e["transaction"]["last"]) for e in events]


@pytest.mark.parametrize("parts", [[3], [1, 2], [1, 1, 1], [0, 3, 0], [2, 0, 1, 0, 0]])
def test_events_are_counted_and_the_last_one_says_so_however_the_transaction_is_parted(parts: list[int]) -> None:
    lines, number, block = lines_of(), 0, b""
    for place, size in enumerate(parts):
        changes = [insert(ITEM, str(number + i), "a", None) for i in range(size)]
        block += lines.add(changes, end=place == len(parts) - 1)
        number += size
    assert numbered(parsed(block)) == [("0", 1, False), ("1", 2, False), ("2", 3, True)]


def test_a_transaction_without_changes_has_no_events() -> None:
    assert lines_of().add([], end=True) == b""


def test_all_events_but_the_last_are_written_at_once() -> None:
    lines = lines_of()
    assert numbered(parsed(lines.add([insert(ITEM, str(i), "a", None) for i in range(5)], end=False)))[-1] == ("3", 4, False)


# -- docs ----------------------------------------------------------------------------------------------------------------------


def test_the_examples_of_the_docs_are_valid_and_name_every_kind() -> None:
    page = (DOCS / "events.md").read_text(encoding="utf-8")
    found = [example for block in re.findall(r"```json\n(.*?)```", page, re.DOTALL) for example in _documents(block)]
    for example in found:
        VALIDATE(example)
    assert {example["kind"] for example in found} == {*Kind, READ}


def test_the_docs_describe_every_field() -> None:
    page = (DOCS / "events.md").read_text(encoding="utf-8")
    described = {name for cell in re.findall(r"^\| (`.*?`) \|", page, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell)}
    assert described == set(SCHEMA["properties"]) == set(SCHEMA["required"]) == set(event_of(truncate(ITEM)))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (insert(ITEM, "1", "a", None), {"kind": "upsert"}),
        (insert(ITEM, "1", "a", None), {"new": None}),
        (insert(ITEM, "1", "a", None), {"new": {"id": 1}}),
        (insert(ITEM, "1", "a", None), {"version": 2}),
        (delete(ITEM, "1", "a", None), {"old": None}),
        (update(ITEM, "1", "a", None), {"position": "12"}),
    ],
)
def test_the_schema_refuses_what_is_no_event(change: Change, field: Event) -> None:
    with pytest.raises(fastjsonschema.JsonSchemaValueException):
        VALIDATE(event_of(change) | field)


def _documents(text: str) -> Iterable[Event]:
    """The JSON documents of a text."""
    decoder, place = json.JSONDecoder(), 0
    while place < len(text.rstrip()):
        document, place = decoder.raw_decode(text, place + len(text[place:]) - len(text[place:].lstrip()))
        yield document

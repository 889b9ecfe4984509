"""What tells the rows of a table apart, and relations that say so."""

from __future__ import annotations

import pytest

from streamer.capture import keys
from streamer.capture.assemble import Interest, Message
from streamer.capture.catalog import SourceTable
from streamer.capture.named_keys import NamedKeys
from streamer.errors import SchemaError
from streamer.model import Column, ColumnDefinition, Identity, Kind, Relation, TableDefinition, TableName

T = TableName("public", "t")
NAMED = ("b",)


def table(
    identity: Identity, primary: tuple[str, ...] = (), unique: tuple[tuple[str, ...], ...] = (), name: TableName = T
) -> SourceTable:
    """A table with the columns a and b, which are NOT NULL, and c, which is not."""
    columns = tuple(
        ColumnDefinition(column, "integer", 23, not_null=column != "c", default=None, identity="", generated=False)
        for column in "abc"
    )
    of = {Identity.DEFAULT: primary, Identity.INDEX: unique[0] if unique else (), Identity.FULL: ("a", "b", "c")}
    return SourceTable(TableDefinition(name, columns, primary, unique), identity, of.get(identity, ()), (), 0)


@pytest.mark.parametrize(
    ("found", "by_trigger", "by_slot"),
    [
        (table(Identity.DEFAULT, ("a",)), ("a",), ("a",)),
        (table(Identity.FULL, ("a",)), ("a",), ()),  # a target finds its own primary key
        (table(Identity.NOTHING, ("a",)), ("a",), ()),
        (table(Identity.INDEX, (), (("a",),)), ("a",), ("a",)),
        (table(Identity.NOTHING, (), (("a",),)), NAMED, ()),
        (table(Identity.FULL), NAMED, NAMED),
        (table(Identity.NOTHING), NAMED, ()),
    ],
)
def test_a_named_key_stands_behind_what_the_database_knows(
    found: SourceTable, by_trigger: tuple[str, ...], by_slot: tuple[str, ...]
) -> None:
    assert keys.delta_key(found, NAMED) == by_trigger
    assert keys.identity_key(found, NAMED) == by_slot


def test_triggers_take_a_unique_index_only_if_it_holds_no_null() -> None:
    assert keys.delta_key(table(Identity.NOTHING, (), (("c",), ("a", "c"), ("b", "a"))), ()) == ("b", "a")
    assert keys.delta_key(table(Identity.NOTHING, (), (("c",),)), ()) == ()


def test_tables_are_captured_copied_whole_or_left_out() -> None:
    keyed, keyless, large, chosen = (TableName("public", name) for name in ("keyed", "keyless", "large", "chosen"))
    found = [table(Identity.DEFAULT, ("a",), name=name) for name in (keyed, chosen)]
    found += [table(Identity.NOTHING, name=name) for name in (keyless, large)]
    interest = Interest(whole=lambda name: name == chosen, copyable=lambda name: name != large)
    assert keys.divided(found, interest) == ({keyed: ("a",)}, {keyless, chosen})


def test_a_target_is_to_have_the_named_key() -> None:
    (keyed,) = keys.on_targets([table(Identity.FULL)], lambda name: NAMED)
    assert (keyed.identity, keyed.identity_columns, keyed.definition.unique_keys) == (Identity.INDEX, NAMED, (NAMED,))
    own = table(Identity.DEFAULT, ("a",))
    assert keys.on_targets([own], lambda name: NAMED) == [own]


class Decoded:
    """A decoder that gives what it was made with."""

    def __init__(self, *messages: Message) -> None:
        self._messages = iter(messages)

    def decode(self, payload: bytes) -> Message:
        return next(self._messages)

    def is_row(self, payload: bytes) -> bool:
        return True


def relation(identity: Identity, *names: str) -> Relation:
    return Relation(T, tuple(Column(name, 23, identity is Identity.FULL or name == "a") for name in names), identity)


def test_the_relations_of_a_named_table_say_its_key_and_stay_the_same_objects() -> None:
    full, other = relation(Identity.FULL, "a", "b", "c"), relation(Identity.DEFAULT, "a", "b")
    row = ("1", "2", "3")
    changes: list[Message] = [(Kind.DELETE, full, row, None), (Kind.UPDATE, full, row, row), [(Kind.TRUNCATE, full, None, None)]]
    decoder = NamedKeys(Decoded(*changes, (Kind.INSERT, other, None, ("1", "2")), None), {T: ("b", "a")})
    first, second, truncates, third, nothing = (decoder.decode(b"") for _ in range(5))
    assert isinstance(first, tuple)
    assert isinstance(second, tuple)
    assert isinstance(truncates, list)
    assert isinstance(third, tuple)
    named = first[1]
    assert (named.identity, named.key, first[2]) == (Identity.FULL, (0, 1), row)
    assert second[1] is named
    assert truncates[0][1] is named
    assert third[1] is other
    assert nothing is None


def test_a_named_column_that_is_gone_is_an_error() -> None:
    decoder = NamedKeys(Decoded((Kind.INSERT, relation(Identity.FULL, "a"), None, ("1",))), {T: NAMED})
    with pytest.raises(SchemaError, match=r'table "public\.t" has no column "b", but the config names it as its key'):
        decoder.decode(b"")


def test_full_identity_alone_is_no_key() -> None:
    assert relation(Identity.FULL, "a", "b").key == ()
    assert relation(Identity.NOTHING, "b").key == ()
    assert relation(Identity.DEFAULT, "b", "a").key == (1,)

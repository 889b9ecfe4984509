"""Messages become pieces of transactions, each with the node that it was first made on."""

from __future__ import annotations

import gc
import struct
import tracemalloc
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta

import pytest

from streamer.capture.assemble import PIECE_BYTES, Assembler, Begin, Commit, Interest, Message
from streamer.capture.layout import CatalogTable
from streamer.capture.pgoutput import PgoutputDecoder
from streamer.capture.wal2json import ENVELOPE_BYTES, Wal2jsonDecoder
from streamer.errors import DecodeError
from streamer.model import LSN, UNCHANGED, Change, Column, Identity, Kind, Origin, Piece, Relation, TableName, Value

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
BEGIN = Begin(LSN(100), NOON)
COMMIT = Commit(LSN(108))
ACCOUNTS = Relation(
    TableName("public", "pgbench_accounts"),
    (Column("aid", 23, True), Column("bid", 23, False), Column("abalance", 23, False), Column("filler", 1042, False)),
    Identity.DEFAULT,
)
TAG = {
    "sync": "shop",
    "source": "b",
    "target": "a",
    "system_identifier": "1",
    "database": "d",
    "slot": "s",
    "position": "0/7",
    "origin": "c",
    "origin_position": "16/B374D848",
    "origin_time": "2026-11-21 02:33:35.123456+00",
    "updated": "2026-11-21 02:33:36+00",
    "seen": "{}",
}
TAGGED = Origin("c", LSN.parse("16/B374D848"), datetime(2026, 11, 21, 2, 33, 35, 123456, UTC))


def relation(name: str, *columns: str) -> Relation:
    schema, table = name.split(".")
    return Relation(TableName(schema, table), tuple(Column(c, 25, False) for c in columns), Identity.DEFAULT)


PROGRESS = relation("streamer.progress", *TAG)
T = relation("public.t", "a")


def insert(of: Relation, *values: Value) -> Change:
    return (Kind.INSERT, of, None, values)


def tag(**changed: Value) -> Change:
    return (Kind.UPDATE, PROGRESS, None, tuple((TAG | changed).values()))


def fed(messages: Iterable[Message], assembler: Assembler | None = None, size: int = 10) -> list[Piece]:
    assembler = assembler or Assembler("a")
    return [piece for message in messages if (piece := assembler.feed(message, size)) is not None]


def test_a_transaction_made_here_is_its_own_origin() -> None:
    (piece,) = fed([BEGIN, insert(T, "1"), None, insert(T, "2"), COMMIT])
    assert piece.transaction.position == LSN(100)
    assert piece.transaction.origin == Origin("a", LSN(100), NOON)
    assert piece.transaction.via == "a"
    assert piece.changes == [insert(T, "1"), insert(T, "2")]
    assert piece.end == LSN(108)


def test_an_empty_transaction_is_a_piece_without_changes() -> None:
    (piece,) = fed([BEGIN, COMMIT])
    assert (piece.changes, piece.end, piece.transaction.via) == ([], LSN(108), "a")


def test_a_truncate_of_several_relations_keeps_its_order() -> None:
    truncates: list[Change] = [(Kind.TRUNCATE, r, None, None) for r in (T, PROGRESS, ACCOUNTS)]
    (piece,) = fed([BEGIN, insert(T, "1"), truncates, COMMIT])
    assert piece.changes == [insert(T, "1"), truncates[0], truncates[2]]


def test_a_first_change_of_progress_names_origin_and_via() -> None:
    (piece,) = fed([BEGIN, tag(), insert(T, "1"), COMMIT])
    assert piece.transaction.position == LSN(100)
    assert piece.transaction.origin == TAGGED
    assert piece.transaction.via == "b"
    assert piece.changes == [insert(T, "1")]


def test_a_tag_may_be_an_insert_as_well() -> None:
    (piece,) = fed([BEGIN, insert(PROGRESS, *TAG.values()), COMMIT])
    assert piece.transaction.origin == TAGGED


def test_a_change_of_progress_that_is_not_the_first_is_no_tag() -> None:
    (piece,) = fed([BEGIN, insert(T, "1"), tag(), insert(T, "2"), COMMIT])
    assert piece.transaction.via == "a"
    assert piece.changes == [insert(T, "1"), insert(T, "2")]


def test_a_deleted_row_of_progress_is_no_tag() -> None:
    (piece,) = fed([BEGIN, (Kind.DELETE, PROGRESS, tuple(TAG.values()), None), insert(T, "1"), COMMIT])
    assert piece.transaction.via == "a"
    assert piece.changes == [insert(T, "1")]


def test_tables_of_our_own_schema_are_dropped_wherever_they_come() -> None:
    own = relation("streamer.copy", "sync")
    (piece,) = fed([BEGIN, tag(), insert(own, "x"), insert(T, "1"), insert(own, "x"), insert(T, "2"), COMMIT])
    assert piece.changes == [insert(T, "1"), insert(T, "2")]


def test_each_transaction_is_looked_at_anew() -> None:
    later = Begin(LSN(200), NOON)
    pieces = fed([BEGIN, tag(), insert(T, "1"), COMMIT, later, insert(T, "2"), Commit(LSN(208))])
    assert [(p.transaction.via, p.transaction.position, p.end) for p in pieces] == [("b", 100, 108), ("a", 200, 208)]
    assert [p.changes for p in pieces] == [[insert(T, "1")], [insert(T, "2")]]


@pytest.mark.parametrize(
    "change", [tag(origin=None), tag(origin_position="here"), tag(origin_time="infinity"), tag(source=UNCHANGED)]
)
def test_a_tag_that_cannot_be_read_is_an_error(change: Change) -> None:
    with pytest.raises(DecodeError, match=r'"streamer\.progress" of the transaction at 0/64'):
        fed([BEGIN, change])


def test_a_tag_without_the_columns_is_an_error() -> None:
    with pytest.raises(DecodeError, match="same version of streamer"):
        fed([BEGIN, insert(relation("streamer.progress", "sync"), "shop")])


def test_what_our_node_had_seen_of_others_is_known_from_the_tags_before() -> None:
    def local(position: int) -> list[Message]:
        return [Begin(LSN(position), NOON), insert(T, "1"), Commit(LSN(position + 8))]

    def applied(position: int, **changed: Value) -> list[Message]:
        return [Begin(LSN(position), NOON), tag(**changed), insert(T, "2"), Commit(LSN(position + 8))]

    times = ["2026-11-21 02:00:00+00", "2026-11-21 01:00:00+00", "2026-11-21 03:00:00+00"]
    pieces = fed([*local(10), *applied(20, origin_time=times[0]), *local(30), *applied(40, origin_time=times[1]), *local(50)])
    seen = [piece.transaction.origin.seen for piece in pieces if piece.transaction.via == "a"]
    assert seen == [{}, {"c": datetime.fromisoformat(times[0])}, {"c": datetime.fromisoformat(times[0])}]


def test_what_was_known_of_our_node_before_counts_from_its_position_on() -> None:
    def local(position: int) -> list[Message]:
        return [Begin(LSN(position), NOON), insert(T, "1"), Commit(LSN(position + 8))]

    early, late = NOON, NOON + timedelta(hours=1)
    assembler = Assembler("a", known=[(LSN(10), {"c": late}), (LSN(30), {"c": early, "d": early}), (LSN(50), {"d": late})])
    pieces = fed([*local(10), *local(29), *local(30), *local(40)], assembler)
    seen = [piece.transaction.origin.seen for piece in pieces]
    assert seen == [{"c": late}, {"c": late}, {"c": late, "d": early}, {"c": late, "d": early}]
    assert [piece.seen for piece in pieces] == seen
    assert assembler.seen(LSN(49)) == {"c": late, "d": early}
    assert assembler.seen(LSN(50)) == {"c": late, "d": late}


def test_a_transaction_that_was_applied_counts_as_seen_once_it_is_whole() -> None:
    (piece,) = fed([BEGIN, tag(), insert(T, "1"), COMMIT])
    assert piece.seen == {"c": TAGGED.commit_time}


def test_a_forwarded_transaction_brings_what_its_origin_had_seen() -> None:
    seen = '{"d":"2026-11-21T02:00:00+00:00"}'
    (piece,) = fed([BEGIN, tag(seen=seen), insert(T, "1"), COMMIT])
    assert piece.transaction.origin.seen == {"d": datetime(2026, 11, 21, 2, tzinfo=UTC)}


def test_a_removed_key_becomes_a_delete_of_its_table() -> None:
    removal = relation("streamer.removal", "id", "schema_name", "table_name", "key")
    (piece,) = fed([BEGIN, insert(removal, "7", "public", "t", '{"id":"5","part":"x"}'), COMMIT])
    ((kind, removed, old, new),) = piece.changes
    assert (kind, old, new) == (Kind.DELETE, ("5", "x"), None)
    assert (removed.table, removed.names) == (TableName("public", "t"), ("id", "part"))
    assert piece.transaction.via == "a"


def test_the_rows_of_a_transaction_that_no_edge_wants_need_not_be_decoded() -> None:
    assembler = Assembler("a", interest=Interest(carries=lambda transaction: transaction.via != "b"))
    passing = []
    for message in (BEGIN, tag(), COMMIT, Begin(LSN(200), NOON), insert(T, "1"), Commit(LSN(208))):
        assembler.feed(message, 100)
        passing.append(assembler.passing)
    assert passing == [False, True, False, False, False, False]


def test_a_large_transaction_leaves_in_pieces_of_one_transaction() -> None:
    rows = [insert(T, str(i)) for i in range(10)]
    pieces = fed([BEGIN, tag(), *rows, COMMIT], size=PIECE_BYTES // 3)
    assert [len(p.changes) for p in pieces] == [3, 3, 3, 1]
    assert [p.end for p in pieces] == [None, None, None, LSN(108)]
    assert {p.transaction.origin.node for p in pieces} == {"c"}
    assert [c for p in pieces for c in p.changes] == rows
    assert all(p.size > PIECE_BYTES for p in pieces[:-1])


def test_a_transaction_is_open_from_begin_to_commit() -> None:
    assembler = Assembler("a")
    seen = [assembler.open]
    for message in (BEGIN, insert(T, "1"), COMMIT):
        assembler.feed(message, 10)
        seen.append(assembler.open)
    assert seen == [False, True, True, False]


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([BEGIN, BEGIN], "begins at 0/64 inside"),
        ([COMMIT], "ends at 0/6C that never began"),
        ([insert(T, "1")], '"public.t" comes outside'),
        ([BEGIN, insert(T, "1"), COMMIT, insert(T, "1")], '"public.t" comes outside'),
        ([[(Kind.TRUNCATE, T, None, None)]], '"public.t" comes outside'),
    ],
)
def test_messages_that_contradict_each_other_are_refused(messages: list[Message], complaint: str) -> None:
    with pytest.raises(DecodeError, match=complaint):
        fed(messages)


# -- the estimate of memory -------------------------------------------------------------------------------------------

FILLER = " " * 84


def _pgoutput() -> tuple[Callable[[bytes], Message], Callable[[int], bytes]]:
    columns = b"".join(bytes([c.identity]) + c.name.encode() + b"\0" + struct.pack(">Ii", c.type_oid, -1) for c in ACCOUNTS.columns)
    decoder = PgoutputDecoder()
    decoder.decode(b"R" + struct.pack(">I", 1) + b"public\0pgbench_accounts\0d" + struct.pack(">H", 4) + columns)

    def payload(number: int) -> bytes:
        values = [str(v).encode() for v in (number, 1, number - 3000, FILLER)]
        row = b"".join(b"t" + struct.pack(">I", len(v)) + v for v in values)
        return b"U" + struct.pack(">I", 1) + b"N" + struct.pack(">H", 4) + row

    return decoder.decode, payload


def _wal2json() -> tuple[Callable[[bytes], Message], Callable[[int], bytes]]:
    known = CatalogTable(ACCOUNTS, ("aid",))
    decoder = Wal2jsonDecoder(lambda name: known, lambda *asked: [], lambda: LSN(0), numbers_are_strings=False)

    def payload(number: int) -> bytes:
        values = (number, 1, number - 3000, f'"{FILLER}"')
        columns = ",".join(
            f'{{"name":"{c.name}","typeoid":{c.type_oid},"value":{v}}}' for c, v in zip(ACCOUNTS.columns, values, strict=True)
        )
        return (
            '{"action":"U","timestamp":"2026-11-21 03:22:12.133269+00","lsn":"0/19476E8","schema":"public",'
            f'"table":"pgbench_accounts","columns":[{columns}],"identity":[{{"name":"aid","typeoid":23,"value":{number}}}]}}'
        ).encode()

    return decoder.decode, payload


@pytest.mark.parametrize(
    ("plugin", "assembler"),
    [(_pgoutput, Assembler("a")), (_wal2json, Assembler("a", ENVELOPE_BYTES))],
    ids=["pgoutput", "wal2json"],
)
def test_the_estimated_size_is_near_the_memory_that_rows_take(
    plugin: Callable[[], tuple[Callable[[bytes], Message], Callable[[int], bytes]]], assembler: Assembler
) -> None:
    decode, payload = plugin()
    pieces: list[Piece] = []
    assembler.feed(BEGIN, 21)
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(100000, 105000):
            data = payload(number)
            if (piece := assembler.feed(decode(data), len(data))) is not None:
                pieces.append(piece)
        if (piece := assembler.feed(COMMIT, 26)) is not None:
            pieces.append(piece)
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    estimated = sum(p.size for p in pieces)
    assert sum(len(p.changes) for p in pieces) == 5000
    assert used / 1.5 < estimated < used * 1.5

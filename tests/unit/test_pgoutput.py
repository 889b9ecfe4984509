"""pgoutput payloads, written by hand byte for byte, and what they mean."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.capture.assemble import Begin, Commit
from streamer.capture.pgoutput import PgoutputDecoder
from streamer.errors import DecodeError
from streamer.model import LSN, UNCHANGED, Column, Identity, Kind, Relation, TableName, Value

OID = 16385
Attribute = tuple[int, str, int]
ATTRIBUTES: Final[list[Attribute]] = [(1, "id", 23), (0, "name", 25), (0, "doc", 25)]


def relation(attributes: Sequence[Attribute] = ATTRIBUTES, oid: int = OID, table: str = "public.t", identity: str = "d") -> bytes:
    schema, name = table.split(".")
    columns = b"".join(bytes([f]) + n.encode() + b"\0" + struct.pack(">Ii", t, -1) for f, n, t in attributes)
    head = f"{schema}\0{name}\0{identity}".encode()
    return b"R" + struct.pack(">I", oid) + head + struct.pack(">H", len(attributes)) + columns


def row(*values: Value) -> bytes:
    encoded = struct.pack(">H", len(values))
    for value in values:
        if value is None:
            encoded += b"n"
        elif value is UNCHANGED:
            encoded += b"u"
        else:
            text = value.encode()
            encoded += b"t" + struct.pack(">I", len(text)) + text
    return encoded


def message(kind: str, *parts: bytes, oid: int = OID) -> bytes:
    return kind.encode() + struct.pack(">I", oid) + b"".join(parts)


def truncate(*oids: int) -> bytes:
    return b"T" + struct.pack(f">IB{len(oids)}I", len(oids), 0, *oids)


def decoder(described: bytes | None = None) -> PgoutputDecoder:
    made = PgoutputDecoder()
    assert made.decode(relation() if described is None else described) is None
    return made


def change(payload: bytes, of: PgoutputDecoder | None = None) -> tuple[Kind, Relation, object, object]:
    decoded = (of or decoder()).decode(payload)
    assert isinstance(decoded, tuple)
    return decoded


def test_begin_and_commit_carry_position_time_and_end() -> None:
    begin = bytes.fromhex("42 0000000001938458 0002bd0a5c9f8000 000002d7")
    moment = datetime(2000, 1, 1, tzinfo=UTC).timestamp() + 0x0002BD0A5C9F8000 / 1e6
    assert PgoutputDecoder().decode(begin) == Begin(LSN(0x1938458), datetime.fromtimestamp(moment, UTC))
    commit = bytes.fromhex("43 00 0000000001938458 0000000001948518 0002bd0a5c9f8000")
    assert PgoutputDecoder().decode(commit) == Commit(LSN(0x1948518))


def test_rows_are_told_from_what_must_be_decoded_by_their_first_byte() -> None:
    assert [PgoutputDecoder().is_row(kind) for kind in (b"I", b"U", b"D", b"T", b"B", b"C", b"R", b"O")] == [True] * 4 + [False] * 4


def test_a_relation_message_describes_name_identity_and_columns() -> None:
    _, described, *_ = change(message("I", b"N", row("1", None, "x")))
    assert described.table == TableName("public", "t")
    assert described.identity is Identity.DEFAULT
    assert described.columns == (Column("id", 23, True), Column("name", 25, False), Column("doc", 25, False))


def test_an_empty_namespace_is_pg_catalog() -> None:
    made = decoder(relation(table=".pg_thing"))
    assert change(message("I", b"N", row("1", None, "x")), made)[1].table == TableName("pg_catalog", "pg_thing")


def test_an_equal_relation_message_keeps_the_relation_object() -> None:
    made = decoder()
    first = change(message("I", b"N", row("1", None, "x")), made)[1]
    made.decode(relation())
    assert change(message("I", b"N", row("2", None, "x")), made)[1] is first
    made.decode(relation([*ATTRIBUTES, (0, "more", 16)]))
    later = change(message("I", b"N", row("3", None, "x", "t")), made)[1]
    assert later is not first
    assert later.names == ("id", "name", "doc", "more")


def test_an_insert_gives_the_new_row() -> None:
    kind, _, old, new = change(message("I", b"N", row("1", "żółw 😀", None)))
    assert (kind, old, new) == (Kind.INSERT, None, ("1", "żółw 😀", None))


def test_an_update_without_an_old_row_marks_unchanged_columns() -> None:
    kind, _, old, new = change(message("U", b"N", row("1", "", UNCHANGED)))
    assert (kind, old, new) == (Kind.UPDATE, None, ("1", "", UNCHANGED))


def test_an_update_of_the_key_has_the_old_key_only() -> None:
    _, _, old, new = change(message("U", b"K", row("1", None, None), b"N", row("2", "b", UNCHANGED)))
    assert old == ("1", UNCHANGED, UNCHANGED)
    assert new == ("2", "b", UNCHANGED)


def test_an_unchanged_key_that_is_stored_out_of_line_is_no_new_key() -> None:
    _, _, old, new = change(message("U", b"K", row("long", None, None), b"N", row(UNCHANGED, "b", "c")))
    assert (old, new) == (None, ("long", "b", "c"))


def test_an_update_with_a_full_old_row_completes_the_new_one_from_it() -> None:
    made = decoder(relation([(1, "id", 23), (1, "name", 25), (1, "doc", 25)], identity="f"))
    _, _, old, new = change(message("U", b"O", row("1", None, "long"), b"N", row("1", "b", UNCHANGED)), made)
    assert (old, new) == (("1", None, "long"), ("1", "b", "long"))


def test_a_delete_has_the_old_key_or_the_whole_old_row() -> None:
    assert change(message("D", b"K", row("1", None, None)))[2:] == (("1", UNCHANGED, UNCHANGED), None)
    assert change(message("D", b"O", row("1", None, "x")))[2:] == (("1", None, "x"), None)


def test_one_truncate_message_is_a_change_for_each_of_its_relations() -> None:
    made = decoder()
    made.decode(relation(oid=2, table="public.other"))
    changes = made.decode(truncate(OID, 2))
    assert isinstance(changes, list)
    assert [(c[0], str(c[1].table), c[2], c[3]) for c in changes] == [
        (Kind.TRUNCATE, "public.t", None, None),
        (Kind.TRUNCATE, "public.other", None, None),
    ]


@pytest.mark.parametrize(
    "payload",
    [
        b"O" + struct.pack(">Q", 1) + b"streamer:a\0",
        b"Y" + struct.pack(">I", 3) + b"public\0mood\0",
        b"M\0rest",
        b"A" + struct.pack(">II", 7, 8),
    ],
    ids=["origin", "type", "message", "stream abort"],
)
def test_messages_without_changes_are_passed_over(payload: bytes) -> None:
    assert PgoutputDecoder().decode(payload) is None


ROOTS = {TableName("public", leaf): TableName("public", "parted") for leaf in ("eu", "us")}


def partitions() -> PgoutputDecoder:
    made = PgoutputDecoder(ROOTS)
    made.decode(relation(oid=1, table="public.eu"))
    made.decode(relation(oid=2, table="public.us"))
    made.decode(relation(oid=3, table="public.other"))
    return made


def test_partitions_share_the_relation_of_their_table() -> None:
    made = partitions()
    eu, us, other = (change(message("I", b"N", row("1", None, None), oid=oid), made)[1] for oid in (1, 2, 3))
    assert eu is us
    assert (str(eu.table), str(other.table)) == ("public.parted", "public.other")


def test_a_truncate_of_all_partitions_is_one_of_their_table() -> None:
    changes = partitions().decode(truncate(1, 2, 3))
    assert isinstance(changes, list)
    assert [str(c[1].table) for c in changes] == ["public.parted", "public.other"]


def test_a_truncate_of_one_partition_is_refused_by_name() -> None:
    with pytest.raises(DecodeError, match=r'TRUNCATE of the partition "public\.us" alone .*"public\.parted"'):
        partitions().decode(truncate(2))


def test_generated_columns_are_left_out_of_relation_and_rows() -> None:
    made = PgoutputDecoder(generated=lambda table: {"name"} if table.name == "t" else ())
    made.decode(relation())
    made.decode(relation(oid=2, table="public.other"))
    _, described, old, new = change(message("U", b"K", row("1", None, None), b"N", row("2", "made", "c")), made)
    assert (described.names, old, new) == (("id", "doc"), ("1", UNCHANGED), ("2", "c"))
    assert change(message("D", b"K", row("1", None, None)), made)[1:] == (described, ("1", UNCHANGED), None)
    assert change(message("I", b"N", row("1", "b", "c"), oid=2), made)[3] == ("1", "b", "c")
    truncated = made.decode(truncate(OID))
    assert isinstance(truncated, list)
    assert truncated[0][1] is described


WHOLE = [
    relation(),
    b"B" + struct.pack(">QqI", 1, 2, 3),
    b"C" + struct.pack(">BQQq", 0, 1, 2, 3),
    message("I", b"N", row("1", "name", None)),
    message("U", b"K", row("1", None, None), b"N", row("2", "b", UNCHANGED)),
    message("D", b"K", row("1", None, None)),
    truncate(OID),
]


@pytest.mark.parametrize("payload", WHOLE, ids=[chr(p[0]) for p in WHOLE])
def test_a_payload_cut_short_anywhere_is_refused(payload: bytes) -> None:
    for end in range(len(payload)):
        with pytest.raises(DecodeError):
            decoder().decode(payload[:end])


@pytest.mark.parametrize("payload", WHOLE, ids=[chr(p[0]) for p in WHOLE])
def test_a_payload_with_a_byte_too_many_is_refused(payload: bytes) -> None:
    with pytest.raises(DecodeError):
        decoder().decode(payload + b"\0")


@given(st.sampled_from(WHOLE), st.data())
def test_a_damaged_payload_is_decoded_or_refused_but_nothing_else(payload: bytes, data: st.DataObject) -> None:
    damaged = bytearray(payload)
    damaged[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    made = decoder()
    with contextlib.suppress(DecodeError):
        made.decode(bytes(damaged))


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [
        (b"", "0 bytes cannot be read: it ends too early"),
        (b"U" + bytes(3), "4 bytes cannot be read: it ends too early"),
        (message("I", b"N", struct.pack(">H", 1)), "8 bytes cannot be read: it ends too early"),
        (message("I", b"N", struct.pack(">H", 1) + b"t" + b"\xff" * 4), "it should have 4294967308 bytes|described"),
        (b"Zzz", "unknown kind 'Z'"),
        (b"B" + struct.pack(">QqI", 1, 2**62, 3), "malformed"),
        (message("I", b"N", row("1", None, None), oid=77), "oid 77, which was never described"),
        (truncate(77), "oid 77, which was never described"),
        (message("I", b"N", row("1", "2")), '"public.t": a row of 2 columns came, 3 are described'),
        (message("I", b"N", struct.pack(">H", 3) + b"n" + b"b" + bytes(4)), "column \"name\" came in the unknown form 'b'"),
        (message("I", b"K", row("1", None, None)), "'N' was expected"),
        (message("D", b"N", row("1", None, None)), "unknown kind 'N'"),
    ],
)
def test_what_is_wrong_is_said(payload: bytes, complaint: str) -> None:
    with pytest.raises(DecodeError, match=complaint):
        decoder().decode(payload)


def test_text_that_is_not_utf8_names_relation_and_column() -> None:
    broken = message("I", b"N", struct.pack(">H", 3) + b"nt" + struct.pack(">I", 2) + b"\xc3\x28" + b"n")
    with pytest.raises(DecodeError, match=r'"public\.t": the value of column "name" is not text in UTF-8'):
        decoder().decode(broken)


VALUES = st.one_of(st.none(), st.text())


@given(st.lists(VALUES, min_size=3, max_size=3), st.lists(st.one_of(VALUES, st.just(UNCHANGED)), min_size=3, max_size=3))
def test_any_row_comes_back_as_it_was_sent(old: list[Value], new: list[Value]) -> None:
    made = decoder(relation(identity="f"))
    assert change(message("I", b"N", row(*old)), made)[3] == tuple(old)
    _, _, before, after = change(message("U", b"O", row(*old), b"N", row(*new)), made)
    assert before == tuple(old)
    assert after == tuple(o if n is UNCHANGED else n for o, n in zip(old, new, strict=True))
    assert change(message("D", b"O", row(*old)), made)[2] == tuple(old)

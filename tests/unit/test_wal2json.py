"""wal2json payloads as the plugin writes them (format version 2), and what they mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from streamer.capture.assemble import Begin, Commit
from streamer.capture.wal2json import Wal2jsonDecoder, options
from streamer.errors import DecodeError
from streamer.model import LSN, UNCHANGED, Identity, Kind, TableName
from tests.unit.wal2json_payloads import (
    FLOAT8,
    INT,
    KEY,
    NUMERIC,
    PLAIN,
    ROW,
    TEXT,
    Catalog,
    T,
    cells,
    change,
    change_json,
    table,
)

# -- transactions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "microsecond"), [("35", 0), ("35.1", 100000), ("35.123456", 123456), ("35.12345", 123450)])
def test_begin_carries_the_position_of_the_commit_and_its_time(text: str, microsecond: int) -> None:
    begin = f'{{"action":"B","timestamp":"2026-11-21 02:33:{text}+00","lsn":"1/1946E78","nextlsn":"1/19473D0"}}'
    moment = datetime(2026, 11, 21, 2, 33, 35, microsecond, UTC)
    assert Catalog().decoder().decode(begin.encode()) == Begin(LSN.parse("1/1946E78"), moment)


def test_commit_carries_the_position_after_it() -> None:
    commit = b'{"action":"C","timestamp":"2026-11-21 02:33:35+00","lsn":"1/1946E78","nextlsn":"1/19473D0"}'
    assert Catalog().decoder().decode(commit) == Commit(LSN.parse("1/19473D0"))


def test_logical_messages_are_passed_over() -> None:
    payload = b'{"action":"M","lsn":"0/1","transactional":true,"prefix":"x","content":"y"}'
    assert Catalog().decoder().decode(payload) is None


# -- rows -------------------------------------------------------------------------------------------------------------


def test_rows_are_told_from_what_must_be_decoded_by_their_beginning() -> None:
    decoder = Catalog().decoder()
    rows = [change_json("I", ROW), change_json("U", ROW, KEY), change_json("D", None, KEY), change_json("T")]
    others = [b'{"action":"B","xid":1}', b'{"action":"C","xid":1}']
    assert [decoder.is_row(payload) for payload in (*rows, *others)] == [True] * 4 + [False] * 2


def test_an_insert_gives_the_new_row() -> None:
    assert change(change_json("I", ROW), Catalog(PLAIN).decoder()) == (
        Kind.INSERT,
        PLAIN.relation,
        None,
        ("1", "a", "2"),
    )


def test_rows_of_tables_that_are_not_selected_are_dropped() -> None:
    catalog = Catalog()
    decoder = catalog.decoder()
    for payload in (change_json("I", ROW), change_json("U", ROW, KEY), change_json("D", None, KEY), change_json("T")):
        assert decoder.decode(payload) is None
    assert catalog.asked == [T]


def test_rows_of_a_table_that_is_attached_as_a_partition_later_travel() -> None:
    """They were left out until the session ended, because its rows had been left out before."""
    catalog = Catalog()
    decoder = catalog.decoder()
    catalog.end = LSN(0x20)
    assert decoder.decode(change_json("I", ROW)) is None
    catalog.tables = {T: PLAIN}
    for position, travels in (("0/1F", False), ("0/20", True), ("0/30", True)):
        decoder.decode(f'{{"action":"B","timestamp":"2026-11-21 02:33:35+00","lsn":"{position}","nextlsn":"0/99"}}'.encode())
        assert (decoder.decode(change_json("I", ROW)) is not None) is travels
    assert catalog.asked == [T, T]


def test_an_update_that_keeps_the_key_has_no_old_row() -> None:
    kind, _, old, new = change(change_json("U", ROW, KEY), Catalog(PLAIN).decoder())
    assert (kind, old, new) == (Kind.UPDATE, None, ("1", "a", "2"))


def test_an_update_of_the_key_has_the_old_key() -> None:
    _, _, old, new = change(change_json("U", ROW, cells(("id", INT, "7"))), Catalog(PLAIN).decoder())
    assert (old, new) == (("7", UNCHANGED, UNCHANGED), ("1", "a", "2"))


def test_a_key_that_differs_in_its_last_digit_only_is_another_key() -> None:
    keyed = table(("id", NUMERIC), ("name", TEXT))
    row = cells(("id", NUMERIC, "12345678901234567890.1"), ("name", TEXT, '"a"'))
    identity = cells(("id", NUMERIC, "12345678901234567890.2"))
    _, _, old, new = change(change_json("U", row, identity), Catalog(keyed).decoder())
    assert (old, new) == (("12345678901234567890.2", UNCHANGED), ("12345678901234567890.1", "a"))


def test_a_delete_has_the_old_key() -> None:
    kind, _, old, new = change(change_json("D", None, KEY), Catalog(PLAIN).decoder())
    assert (kind, old, new) == (Kind.DELETE, ("1", UNCHANGED, UNCHANGED), None)


def test_an_unchanged_toasted_column_is_absent_and_not_null() -> None:
    row = cells(("id", INT, "1"), ("n", INT, "null"))
    assert change(change_json("U", row, KEY), Catalog(PLAIN).decoder())[2:] == (None, ("1", UNCHANGED, None))


def test_an_unchanged_key_that_is_stored_out_of_line_comes_from_the_identity() -> None:
    row = cells(("name", TEXT, '"a"'), ("n", INT, "2"))
    assert change(change_json("U", row, KEY), Catalog(PLAIN).decoder())[2:] == (None, ("1", "a", "2"))


def test_full_identity_gives_the_old_row_and_completes_the_new_one() -> None:
    full = table(("id", INT), ("name", TEXT), ("n", INT), identity=Identity.FULL)
    identity = cells(("id", INT, "1"), ("name", TEXT, '"long"'), ("n", INT, "null"))
    row = cells(("id", INT, "1"), ("n", INT, "2"))
    decoder = Catalog(full).decoder()
    _, _, old, new = change(change_json("U", row, identity), decoder)
    assert (old, new) == (("1", "long", None), ("1", "long", "2"))
    assert change(change_json("D", None, identity), decoder)[2] == ("1", "long", None)


def test_before_25_nulls_are_left_out_of_a_full_identity() -> None:
    full = table(("id", INT), ("name", TEXT), ("n", INT), identity=Identity.FULL)
    identity = cells(("id", None, "1"), ("name", None, '"a"'))
    assert change(change_json("D", None, identity), Catalog(full).decoder())[2] == ("1", "a", None)


def test_rows_of_a_partition_are_aligned_by_name() -> None:
    root = table(("id", INT), ("name", TEXT), ("n", INT), name=TableName("public", "parted"))
    catalog = Catalog()
    catalog.tables = {TableName("public", leaf): root for leaf in ("eu", "us")}
    decoder = catalog.decoder()
    row = cells(("n", INT, "2"), ("name", TEXT, '"a"'), ("id", INT, "1"))
    first = change(change_json("I", ROW, name="eu"), decoder)
    second = change(change_json("U", row, KEY, name="us"), decoder)
    assert first[3] == second[3] == ("1", "a", "2")
    assert first[1] is second[1]


def test_generated_columns_are_left_out() -> None:
    made = table(("id", INT), ("name", TEXT), identity=Identity.FULL, generated=["twice"])
    row = cells(("twice", FLOAT8, "null"), ("id", INT, "1"), ("name", TEXT, '"a"'))
    catalog = Catalog(made)
    decoder = catalog.decoder()
    assert change(change_json("I", row), decoder)[3] == ("1", "a")
    assert change(change_json("U", row, row), decoder)[2:] == (("1", "a"), ("1", "a"))
    assert catalog.asked == [T]


# -- truncate ---------------------------------------------------------------------------------------------------------


def partitioned() -> Wal2jsonDecoder:
    root = table(("id", INT), name=TableName("public", "parted"))
    catalog = Catalog()
    catalog.tables = {TableName("public", name): root for name in ("parted", "eu", "us")}
    return catalog.decoder()


def test_truncate_has_no_rows() -> None:
    assert Catalog(PLAIN).decoder().decode(change_json("T")) == (Kind.TRUNCATE, PLAIN.relation, None, None)


def test_a_truncate_of_a_partitioned_table_is_one_change() -> None:
    decoder = partitioned()
    changes = [decoder.decode(change_json("T", name=name, lsn="0/5")) for name in ("parted", "eu", "us")]
    assert isinstance(changes[0], tuple)
    assert str(changes[0][1].table) == "public.parted"
    assert changes[1:] == [None, None]


def test_a_truncate_of_one_partition_is_refused_by_name() -> None:
    decoder = partitioned()
    decoder.decode(change_json("T", name="parted", lsn="0/5"))
    with pytest.raises(DecodeError, match=r'TRUNCATE of the partition "public\.us" alone .*"public\.parted"'):
        decoder.decode(change_json("T", name="us", lsn="0/6"))


# -- payloads that are not what they should be --------------------------------------------------------------------------

WHOLE = [
    b'{"action":"B","timestamp":"2026-11-21 02:33:35+00","lsn":"0/1","nextlsn":"0/2"}',
    b'{"action":"C","timestamp":"2026-11-21 02:33:35+00","lsn":"0/1","nextlsn":"0/2"}',
    change_json("I", ROW),
    change_json("U", ROW, KEY),
    change_json("D", None, KEY),
    change_json("T"),
]


@pytest.mark.parametrize("payload", WHOLE)
def test_a_payload_cut_short_anywhere_is_refused(payload: bytes) -> None:
    for end in range(len(payload)):
        with pytest.raises(DecodeError):
            Catalog(PLAIN).decoder().decode(payload[:end])


def without(key: str) -> Callable[[bytes], bytes]:
    def leave_out(payload: bytes) -> bytes:
        message = json.loads(payload)
        del message[key]
        return json.dumps(message).encode()

    return leave_out


@pytest.mark.parametrize(
    "payload",
    [
        b"[]",
        b"7",
        b'"text"',
        b"{}",
        b'{"action":"X"}',
        b'{"action":"B","timestamp":"yesterday","lsn":"0/1"}',
        b'{"action":"C","nextlsn":"one"}',
        without("schema")(change_json("I", ROW)),
        without("columns")(change_json("I", ROW)),
        without("identity")(change_json("U", ROW, KEY)),
        without("identity")(change_json("D", None, KEY)),
        without("lsn")(change_json("T")),
        change_json("I", "null"),
        change_json("I", '{"name":"id","typeoid":23}'),
        change_json("I", ROW).replace(b'"value":2', b'"value":[2]').replace(b'"typeoid":23', b'"typeoid":17'),
    ],
)
def test_a_malformed_payload_is_refused(payload: bytes) -> None:
    with pytest.raises(DecodeError):
        Catalog(PLAIN).decoder().decode(payload)


def test_text_that_is_not_utf8_names_relation_and_column() -> None:
    payload = change_json("I", cells(("id", INT, "1"), ("name", TEXT, '"é#"'), ("n", INT, "2"))).replace(b"#", b"\xe9")
    with pytest.raises(DecodeError, match=r'"public\.t": the value of column "name" is not text in the encoding utf-8'):
        Catalog(PLAIN).decoder().decode(payload)


# -- options ----------------------------------------------------------------------------------------------------------


def test_the_options_are_those_that_the_decoder_expects() -> None:
    assert options([T, TableName("streamer", "progress")], numbers_are_strings=False) == {
        "format-version": "2",
        "include-lsn": "true",
        "include-timestamp": "true",
        "include-types": "false",
        "include-type-oids": "true",
        "add-tables": "public.t,streamer.progress",
    }


def test_numbers_as_strings_are_asked_for_where_the_plugin_can() -> None:
    assert options([T], numbers_are_strings=True)["numeric-data-types-as-string"] == "true"


def test_names_are_escaped_and_schemas_are_taken_whole() -> None:
    chosen = options([TableName("My Schema", 'a.b,*\\"')], schemas=["s t"], numbers_are_strings=False)["add-tables"]
    assert chosen == 'My\\ Schema.a\\.b\\,\\*\\\\\\",s\\ t.*'

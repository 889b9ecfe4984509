"""What every sink must do with values and names: bring them over as they are."""

from __future__ import annotations

import pytest

from streamer.copytext import format_rows
from streamer.errors import ApplyError
from streamer.model import (
    LSN,
    UNCHANGED,
    Identity,
)
from streamer.ports import Start, Written
from tests.changes import copy_of, delete, group, insert, relation, table, truncate, update, write
from tests.integration.targets import Target, holds_infinity, keeps_rows, opened, written

# -- values -----------------------------------------------------------------------------------------------------------

TEXTS = [
    "",
    None,
    "NULL",
    "\\N",
    "\\.",
    "it's",
    'say "x"',
    "C:\\new\\table",
    "tab\there\nnew line\r\v\b\f",
    "ä€𝄞 日本 \u2028\x85\x01\x7f",
    "%s %(x)s ?1 :a $1",
    '{["json"]}',
    " padded ",
    "x" * 1_000_000,
]


def test_every_text_arrives_as_it_was(target: Target) -> None:
    texts = table("texts", id="integer", value="text")
    target.create(texts)
    r = relation(texts)
    expected = {(str(i), v) for i, v in enumerate(TEXTS)}
    singly, _ = written(target, texts, *(group(insert(r, str(i), v), to=200 + i) for i, v in enumerate(TEXTS)))
    assert set(singly) == expected
    updated, _ = written(target, texts, group(*(update(r, str(i), v) for i, v in enumerate(reversed(TEXTS))), to=300))
    assert set(updated) == {(str(i), v) for i, v in enumerate(reversed(TEXTS))}
    moved, _ = written(
        target, texts, group(*(update(r, str(i + 50), v, old=(str(i), UNCHANGED)) for i, v in enumerate(TEXTS)), to=400)
    )
    assert set(moved) == {(str(i + 50), v) for i, v in enumerate(TEXTS)}
    together, _ = written(target, texts, group(truncate(r), *(insert(r, str(i), v) for i, v in enumerate(TEXTS)), to=500))
    assert set(together) == expected
    with opened(target) as sink:
        sink.load(copy_of(texts), Start(LSN(600)), [format_rows(sorted(expected, key=str))])
    assert set(target.rows(texts)) == expected


def test_texts_are_keys(target: Target) -> None:
    texts = table("texts", key=("value",), value="text", n="integer")
    target.create(texts)
    r = relation(texts)
    keys = [t for t in TEXTS if t is not None and len(t) < 1000]
    rows, done = written(
        target,
        texts,
        group(*(insert(r, k, "1") for k in keys)),
        group(*(update(r, k, "2") for k in keys), to=300),
        group(*(delete(r, k, None) for k in keys[1:]), to=400),
    )
    assert (rows, done) == ([("", "2")], Written(deleted=len(keys) - 1))


NUMBERS: list[tuple[str | None, ...]] = [
    ("9223372036854775807", "t", "\\x00ff5c", "1.7976931348623157e+308", "12345678901234567890.123456789012345678901234567890"),
    ("-9223372036854775808", "f", "\\x", "5e-324", "NaN"),
    ("0", None, None, None, "0.10"),
    ("3", "f", "\\x03", "0.1", "100"),
    (None, None, None, None, None),
    ("4", "t", "\\x04", "2.2250738585072014e-308", "1e3"[:1]),
    ("5", "t", "\\x05", "-1.5", "7"),
]
NO_NUMBERS: list[tuple[str | None, ...]] = [
    ("0", None, None, "NaN", "0.10"),
    ("1", "t", "\\x01", "Infinity", "-1.50"),
    ("2", "f", "\\x02", "-Infinity", None),
]


def test_other_types_arrive_as_they_were(target: Target) -> None:
    _arrive(target, NUMBERS)


@holds_infinity
def test_floats_that_are_no_numbers_arrive_as_they_were(target: Target) -> None:
    _arrive(target, NO_NUMBERS)


def _arrive(target: Target, rows: list[tuple[str | None, ...]]) -> None:
    kinds = table("kinds", key=(), b="bigint", t="boolean", y="bytea", f="double precision", n="numeric")
    target.create(kinds)
    r = relation(kinds, Identity.FULL)
    applied, _ = written(target, kinds, group(*(insert(r, *row) for row in rows)))
    assert set(applied) == set(rows)
    moved, done = written(target, kinds, group(*(update(r, "77", *row[1:], old=row) for row in rows), to=300))
    assert ({row[1:] for row in moved}, done) == ({row[1:] for row in rows}, Written(updated=len(rows)))
    emptied, done = written(target, kinds, group(*(delete(r, "77", *row[1:]) for row in rows), to=400))
    assert (emptied, done) == ([], Written(deleted=len(rows)))
    with opened(target) as sink:
        sink.load(copy_of(kinds), Start(LSN(600)), [format_rows(rows)])
    assert set(target.rows(kinds)) == set(rows)


def test_booleans_and_bytes_are_keys(target: Target) -> None:
    keyed = table("keyed", key=("t", "y"), t="boolean", y="bytea", n="integer")
    target.create(keyed)
    r = relation(keyed)
    keys = [(t, f"\\x{i:02x}") for t in "tf" for i in range(20)]
    rows, done = written(
        target,
        keyed,
        group(*(insert(r, *k, "1") for k in keys)),
        group(*(update(r, *k, "2") for k in keys), to=300),
        group(*(delete(r, *k, None) for k in keys[1:]), to=400),
    )
    assert (rows, done) == ([("t", "\\x00", "2")], Written(deleted=39))


ODD = table(
    'Odd "table".x %s',
    schema='Odd "schema".y %',
    key=("select", 'quo"te'),
    **{
        "select": "integer",
        'quo"te': "text",
        "dot.ted": "text",
        "Mixed Case": "text",
        "100 %s": "text",
        "ünï?1": "text",
        "value": "text",
    },
)


@keeps_rows
def test_odd_names_are_quoted_everywhere(target: Target) -> None:
    target.create(ODD)
    r = relation(ODD)
    full = relation(ODD, Identity.FULL)
    rest = ("c", "d", "e", "f", "g")
    rows, done = written(
        target,
        ODD,
        group(*(insert(r, str(i), "k", *rest) for i in range(30))),
        group(*(update(r, str(i), "k", *reversed(rest)) for i in range(30)), to=300),
        group(update(r, "1", "m", *rest, old=("1", "k", *([UNCHANGED] * 5))), to=400),
        group(update(full, "1", "n", *rest, old=("1", "m", *rest)), to=500),
        group(*(delete(r, str(i), "k", *rest) for i in range(2, 30)), to=600),
    )
    assert rows == [("0", "k", *reversed(rest)), ("1", "n", *rest)]
    assert done == Written(deleted=28)
    with opened(target) as sink:
        assert sink.load(copy_of(ODD), Start(LSN(700)), [format_rows([("1", "k", *rest)])]) == 1
        with pytest.raises(ApplyError):
            write(sink, group(insert(r, "1", "k", *rest), to=800))
    assert target.rows(ODD) == [("1", "k", *rest)]

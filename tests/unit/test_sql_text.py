"""Which names an SQL expression may refer to, told without a server."""

from __future__ import annotations

import pytest

from streamer.sql_text import Name, names, takes_whole_row


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("a > 1", {"a"}),
        ("A.B = Ä", {"a", "b", "Ä"}),
        ("\"A b\" = 'c'", {"A b"}),
        ('"a""b" = 1', {'a"b'}),
        ("a = 'b''c' or d", {"a", "or", "d"}),
        (r"a = E'b\'c' or d", {"a", "or", "d"}),
        ("a = $$b'$$ or d", {"a", "or", "d"}),
        ("a = $x$ b $$ c $x$", {"a"}),
        ("a -- b\n/* c */ = d", {"a", "d"}),
        ("a1_$ = 1e5", {"a1_$"}),
        ("", set()),
    ],
)
def test_names_are_what_is_not_quoted_as_text(expression: str, expected: set[str]) -> None:
    assert {name.text for name in names(expression)} == expected


def test_a_name_knows_what_stands_next_to_it() -> None:
    assert list(names("t.a /* ! */ (x)")) == [
        Name("t", False, "", ".a"),
        Name("a", False, ".", "("),
        Name("x", False, "(", ")"),
    ]


@pytest.mark.parametrize(
    ("expression", "whole"),
    [
        ("t IS NULL", True),
        ("f(t)", True),
        ("f(t.*)", True),
        ("t.a > 1", False),
        ("a > 1", False),
        ("t(a)", False),
        ("a::t = 1", False),
        ("a > (SELECT 1 FROM t)", False),
        ("s.t.a = 1", False),
        ("a = 't'", False),
    ],
)
def test_the_whole_row_is_seen(expression: str, whole: bool) -> None:
    assert takes_whole_row(expression, "t", ["a"]) is whole


def test_a_column_may_be_called_like_its_table() -> None:
    assert not takes_whole_row("t > 1", "t", ["t"])
    assert takes_whole_row("f(t.*)", "t", ["t"])

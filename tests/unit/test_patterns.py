"""Globs over names of tables: which stand for one name only, and that a name's own pattern matches nothing else."""

from __future__ import annotations

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.patterns import literal, matching, prefix

NAMES = st.text(st.sampled_from("a.*?[]!-^\\") | st.characters(codec="utf-8"), max_size=12)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("public.t", "public.t"),
        ("public.a[*]b", "public.a*b"),
        ("public.what[?]", "public.what?"),
        ("public.a[[]1]", "public.a[1]"),
        ("public.a]", "public.a]"),
        ("public.*", None),
        ("public.a[*]*", None),
        ("public.[ab]", None),
        ("public.a[", None),
        ("public.[!*]", None),
    ],
)
def test_a_pattern_stands_for_one_name_if_every_wildcard_is_in_brackets(pattern: str, name: str | None) -> None:
    assert literal(pattern) == name


@given(NAMES, NAMES)
def test_the_pattern_of_a_name_matches_it_and_no_other(name: str, other: str) -> None:
    assert literal(matching(name)) == name
    assert fnmatch.fnmatchcase(name, matching(name))
    assert fnmatch.fnmatchcase(other, matching(name)) == (other == name)


@given(NAMES, NAMES)
def test_what_matches_begins_with_the_prefix(pattern: str, name: str) -> None:
    if fnmatch.fnmatchcase(name, pattern):
        assert name.startswith(prefix(pattern))

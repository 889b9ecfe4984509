"""What becomes of a value that a column cannot hold, by the policy; what is counted and what the log says."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from streamer.errors import ApplyError
from streamer.model import EdgeName, OnUnrepresentable, TableName
from streamer.sinks.unrepresentable import Replacements, Unrepresentable
from tests.configs import make_config

T = TableName("public", "t")
FAR = Unrepresentable("infinity", "is infinite", "9999-12-31")
NOWHERE = Unrepresentable("NaN", "is not a number")


def replacements(policy: OnUnrepresentable) -> Replacements:
    return Replacements(EdgeName("shop", "a", "m"), lambda table: policy)


def replaced(by: Replacements, problem: Unrepresentable, **more: Any) -> object:  # noqa: ANN401  # nullable, in_key
    return by.replace(T, "c", lambda: "`id` = '1'", problem, **{"nullable": True} | more)


def test_null_and_the_nearest_value_are_written_as_told() -> None:
    assert replaced(replacements("null"), FAR) is None
    assert replaced(replacements("clamp"), FAR) == "9999-12-31"


@pytest.mark.parametrize(
    ("policy", "problem", "more", "message"),
    [
        (
            "error",
            FAR,
            {},
            """table "public.t", column "c", row with `id` = '1': 'infinity' is infinite, which "m" cannot hold; """
            "give the column a type that holds it (see docs/types.md), correct the row on the source, "
            'or set on_unrepresentable = "null" or "clamp" for the table',
        ),
        ("null", FAR, {"nullable": False}, 'on_unrepresentable is "null", and the column is NOT NULL'),
        ("clamp", NOWHERE, {}, 'on_unrepresentable is "clamp", and nothing comes near it'),
        ("null", FAR, {"in_key": True}, "a key is never replaced"),
        ("clamp", FAR, {"in_key": True}, "a key is never replaced"),
    ],
)
def test_what_cannot_be_replaced_is_one_clear_error(
    policy: OnUnrepresentable, problem: Unrepresentable, more: dict[str, bool], message: str
) -> None:
    with pytest.raises(ApplyError) as refused:
        replaced(replacements(policy), problem, **more)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_without_a_policy_it_is_an_error() -> None:
    with pytest.raises(ApplyError):
        replaced(Replacements(EdgeName("shop", "a", "m")), FAR)


def test_what_was_undone_is_not_counted() -> None:
    some = replacements("null")
    replaced(some, FAR)
    mark = some.mark()
    replaced(some, FAR)
    some.back_to(mark)
    replaced(some, FAR)
    assert [some.take(), some.take()] == [2, 0]


def test_the_log_tells_of_a_column_once_in_a_while() -> None:
    some = replacements("clamp")
    with capture_logs() as lines:
        for _ in range(5):
            replaced(some, FAR)
        some.replace(T, "d", lambda: "`id` = '2'", Unrepresentable("x" * 1000, "is long", "x"), nullable=True)
    assert [(line["event"], line["table"], line["column"], line["key"], line["written"]) for line in lines] == [
        ("value_replaced", "public.t", "c", "`id` = '1'", "9999-12-31"),
        ("value_replaced", "public.t", "d", "`id` = '2'", "x"),
    ]
    assert len(lines[1]["value"]) < 100


def test_a_table_has_its_own_policy_or_that_of_the_sync() -> None:
    config = make_config(
        {"a": "postgresql://a", "b": "sqlite:///b"},
        on_unrepresentable="clamp",
        table={"t": {"on_unrepresentable": "null"}, "public.u": {}},
    )
    sync = config.syncs["shop"]
    assert [sync.unrepresentable_for(TableName("public", name)) for name in "tuv"] == ["null", "clamp", "clamp"]
    assert make_config({"a": "postgresql://a", "b": "sqlite:///b"}).syncs["shop"].unrepresentable_for(T) == "error"


def test_with_several_sources_a_policy_may_be_set_too() -> None:
    config = make_config(
        {"a": "postgresql://a", "b": "postgresql://b", "s": "sqlite:///s"},
        sources=["a", "b"],
        targets=["s"],
        table={"public.t": {"on_unrepresentable": "null"}},
    )
    assert config.syncs["shop"].unrepresentable_for(T) == "null"

"""Functions of the user's own: how they are found, and what counts as an answer."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import pytest

from streamer.errors import ConfigError
from streamer.sinks.conflict import Dispute, HandlerError
from streamer.sinks.handlers import load

MOMENT = datetime(2026, 1, 1, tzinfo=UTC)
ROW = {"id": "1", "name": "x"}
DISPUTE = Dispute("insert_exists", "public.t", ("1",), "insert", ROW, {**ROW, "name": "y"}, "a", MOMENT, "b", MOMENT)


@pytest.fixture
def module() -> Iterator[ModuleType]:
    """A module of the user's."""
    own = ModuleType("shop_rules")
    sys.modules["shop_rules"] = own
    yield own
    del sys.modules["shop_rules"]


def answered(module: ModuleType, function: Callable[[Dispute], object], timeout: float = 20) -> object:
    module.resolve = function  # type: ignore[attr-defined]
    return load("python:shop_rules:resolve", timeout)(DISPUTE)


@pytest.mark.parametrize("answer", ["incoming", "current", ROW, {"id": "1", "name": None}])
def test_an_answer_is_handed_on(module: ModuleType, answer: object) -> None:
    assert answered(module, lambda _: answer) == answer


def test_a_function_gets_both_rows(module: ModuleType) -> None:
    def both(dispute: Dispute) -> object:
        assert dispute.current is not None
        assert dispute.incoming is not None
        return {**dispute.current, "name": dispute.incoming["name"]}

    assert answered(module, both) == {"id": "1", "name": "y"}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "it answered None; an answer is"),
        ("both", "it answered 'both'; an answer is"),
        (["incoming"], r"it answered \['incoming'\]; an answer is"),
        ({"id": "1"}, 'it answered with a row that lacks the column "name"'),
        ({**ROW, "nmae": "x"}, "it answered with a column that public.t does not have: 'nmae'"),
        ({**ROW, "name": 5}, 'it answered with int in the column "name"; values are text'),
        ({"id": "1", 5: "x"}, "it answered with a column that public.t does not have: 5"),
        ("x" * 1000, "it answered 'x{59}…; an answer is"),
    ],
)
def test_nonsense_is_told(module: ModuleType, answer: object, message: str) -> None:
    with pytest.raises(HandlerError, match=message):
        answered(module, lambda dispute: answer)


def test_what_a_function_raises_is_told(module: ModuleType) -> None:
    def broken(dispute: Dispute) -> str:
        raise KeyError("price")

    with pytest.raises(HandlerError, match="it raised KeyError: 'price'"):
        answered(module, broken)


def test_a_function_has_a_limited_time(module: ModuleType) -> None:
    release = threading.Event()
    try:
        with pytest.raises(HandlerError, match=r"it did not answer within 0\.05 seconds"):
            answered(module, lambda dispute: release.wait() and "current", timeout=0.05)
    finally:
        release.set()


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("python:no_such_package.rules:f", 'there is no module "no_such_package"; install its package'),
        ("python:shop_rules:f", 'module "shop_rules" has no function "f"'),
        ("python:shop_rules:__name__", 'module "shop_rules" has str, not a function, "__name__"'),
    ],
)
def test_a_function_that_does_not_exist_is_an_error_of_the_config(module: ModuleType, policy: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(policy, 1)


def test_a_module_that_does_not_import_is_an_error_of_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop_broken.py").write_text("import no_such_thing\n")
    (tmp_path / "shop_failing.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match='"shop_broken" cannot be imported: ModuleNotFoundError: No module named'):
        load("python:shop_broken:f", 1)
    with pytest.raises(ConfigError, match='"shop_failing" cannot be imported: ZeroDivisionError: division by zero'):
        load("python:shop_failing:f", 1)

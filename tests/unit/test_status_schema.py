"""docs/status.schema.json says what /status answers: every key of the reports, with what the code says of it, and none else."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import fastjsonschema
import orjson
import pytest
from falcon.testing import TestClient

from streamer import post_data, report
from streamer.copy_report import CopyReport, CopyTotals
from streamer.http import application
from streamer.model import TableName
from streamer.report import (
    Counters,
    DeltaReport,
    EdgeReport,
    GuardLevel,
    Kicks,
    NodeReport,
    Problem,
    Result,
    Run,
    SlotReport,
    State,
    StreamReport,
)

SCHEMA: Final[dict[str, Any]] = json.loads((Path(__file__).parents[2] / "docs/status.schema.json").read_text(encoding="utf-8"))
NOW: Final = datetime(2026, 11, 21, 12, 30, tzinfo=UTC)
PROBLEM: Final = Problem("away", "start it", NOW)
EMPTY: Final = EdgeReport("shop", "a", "b", State.STARTING, "", 0, 0.0, 0.0, 0.0, 0, Counters(), None)
FULL: Final = EdgeReport(
    *("shop", "a", "b", State.COPYING, "0/10", 5, 0.5, 0.5, 0.1, 7, Counters(1, 2, 3, conflicts=Counter(x=1)), PROBLEM),
    copy=[CopyReport("public.t", 5, 10, done=False)],
    copy_totals=CopyTotals(0, 1, 5, 10, 1, 2, 50, 100, rate=1.5, remaining=3.5),
    obstacle="another edge copies",
    last_applied=NOW,
)
KICKS: Final = Kicks(2, 1, 1, 1, 0, Run(2, NOW, NOW, Result.DONE, 5), NOW, NOW)
SLOT: Final = SlotReport(
    *("a", "s", "shop", "pgoutput", True, 7, 10, 20, "reserved", "0/10", 5, NOW, True, False, "wal_removed", "shop", "a")
)
OLD_SLOT: Final = SlotReport("a", "s", "shop", "wal2json", False, None, None, None, None, None, None)


class Told:
    """Implements http.Control, with everything and with next to nothing."""

    started = NOW

    def report(self) -> list[StreamReport]:
        full = StreamReport("shop", "a", State.FAILED, "0/10", PROBLEM, [FULL, EMPTY], "manual", True, KICKS, held="x")
        return [full, StreamReport("shop", "b", State.STARTING, "", None, [])]

    def nodes(self) -> list[NodeReport]:
        return [
            NodeReport(
                "a", NOW, PROBLEM, 10, "pause", GuardLevel.HALF, [SLOT, OLD_SLOT], [DeltaReport("shop", "a", "t", 5, more=True)]
            ),
            NodeReport("b", None, None, None, "alert", GuardLevel.OK, []),
        ]

    def kick(self, sync: str) -> Mapping[str, int]:
        raise NotImplementedError

    def copy_again(self, sync: str, table: TableName) -> None:
        raise NotImplementedError

    def pause(self, sync: str) -> None:
        raise NotImplementedError

    def resume(self, sync: str) -> None:
        raise NotImplementedError

    def hear(self, sync: str, body: bytes) -> None:
        raise NotImplementedError


def test_what_is_answered_is_what_the_schema_says() -> None:
    answer = orjson.loads(TestClient(application(Told())).simulate_get("/status").content)
    fastjsonschema.compile(SCHEMA)(answer)
    assert set(answer) == set(SCHEMA["properties"]) == set(SCHEMA["required"])


@pytest.mark.parametrize("name", SCHEMA["definitions"])
def test_every_key_is_in_the_schema_with_its_meaning(name: str) -> None:
    told, code = SCHEMA["definitions"][name], getattr(report, name, None) or getattr(post_data, name)
    keys = [field.name for field in fields(code)]
    assert list(told["properties"]) == told["required"] == keys
    assert told["description"] == " ".join((code.__doc__ or "").split())

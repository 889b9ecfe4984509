"""docs/logs.md lists every event that the code logs, with its level and fields, and none else; a record is one line of JSON."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path
from typing import Final

import streamer

PACKAGE: Final = Path(streamer.__file__).parent
PAGE: Final = PACKAGE.parent / "docs/logs.md"
LEVELS: Final = {"info": "info", "warning": "warning", "error": "error", "exception": "error"}
PARTS: Final = ("stream", "edge")
"""What `logs.failure` puts before its events."""


def logged() -> dict[str, tuple[set[str], set[str]]]:
    """The levels and the fields of every event, from calls like `self._log.info("event", field=…)`."""
    levels: dict[str, set[str]] = defaultdict(set)
    fields: dict[str, set[str]] = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS):
                continue
            if not re.fullmatch(r"(.*\.)?(_?log|get_logger\(\))", ast.unparse(node.func.value)):
                continue
            for event in events(node.args[0]):
                levels[event].add(LEVELS[node.func.attr])
                fields[event] |= {keyword.arg for keyword in node.keywords if keyword.arg}
    return {event: (level, fields[event]) for event, level in levels.items()}


def events(argument: ast.expr) -> list[str]:
    """What a call may say; f"{part}_failed" is one event for each part."""
    if isinstance(argument, ast.IfExp):
        return [*events(argument.body), *events(argument.orelse)]
    if isinstance(argument, ast.JoinedStr):
        (_, end) = argument.values
        assert isinstance(end, ast.Constant)
        return [f"{part}{end.value!s}" for part in PARTS]
    assert isinstance(argument, ast.Constant), f"line {argument.lineno}: an event is one word, known beforehand"
    return [str(argument.value)]


def described() -> dict[str, tuple[set[str], set[str]]]:
    rows = re.findall(r"^\| `(\w+)` \| (\w+(?:, \w+)*) \| (.*?) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {event: (set(level.split(", ")), set(re.findall(r"`(\w+)`", fields))) for event, level, fields in rows}


def test_every_event_is_described_and_none_else() -> None:
    assert described() == logged()


def test_an_event_is_one_word() -> None:
    assert [event for event in logged() if not re.fullmatch(r"[a-z]+(_[a-z]+)*", event)] == []

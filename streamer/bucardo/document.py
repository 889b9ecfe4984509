"""streamer.toml, written with comments."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from streamer.bucardo.control import Database
from streamer.bucardo.nodes import NodeDraft
from streamer.bucardo.syncs import SyncDraft

_WIDTH = 120


def written(version: str, nodes: Sequence[NodeDraft], syncs: Sequence[SyncDraft]) -> str:
    """Return the whole file."""
    lines = [
        f"# Made by streamer import-bucardo, of what Bucardo {version} kept in its control database.",
        "# What was left out stands here as a comment; the report of the import tells the rest. How to go on: docs/from-bucardo.md",
    ]
    for node in nodes:
        lines += ["", *_node(node)]
    for sync in syncs:
        lines += ["", *_sync(sync)]
    return "\n".join(lines) + "\n"


def _node(draft: NodeDraft) -> Iterator[str]:
    yield from _comment(f"db {draft.database.name}: {_manner(draft.database)}")
    if draft.left_out:
        yield from _comment(f"LEFT OUT: {draft.left_out}")
    lines = [f"[nodes.{draft.name}]", f"url = {_value(draft.url)}"] if draft.url else []
    yield from _commented(lines, draft.left_out)


def _manner(database: Database) -> str:
    status = "" if database.status == "active" else database.status
    return ", ".join(filter(None, (database.kind, "makedelta" if database.makedelta else "", status)))


def _sync(draft: SyncDraft) -> Iterator[str]:
    sync = draft.sync
    roles = ", ".join(f"{name}:{role}" for name, role in sync.roles.items())
    yield from _comment(f"sync {sync.name}: {roles}; conflict_strategy {sync.conflict_strategy}")
    if draft.left_out:
        yield from _comment(f"LEFT OUT: {draft.left_out}")
    yield from _commented(_tables(f"syncs.{draft.name}", draft.keys, draft.remarks), draft.left_out)


def _comment(text: str) -> Iterator[str]:
    """Lines; what TOML refuses even in a comment is a question mark."""
    for line in textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False):
        yield "# " + re.sub(r"[\x00-\x1f\x7f]", "?", line)


def _commented(lines: Iterator[str] | Sequence[str], left_out: str) -> Iterator[str]:
    for line in (part for some in lines for part in some.split("\n")):
        yield f"# {line}" if left_out and line else line


def _tables(name: str, keys: Mapping[str, Any], remarks: Mapping[str, str]) -> Iterator[str]:
    """A table of TOML and those below it."""
    plain = {key: value for key, value in keys.items() if not isinstance(value, dict) or key == "rename_columns"}
    if plain:
        yield f"[{name}]"
    for key, value in plain.items():
        if key in remarks:
            yield from _comment(remarks[key])
        yield f"{key} = {_value(value)}"
    for key, value in keys.items():
        if key not in plain:
            lines = list(_tables(f"{name}.{_key(key)}", value, {}))
            yield from ["", *lines] if lines[0] else lines


def _key(key: str) -> str:
    return key if key.isascii() and key.replace("_", "").isalnum() else _value(key)


def _value(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_value(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list):
        line = f"[{', '.join(map(_value, value))}]"
        return line if len(line) <= _WIDTH else "".join(["[\n", *(f"    {_value(one)},\n" for one in value), "]"])
    return json.dumps(value, ensure_ascii=False).replace("\x7f", r"\u007f")

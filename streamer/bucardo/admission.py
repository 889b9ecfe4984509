"""Which of the syncs streamer itself takes: each is tried together with those before it.

The loader of the config is asked, and the proof that nothing loops. The trap: of two syncs that cannot be together the later one is
left out, whichever matters more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from streamer import config_problems, topology
from streamer.bucardo.nodes import NodeDraft
from streamer.bucardo.notes import Notes
from streamer.bucardo.syncs import SyncDraft
from streamer.config import Config
from streamer.errors import ConfigError


def admit(nodes: Sequence[NodeDraft], syncs: Sequence[SyncDraft], notes: Notes) -> None:
    """Leave out what is refused, and note why."""
    taken: dict[str, Any] = {}
    usable: dict[str, Any] = {}
    for node in nodes:
        if not node.left_out:
            usable[node.name] = {"url": node.url}
    for draft in syncs:
        if draft.left_out:
            continue
        draft.left_out = _refusal({"nodes": usable, "syncs": {**taken, draft.name: draft.keys}})
        if draft.left_out:
            notes.add("left out", f'sync "{draft.sync.name}"', f"streamer refuses it: {draft.left_out}")
        else:
            taken[draft.name] = draft.keys


def _refusal(document: Mapping[str, Any]) -> str:
    """Why it is no config; empty if it is one. What stands for a password is no matter here."""
    try:
        topology.check(Config.model_validate(document))
    except ValidationError as error:
        return config_problems.first_problem(error, lambda _: ())
    except ConfigError as error:
        return str(error)
    return ""

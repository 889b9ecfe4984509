"""conflict_strategy and conflict handlers as `conflict`.

What Bucardo 5.6 does with a strategy is told by its code, not by its manual: bucardo_source, bucardo_target, bucardo_skip and
bucardo_random are taken for the name of a database, which does not exist, and the sync stops at its first conflict.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from streamer.bucardo.control import Code, Control, Sync
from streamer.bucardo.notes import Kind, Notes
from streamer.bucardo.shapes import MODULE, UNTIL, python_name

Policy: TypeAlias = str | list[str]

_LATEST: Final = (
    'here "latest" compares each row by the commit time of its last write, and the later one wins; Bucardo takes for {scope} the '
    "database that wrote last to any of its rows, and that database wins every conflict of the run"
)
_KNOWN: Final[Mapping[str, tuple[Kind, str, str]]] = {
    "bucardo_latest": ("different", "latest", _LATEST.format(scope="each table")),
    "bucardo_latest_all_tables": ("different", "latest", _LATEST.format(scope="all tables of the sync")),
    "bucardo_abort": ("same", "error", 'is "error": the stream stops at a conflict, until the rows have been made equal by hand'),
    "bucardo_custom": ("different", "error", 'is "error": without code for its conflicts Bucardo stops as well'),
}
_UNKNOWN_HERE: Final = (
    'is "error": Bucardo 5.6 knows no such strategy, whatever its manual says, and pauses the sync at its first conflict. Write '
    'what you want instead: "latest", or a list of the sources, the strongest first'
)
_ORDER: Final = "a list of the sources, the strongest first; it is exact for two sources, and may leave three or more unequal"


@dataclass(frozen=True, slots=True)
class Policies:
    """Who wins: in the sync, and in single tables."""

    sync: Policy | None = None
    tables: Mapping[str, str] | None = None


def policies(control: Control, sync: Sync, nodes: Mapping[str, str], notes: Notes) -> Policies:
    """Return what holds for the conflicts of a sync; `nodes` are its sources' names here, by Bucardo's. Two or more of them."""
    thing = f'sync "{sync.name}", conflict_strategy {sync.conflict_strategy}'
    codes = [code for code in control.codes if code.active and code.hook == "conflict" and code.concerns(sync)]
    everywhere = [code for code in codes if code.sync == sync.name]
    tables = {str(control.relations[code.relation]): _function(code, notes) for code in codes if code.relation is not None}
    for later in everywhere[1:]:
        text = f'is asked where "{everywhere[0].name}" leaves a conflict alone: put both into one function'
        notes.add("by hand", f'customcode "{later.name}" ({later.hook})', text)
    if everywhere:
        return Policies(_function(everywhere[0], notes), tables)
    return Policies(_policy(sync.conflict_strategy, nodes, thing, notes), tables)


def _policy(strategy: str, nodes: Mapping[str, str], thing: str, notes: Notes) -> Policy:
    if strategy in _KNOWN:
        kind, policy, text = _KNOWN[strategy]
        notes.add(kind, thing, text)
        return policy
    if strategy.startswith("bucardo_"):
        notes.add("by hand", thing, _UNKNOWN_HERE)
        return "error"
    return _listed(re.split(r"[,\s]+", strategy.strip()), nodes, thing, notes)


def _listed(databases: Sequence[str], nodes: Mapping[str, str], thing: str, notes: Notes) -> Policy:
    known = [nodes[name] for name in dict.fromkeys(databases) if name in nodes]
    missing = [node for node in nodes.values() if node not in known]
    notes.add("same", thing, f"is {_ORDER}")
    if missing:
        notes.add(
            "different", thing, f"does not name {', '.join(missing)}: added at its end, because a list here names every source"
        )
    return known + missing


def _function(code: Code, notes: Notes) -> str:
    function = f"python:{MODULE}:{python_name(code.name)}"
    notes.add(
        "by hand",
        f'customcode "{code.name}" ({code.hook})',
        f'the file has conflict = "{function}", which you write: it gets both rows and says which stays, or a third one '
        f"(docs/multi-master.md#policies). {UNTIL}",
    )
    return function

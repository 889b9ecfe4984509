"""Syncs of Bucardo's as syncs here.

One becomes two or more where its databases are not alike: with several sources a target that has tables in another shape gets a
second sync from one of them, and databases of the role fullcopy have a sync of their own.

The trap: onetimecopy says what Bucardo does the next time that it runs, and is 0 once the rows have been copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from streamer import periods
from streamer.bucardo import conflicts, shapes
from streamer.bucardo.control import Control, Sync
from streamer.bucardo.names import Names
from streamer.bucardo.nodes import NodeDraft
from streamer.bucardo.notes import Notes, listed
from streamer.patterns import matching

_COPY: Final = {0: "never", 1: "always", 2: "if-empty"}
_RUN_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


@dataclass(slots=True)
class SyncDraft:
    """A sync as it will stand in the file."""

    name: str
    sync: Sync
    #: what stands below `[syncs.NAME]`, by the keys of the config
    keys: dict[str, Any]
    #: what is said of single keys
    remarks: dict[str, str] = field(default_factory=dict)
    #: why it is written as a comment; empty if it is a sync
    left_out: str = ""


def drafts(control: Control, nodes: Mapping[str, NodeDraft], notes: Notes) -> list[SyncDraft]:
    """Return the syncs in the order of their names; those that cannot be are left out already."""
    names = Names()
    found = []
    for sync in control.syncs:
        found += [_draft(part, control, nodes, names, notes) for part in _parts(sync, control, nodes, notes)]
    return found


@dataclass(frozen=True, slots=True)
class _Part:
    """What becomes one sync."""

    sync: Sync
    name: str
    sources: Sequence[str]
    targets: Sequence[str]
    #: by target and table
    shapes: Mapping[str, Mapping[str, shapes.Settings]]
    fullcopy: bool = False
    #: whether it is the lesser part of a sync
    beside: bool = False


def _parts(sync: Sync, control: Control, nodes: Mapping[str, NodeDraft], notes: Notes) -> Iterator[_Part]:
    thing = f'sync "{sync.name}"'
    sources, targets, whole = sync.of_role("source"), sync.of_role("target"), sync.of_role("fullcopy")
    if lost := [name for name in (*targets, *whole) if nodes[name].left_out]:
        notes.add("left out", thing, f"its targets {listed(lost)}, which are left out as databases")
    targets, whole = ([name for name in names if name not in lost] for names in (targets, whole))
    own = shapes.by_table(control, sync, [*targets, *whole], notes)
    apart = [name for name in targets if name in own] if len(sources) > 1 else []
    together = [name for name in targets if name not in apart]
    if together or len(sources) > 1 or not (apart or whole):
        yield _Part(sync, sync.name, sources, together, {name: own[name] for name in together if name in own})
    for name in apart:
        notes.add(
            "different",
            thing,
            f'its target "{name}" has tables of another name or other columns, so it has a sync of its own, from "{sources[0]}", '
            "which hands on what the others wrote",
        )
        yield _Part(sync, f"{sync.name}_{name}", sources[:1], [name], {name: own[name]})
    if whole and (targets or len(sources) > 1):
        notes.add(
            "different",
            thing,
            f"{listed(whole)}, of the role fullcopy, has a sync of its own, which copies when it is kicked. Bucardo 5.6 copies "
            "nothing there where the sync has targets or several sources besides",
        )
    if whole:
        alone = not targets and len(sources) == 1
        yield _Part(sync, sync.name if alone else f"{sync.name}_fullcopy", sources[:1], whole, own, fullcopy=True, beside=not alone)


def _draft(part: _Part, control: Control, nodes: Mapping[str, NodeDraft], names: Names, notes: Notes) -> SyncDraft:
    sync, thing = part.sync, f'sync "{part.sync.name}"'
    name = names.take(part.name)
    if name != part.name:
        notes.add("different", thing, f'is sync "{name}": names here are lower-case letters, digits and _, at most 25')
    draft = SyncDraft(name, sync, {"sources": [nodes[one].name for one in part.sources]})
    draft.keys["targets"] = [nodes[one].name for one in part.targets]
    sequences = sync.sequences if any(control.databases[one].kind == "postgres" for one in part.targets) else ()
    draft.keys["tables"] = [matching(str(one)) for one in (*sync.tables, *sequences)]
    _set_copy(draft, part, notes)
    _set_run(draft, part, notes)
    if sequences:
        draft.keys["sequences"] = True
    tables: dict[str, dict[str, object]] = {str(one): {"fullcopy": True} for one in sync.tables} if part.fullcopy else {}
    if len(part.sources) > 1:
        found = conflicts.policies(control, sync, {one: nodes[one].name for one in part.sources}, notes)
        draft.keys["conflict"] = found.sync
        tables |= {table: {"conflict": policy} for table, policy in (found.tables or {}).items()}
    _set_shapes(draft, part, nodes, tables)
    draft.left_out = _reason(part, nodes)
    if draft.left_out:
        notes.add("left out", thing, draft.left_out)
    return draft


def _reason(part: _Part, nodes: Mapping[str, NodeDraft]) -> str:
    """Why the sync cannot run here, or does not run there; empty if it can."""
    if part.sync.status == "inactive":
        return "is inactive"
    if lost := [name for name in part.sources if nodes[name].left_out]:
        return f'its source "{lost[0]}" is left out'
    if not part.sync.tables:
        return "has no tables, and sequences come along with tables only" if part.sync.sequences else "has no tables"
    if len(part.sources) + len(part.targets) < 2:
        return "has no target left"
    return ""


def _set_copy(draft: SyncDraft, part: _Part, notes: Notes) -> None:
    thing, kind = f'sync "{part.sync.name}", onetimecopy {part.sync.onetimecopy}', part.sync.onetimecopy
    if part.fullcopy:
        return
    copy = _COPY.get(kind, "never")
    if copy == "always" and len(part.sources) > 1:
        copy = "if-empty"
        notes.add("different", thing, 'is copy = "if-empty": with several sources a copy would take away the rows of the others')
    elif copy == "never":
        notes.add("same", thing, 'is copy = "never": what the targets hold when setup is run is taken to be what the source holds')
    else:
        notes.add("same", thing, f'is copy = "{copy}", once; Bucardo sets it back to 0 afterwards, streamer remembers it by itself')
    draft.keys["copy"] = copy
    draft.remarks["copy"] = f"onetimecopy = {kind}"


def _set_run(draft: SyncDraft, part: _Part, notes: Notes) -> None:
    sync, thing = part.sync, f'sync "{part.sync.name}"'
    if sync.autokick and not part.fullcopy:
        draft.keys["run"] = "continuous"
        draft.remarks["run"] = "autokick"
        if sync.checktime:
            notes.add("same", f"{thing}, checktime", "is not needed: the stream is read all the time, and does not wait for a kick")
    elif sync.checktime and not part.beside:
        draft.keys["run"] = f"every {_period(sync.checktime)}"
        draft.remarks["run"] = "checktime, and no autokick"
        notes.add("same", f"{thing}, checktime", f'is run = "{draft.keys["run"]}"; it also runs when streamer run starts')
    else:
        draft.keys["run"] = "manual"
        draft.remarks["run"] = "a full copy is never kicked by itself" if part.fullcopy else "no autokick"
        notes.add("same", f"{thing}, autokick", 'is run = "manual": streamer kick begins a run')


def _period(seconds: float) -> str:
    whole = min(max(round(seconds), 1), periods.LONGEST)
    size, unit = next((size, unit) for size, unit in _RUN_UNITS if whole % size == 0)
    return f"{whole // size}{unit}"


def _set_shapes(draft: SyncDraft, part: _Part, nodes: Mapping[str, NodeDraft], tables: Mapping[str, Mapping[str, object]]) -> None:
    """What all targets have alike stands with the table, the rest with the target."""
    whole = {table: dict(keys) for table, keys in tables.items()}
    single: dict[str, dict[str, Any]] = {}
    for table in map(str, part.sync.tables):
        by_target = {target: part.shapes.get(target, {}).get(table, {}) for target in part.targets}
        common, *others = by_target.values() or [{}]
        if common and all(other == common for other in others):
            whole[table] = whole.get(table, {}) | dict(common)
        else:
            for target, keys in by_target.items():
                if keys:
                    single.setdefault(nodes[target].name, {"table": {}})["table"][matching(table)] = dict(keys)
    if whole:
        draft.keys["table"] = {matching(table): keys for table, keys in whole.items()}
    if single:
        draft.keys["target"] = single

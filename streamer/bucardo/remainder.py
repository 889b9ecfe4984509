"""What the report has to say of things that the file does not show: relations, code, forwarding, settings."""

from __future__ import annotations

from collections import defaultdict
from itertools import permutations
from typing import Final

from streamer.bucardo.control import Code, Control, Relation, Sync
from streamer.bucardo.notes import Notes, listed

_HOOKS: Final = {
    "exception": "on_error: a row that a target refuses stops the edge, or is held in quarantine (docs/quarantine.md)",
    "before_sync": 'with run = "manual" a script that does it, then streamer kick; else there are no runs',
    "after_sync": 'with run = "manual" a script that does it after streamer kick --wait; else there are no runs',
    "after_txn": "a jsonl node, whose lines a program follows (docs/events.md), or a trigger on the target that is ENABLE ALWAYS",
    "after_table_sync": "a trigger on the target's table that is ENABLE ALWAYS",
}
_OTHER_HOOKS: Final = (
    "no code of yours runs inside of a transaction on the target: what it does to rows is a transform (docs/shaping.md), "
    "anything else a trigger there that is ENABLE ALWAYS"
)
_SETTINGS: Final = {
    "strict_checking": "streamer check compares the columns: a target may have more of them, and may not lack one",
    "overdue": "an alert on the age of what has not arrived (docs/metrics.md)",
    "expired": "an alert on the age of what has not arrived (docs/metrics.md)",
    "track_rates": "rates are metrics (docs/metrics.md)",
}


def add_notes(control: Control, notes: Notes) -> None:
    """Note all of it."""
    for sync in control.syncs:
        _note_relations(sync, control, notes)
    _note_forwarding(control, notes)
    for code in control.codes:
        _note_code(code, control, notes)
    _note_triggers(control, notes)
    _note_unused(control, notes)
    _note_settings(control, notes)


def _note_relations(sync: Sync, control: Control, notes: Notes) -> None:
    thing = f'sync "{sync.name}"'
    if sync.status == "stalled":
        notes.add("different", thing, "is stalled there, and runs here")
    _note_sequences(sync, control, notes)
    for table in sync.tables:
        if not table.key:
            notes.add(
                "by hand",
                f'table "{table}"',
                "has no key: streamer check tells what that means, docs/tables-without-keys.md the ways out",
            )
        if table.autokick is not None and table.autokick != sync.autokick:
            notes.add("different", f'table "{table}"', f'its own autokick is lost: all tables of sync "{sync.name}" run alike')
        if table.conflict_strategy:
            notes.add("no meaning", f'table "{table}"', "its own conflict_strategy: Bucardo 5.6 takes that of the sync")
    for ghost in (one for one in sync.relations if one.ghost):
        notes.add("left out", _called(ghost), f'of sync "{sync.name}": it is a ghost, which Bucardo does not replicate')


def _note_sequences(sync: Sync, control: Control, notes: Notes) -> None:
    if not sync.sequences:
        return
    thing = f'sync "{sync.name}", {listed(sync.sequences)}'
    targets = [name for name, role in sync.roles.items() if role != "source"]
    if any(control.databases[name].kind == "postgres" for name in targets):
        text = "sequences = true keeps those of PostgreSQL targets at or ahead of the source's, those of the tables' columns too"
        notes.add("different", thing, f"{text} (docs/sequences.md)")
    elif targets:
        notes.add("no meaning", thing, "its targets have no sequences")
    if sync.multi_master:
        notes.add(
            "different",
            thing,
            "the sources draw for themselves, by increments that streamer check tells; Bucardo sets all to the highest",
        )


def _note_forwarding(control: Control, notes: Notes) -> None:
    """Tables that come to a database by one sync and leave it by another."""
    for one, other in permutations([sync for sync in control.syncs if sync.status != "inactive"], 2):
        common = [table for table in one.tables if str(table) in set(map(str, other.tables))]
        for name in (n for n, role in other.roles.items() if role == "source" and n in one.roles):
            if not common or (one.roles[name] == "source" and not one.multi_master):
                continue
            made = control.databases[name].makedelta or all(name in t.makedelta or t.makedelta == "on" for t in common)
            text = f'what sync "{one.name}" brings there goes on by sync "{other.name}"'
            if made:
                notes.add("same", f'db "{name}", makedelta', f"{text}, as here always")
            else:
                notes.add("different", f'db "{name}", makedelta', f"{text}; with Bucardo it does not, without makedelta")


def _note_triggers(control: Control, notes: Notes) -> None:
    for relation in control.own_triggers:
        notes.add(
            "by hand",
            f'table "{control.relations[relation]}"',
            "has a trigger of yours in the place of Bucardo's: streamer captures every change; which rows travel is said by where "
            "(docs/shaping.md)",
        )


def _note_unused(control: Control, notes: Notes) -> None:
    used = {relation.id for sync in control.syncs for relation in sync.relations}
    for number, relation in sorted(control.relations.items()):
        if number not in used:
            notes.add("left out", _called(relation), "is in no sync")


def _note_settings(control: Control, notes: Notes) -> None:
    having: defaultdict[str, list[str]] = defaultdict(list)
    named = [(sync.name, sync.settings) for sync in control.syncs] + [
        (str(one), one.settings) for one in control.relations.values()
    ]
    for thing, names in named:
        for name in names:
            having[name].append(thing)
    for name, things in having.items():
        notes.add("no meaning", f"{name} of {listed(things)}", _SETTINGS.get(name, "a matter of how Bucardo works"))
    if control.changed:
        notes.add("no meaning", "bucardo_config", f"{', '.join(control.changed)}: how Bucardo works, logs and sends mail")


def _called(relation: Relation) -> str:
    return f'{"sequence" if relation.is_sequence else "table"} "{relation}"'


def _note_code(code: Code, control: Control, notes: Notes) -> None:
    thing = f'customcode "{code.name}" ({code.hook})'
    if code.sync is None and code.relation is None:
        notes.add("left out", thing, "belongs to no sync and no table, so Bucardo does not run it")
        return
    where = f'sync "{code.sync}"' if code.relation is None else f'table "{control.relations[code.relation]}"'
    if not code.active:
        notes.add("left out", thing, f"of {where}: is not active")
    elif code.hook == "conflict":
        if not any(code.concerns(sync) and sync.multi_master for sync in control.syncs):
            notes.add("no meaning", thing, f"of {where}: with one source there are no conflicts")
    else:
        notes.add("by hand", thing, f"of {where}: {_HOOKS.get(code.hook, _OTHER_HOOKS)}")

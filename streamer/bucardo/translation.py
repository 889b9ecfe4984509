"""Bucardo's control database in, streamer.toml and the report out: the parts in their order."""

from __future__ import annotations

from dataclasses import dataclass

from streamer.bucardo import admission, document, nodes, remainder, syncs
from streamer.bucardo.control import Control
from streamer.bucardo.notes import Notes


@dataclass(frozen=True, slots=True)
class Translation:
    """What an import gives."""

    config: str
    notes: Notes
    #: how many syncs the file has, without those that are comments
    syncs: int


def translate(control: Control) -> Translation:
    """Return what becomes of a control database."""
    notes = Notes()
    by_name = nodes.drafts(control, notes)
    drafts = syncs.drafts(control, by_name, notes)
    admission.admit(list(by_name.values()), drafts, notes)
    for draft in drafts:
        if not draft.left_out:
            notes.add("same", f'sync "{draft.sync.name}"', f'is sync "{draft.name}"')
    remainder.add_notes(control, notes)
    config = document.written(control.version, list(by_name.values()), drafts)
    return Translation(config, notes, sum(not draft.left_out for draft in drafts))

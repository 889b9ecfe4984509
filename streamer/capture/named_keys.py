"""Changes of tables whose key the config names: their relations say so, and are otherwise what the decoder made.

Such a table has the replica identity FULL; its relation keeps that, and its old rows, but only the key's columns count as identity.
A key with a generated column is none, because the value of that does not travel: there are only inserts of such a table, and no row
is taken for another that has the same rest of the key. The trap: a relation is compared by identity, so each that comes must always
become the same one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from streamer.capture.assemble import Message
from streamer.errors import SchemaError
from streamer.model import Change, Identity, Kind, Relation, TableName


class Decoder(Protocol):
    """Turns one payload of an output plugin into one message. Raises DecodeError."""

    def decode(self, payload: bytes) -> Message: ...

    def is_row(self, payload: bytes) -> bool:
        """Whether the payload is a change that may be passed over without being decoded."""


class NamedKeys:
    """Implements Decoder over another one; `keys` are the columns that the config names, by table, none where nothing is a key."""

    def __init__(self, decoder: Decoder, keys: Mapping[TableName, Sequence[str]]) -> None:
        self._decoder = decoder
        self._keys = keys
        self._relations: dict[Relation, Relation] = {}
        self.is_row = decoder.is_row

    def decode(self, payload: bytes) -> Message:
        """Return what the payload means. Raises SchemaError if the table has lost a column of its key."""
        message = self._decoder.decode(payload)
        if isinstance(message, tuple):
            change = self._keyed(message)
            return None if _is_lost(change) else change
        return [c for c in map(self._keyed, message) if not _is_lost(c)] if isinstance(message, list) else message

    def _keyed(self, change: Change) -> Change:
        kind, relation, old, new = change
        if relation not in self._relations:
            self._relations[relation] = self._named(relation)
        return (kind, self._relations[relation], old, new)

    def _named(self, relation: Relation) -> Relation:
        key = self._keys.get(relation.table)
        if key is None or (relation.identity is Identity.FULL) != bool(key):
            return relation
        if not key:
            columns = tuple(replace(c, identity=False) for c in relation.columns)
            return Relation(relation.table, columns, Identity.NOTHING)
        if lost := [name for name in key if name not in relation.names]:
            raise SchemaError(
                f'table {relation} has no column "{lost[0]}", but the config names it as its key', "correct key in the config"
            )
        return Relation(relation.table, tuple(replace(c, identity=c.name in key) for c in relation.columns), relation.identity)


def _is_lost(change: Change) -> bool:
    """Whether no target could find the row; pgoutput does not send such a change, wal2json does."""
    kind, relation, _, _ = change
    return relation.identity is Identity.NOTHING and kind in (Kind.UPDATE, Kind.DELETE)

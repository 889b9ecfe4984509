"""The report of an import: what became of each thing in Bucardo's control database, for people or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Final, Literal, TypeAlias

Kind: TypeAlias = Literal["same", "different", "by hand", "left out", "no meaning"]

HEADINGS: Final[dict[Kind, str]] = {
    "by hand": "To be done by hand",
    "left out": "Left out; databases and syncs are in the file as comments",
    "different": "Means something else here",
    "same": "Means the same here",
    "no meaning": "Has no meaning here",
}
"""The parts of the report, in their order: first what a person has to look at."""


@dataclass(frozen=True, slots=True)
class Note:
    """What became of one thing; `object` is called as Bucardo calls it."""

    kind: Kind
    object: str
    text: str


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of the environment that the config wants, for the password of a database of Bucardo's."""

    name: str
    database: str
    #: whether its value holds characters that a url takes only as %XX
    encoded: bool


@dataclass(slots=True)
class Notes:
    """The report, as it grows."""

    notes: list[Note] = field(default_factory=list)
    variables: list[Variable] = field(default_factory=list)

    def add(self, kind: Kind, thing: str, text: str) -> None:
        """Note something, once."""
        note = Note(kind, thing, text)
        if note not in self.notes:
            self.notes.append(note)

    def as_text(self) -> str:
        """Return it for people."""
        parts = [_part("Variables to set", [_told(variable) for variable in self.variables])]
        for kind, heading in HEADINGS.items():
            parts.append(_part(heading, [f"{note.object}: {note.text}" for note in self.notes if note.kind == kind]))
        return "\n".join(part for part in parts if part)

    def as_json(self) -> str:
        """Return it for programs."""
        told = {"variables": list(map(asdict, self.variables)), "notes": list(map(asdict, self.notes))}
        return json.dumps(told, ensure_ascii=False, indent=2) + "\n"


def _part(heading: str, lines: Sequence[str]) -> str:
    return "".join([f"{heading}:\n", *(f"  {line}\n" for line in lines)]) if lines else ""


def _told(variable: Variable) -> str:
    query = f"SELECT dbpass, dbdsn, dbconn FROM bucardo.db WHERE name = '{variable.database}'"
    where = f'{variable.name}: the password of db "{variable.database}", which this tells: {query}'
    encoded = "; it holds characters that a url takes only encoded: % is %25, @ is %40, / is %2F, a space is %20"
    return where + (encoded if variable.encoded else "")


def listed(names: Iterable[object]) -> str:
    """Return names as a sentence has them."""
    return ", ".join(f'"{name}"' for name in names)

"""The SQL files of sql/: every statement that is installed in somebody's database.

In a wheel they lie inside the package as streamer/sql; a checkout, also one installed as editable, has them at the top
level. A file may be a template, with places between at signs, and may have parts, each under a heading that names it. The trap: an
editable install has no streamer/sql, so both places are looked at, the package's own first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_PACKAGE: Final = Path(__file__).parent
_ROOTS: Final = (_PACKAGE / "sql", _PACKAGE.parent / "sql")
_PLACE: Final = re.compile("@([a-z_]+)@")
_KINDS: Final = "schema|sequence|table|function|triggers?|fragment"
_HEADING: Final = re.compile(rf"^-- ((?:{_KINDS}) \w+(?: on \w+)?):.*\n(?:--.*\n)*", re.MULTILINE)


def load(name: str) -> str:
    """Return the text of an SQL file, for example `load("sqlite/install.sql")`. Raises FileNotFoundError."""
    root = next((r for r in _ROOTS if r.is_dir()), _ROOTS[0])
    return (root / name).read_text(encoding="utf-8")


def parts(name: str) -> dict[str, str]:
    """Return the parts of an SQL file by their headings, in their order: `-- table delta: what it is.` heads "table delta"."""
    _, *found = _HEADING.split(load(name))
    return {heading: text.strip() for heading, text in zip(found[::2], found[1::2], strict=True)}


def fill(template: str, values: Mapping[str, str]) -> str:
    """Return the template with its places filled in, `@table@` by `values["table"]`; what has no value stays."""
    return _PLACE.sub(lambda match: values.get(match[1], match[0]), template)

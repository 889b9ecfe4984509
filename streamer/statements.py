"""The SQL files of sql/: every statement that is installed in somebody's database.

In a wheel they lie inside the package as streamer/sql; a checkout, also one installed as editable, has them at the top
level. The trap: an editable install has no streamer/sql, so both places are looked at, the package's own first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

_PACKAGE: Final = Path(__file__).parent
_ROOTS: Final = (_PACKAGE / "sql", _PACKAGE.parent / "sql")


def load(name: str) -> str:
    """Return the text of an SQL file, for example `load("sqlite/install.sql")`. Raises FileNotFoundError."""
    root = next((r for r in _ROOTS if r.is_dir()), _ROOTS[0])
    return (root / name).read_text(encoding="utf-8")

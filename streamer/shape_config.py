"""What streamer.toml says about the shape that a table has on a target: its name, its columns, its rows.

`[syncs.NAME.table."TABLE"]` holds for all targets, `[syncs.NAME.target.NODE.table."TABLE"]` for one, and wins key by key. What can
be told from the file alone is checked here; whether the columns exist, and what PostgreSQL says of a condition, is not.

The trap: a condition whose answer changes by itself (`now()`) would leave rows on the target that no change ever takes away.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from streamer.model import TableName
from streamer.patterns import literal
from streamer.sql_text import Name, names

SEVERAL_SOURCES: Final = (
    "is for syncs with one source: with several, rows must be the same everywhere, so that conflicts are seen; "
    "hand the rows on by a second sync, from one of the sources"
)

_FUNCTION: Final = re.compile(r"python:[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_RESTLESS_WORDS: Final = (
    "current_date",
    "current_role",
    "current_time",
    "current_timestamp",
    "current_user",
    "localtime",
    "localtimestamp",
    "session_user",
    "user",
)
_RESTLESS_FUNCTIONS: Final = (
    "clock_timestamp",
    "current_setting",
    "currval",
    "gen_random_uuid",
    "lastval",
    "nextval",
    "now",
    "pg_backend_pid",
    "random",
    "statement_timestamp",
    "timeofday",
    "transaction_timestamp",
    "txid_current",
)
"""What changes in SQL although the row does not."""


def named_columns(columns: tuple[str, ...]) -> tuple[str, ...]:
    """Return a list of columns as it stands in the file. Raises ValueError."""
    if not columns:
        raise ValueError("is empty; name the columns, or remove it")
    if twice := [name for name, times in Counter(columns).items() if times > 1]:
        raise ValueError(f'column "{twice[0]}" is named twice')
    if not all(columns):
        raise ValueError("holds a column without a name")
    return columns


def _qualified(name: str) -> str:
    whole = literal(name if "." in name else f"public.{name}")
    if whole is None or not all(whole.partition(".")):
        raise ValueError("is not the name of a table; write SCHEMA.TABLE, and wildcards of the name in brackets: [*]")
    if whole.startswith("streamer."):
        raise ValueError("lies in the schema streamer, which holds what streamer keeps in a database; choose another one")
    return whole


def _one_to_one(renamed: dict[str, str]) -> dict[str, str]:
    if not all(renamed) or not all(renamed.values()):
        raise ValueError("holds a column without a name")
    if twice := [name for name, times in Counter(renamed.values()).items() if times > 1]:
        raise ValueError(f'gives two columns the name "{twice[0]}"')
    return renamed


def _steady(where: str) -> str:
    if not where.strip():
        raise ValueError("is empty; write a condition over the row, or remove it")
    if "\0" in where:
        raise ValueError("holds a NUL character")
    if restless := next(filter(_is_restless, names(where)), None):
        raise ValueError(
            f"uses {restless.text}, which changes while the row does not: a row would leave the filter and nobody would hear of it"
        )
    return where


def _is_restless(name: Name) -> bool:
    if name.after == "(" and name.text in _RESTLESS_FUNCTIONS:
        return True
    return not name.quoted and name.before != "." and name.text in _RESTLESS_WORDS


def _function(name: str) -> str:
    if not _FUNCTION.fullmatch(name):
        raise ValueError('must be "python:package.module:function"')
    return name


class ShapeSettings(BaseModel):
    """The keys that tell a table's shape; those that are not given are None."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: the columns that travel
    columns: Annotated[tuple[str, ...], AfterValidator(named_columns)] | None = None
    #: what the table is called on the target, as SCHEMA.TABLE
    rename: Annotated[str, AfterValidator(_qualified)] | None = None
    #: what columns are called on the target
    rename_columns: Annotated[dict[str, str], AfterValidator(_one_to_one)] | None = None
    #: an SQL condition over the row: the others stay away
    where: Annotated[str, AfterValidator(_steady)] | None = None
    #: python:package.module:function, which makes the row that travels
    transform: Annotated[str, AfterValidator(_function)] | None = None


KEYS: Final = tuple(ShapeSettings.model_fields)
"""The keys of a shape."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What becomes of a table of the source on one target. Columns are the source's; a row is filtered, transformed, then cut."""

    table: TableName
    #: its name on the target
    target: TableName
    #: the columns that travel; None: all
    columns: frozenset[str] | None
    #: names on the target, of columns that are called otherwise there
    renamed: Mapping[str, str]
    #: a condition in SQL; empty: none
    where: str
    #: "python:package.module:function"; empty: none
    transform: str
    #: whether the table is copied whole, so that no change of it travels
    whole: bool = False

    def column(self, name: str) -> str:
        """What a column is called on the target."""
        return self.renamed.get(name, name)

    def takes(self, name: str) -> bool:
        """Whether a column travels."""
        return self.columns is None or name in self.columns

    @property
    def recast(self) -> bool:
        """Whether the target's table is another one than the source's, by its name or its columns."""
        return self.target != self.table or self.columns is not None or bool(self.renamed)


def shape(table: TableName, *settings: ShapeSettings | None) -> Shape | None:
    """Return the shape of a table that these settings give it, the earlier ones winning key by key; None if it stays as it is."""
    keys: dict[str, Any] = {}
    for some in settings:
        keys = (some.model_dump(include=set(KEYS), exclude_none=True) if some else {}) | keys
    if not keys:
        return None
    columns = keys.get("columns")
    return Shape(
        table,
        table_name(keys["rename"]) if "rename" in keys else table,
        None if columns is None else frozenset(columns),
        {old: new for old, new in keys.get("rename_columns", {}).items() if old != new},
        keys.get("where", ""),
        keys.get("transform", ""),
    )


def table_name(whole: str) -> TableName:
    """Return the table of a whole name, SCHEMA.TABLE."""
    schema, _, name = whole.partition(".")
    return TableName(schema, name)


Tables: TypeAlias = Mapping[str, ShapeSettings]
"""Settings by the whole names of tables."""


def quoted_names(tables: object) -> object:
    """Return settings of tables as they stand in the file; a name without its quotes is a table inside another one to TOML.

    Raises ValueError.
    """
    for schema, settings in tables.items() if isinstance(tables, dict) else ():
        for name, value in settings.items() if isinstance(settings, dict) else ():
            if isinstance(value, dict) and name != "rename_columns":
                raise ValueError(f'a name with a dot needs quotes: write table."{schema}.{name}" for table.{schema}.{name}')
    return tables


class TargetSettings(BaseModel):
    """`[syncs.NAME.target.NODE]`: what holds for one target of a sync."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: what holds for single tables, by schema.table
    table: Annotated[dict[str, ShapeSettings], BeforeValidator(quoted_names)] = {}


@dataclass(frozen=True, slots=True)
class Selection:
    """What a sync selects, and who receives it."""

    patterns: Sequence[str]
    selects: Callable[[TableName], bool]
    targets: Sequence[str]
    several_sources: bool


def problems(tables: Tables, targets: Mapping[str, Tables], selection: Selection) -> Iterator[tuple[list[str], str]]:
    """Yield what makes no sense: the key below the sync, and why. `targets` are the settings of single targets."""
    if selection.several_sources:
        yield from ((["table", name, key], SEVERAL_SOURCES) for name, settings in tables.items() if (key := _first_key(settings)))
        yield from ((["target", node], SEVERAL_SOURCES) for node in targets)
    for node in targets:
        if node not in selection.targets:
            yield ["target", node], f"is not a target of the sync; it has {', '.join(selection.targets)}"
    for place, settings in ((["table"], tables), *((["target", node, "table"], own) for node, own in targets.items())):
        for name in settings:
            if not selection.selects(table_name(name)):
                yield [*place, name], "is not a table of the sync; check its spelling against tables and exclude"
    for node in selection.targets:
        yield from _problems_on(node, tables, targets.get(node, {}), selection)


def _problems_on(node: str, tables: Tables, own: Tables, selection: Selection) -> Iterator[tuple[list[str], str]]:
    shapes = shapes_of(tables, own)
    for one in shapes.values():
        if found := _contradiction(one):
            yield _place("rename_columns", node, own, one.table), found
    named = [table_name(name) for pattern in selection.patterns if (name := literal(pattern)) is not None]
    others = [table for table in named if selection.selects(table) and table not in shapes]
    if clashing := clash(shapes.values(), others):
        one, other = clashing
        yield _place("rename", node, own, one.table), f'table "{other}" has the name "{one.target}" on "{node}" already'


def shapes_of(tables: Tables, own: Tables) -> dict[TableName, Shape]:
    """Return the shapes of all tables that are named, where `own` are the settings of the target itself."""
    names = dict.fromkeys((*own, *tables))
    found = [shape(table_name(name), own.get(name), tables.get(name)) for name in names]
    return {one.table: one for one in found if one is not None}


def clash(shapes: Iterable[Shape], others: Iterable[TableName]) -> tuple[Shape, TableName] | None:
    """Return a table whose rows would go where those of another one go, and that other one; `others` keep their names."""
    taken = {table: table for table in others}
    for one in shapes:
        other = taken.setdefault(one.target, one.table)
        if other != one.table:
            return one, other
    return None


def _contradiction(shape: Shape) -> str | None:
    if shape.columns is None:
        return None
    if lost := sorted(shape.renamed.keys() - shape.columns):
        return f'column "{lost[0]}" does not travel; name it in columns too'
    names = Counter(map(shape.column, shape.columns))
    return next((f'two columns would be called "{name}" on the target' for name, times in names.items() if times > 1), None)


def _place(key: str, node: str, own: Tables, table: TableName) -> list[str]:
    """Where the key stands: with the target, or with all targets."""
    name = str(table)
    by_target = name in own and getattr(own[name], key) is not None
    return ["target", node, "table", name, key] if by_target else ["table", name, key]


def _first_key(settings: ShapeSettings) -> str | None:
    return next((key for key in KEYS if getattr(settings, key) is not None), None)

"""What streamer.toml says about conflicts: the policies, the rules of single tables, and what makes no sense of them.

A policy is a word, `python:package.module:function`, or the list of all sources, first the one that wins. Whether the function
exists is not looked at here: that depends on the machine.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal, TypeAlias, TypeVar

from pydantic import AfterValidator, BeforeValidator, PlainValidator, StrictBool

from streamer.model import OnError, OnUnrepresentable
from streamer.patterns import literal
from streamer.shape_config import ShapeSettings, named_columns, quoted_names

POLICIES: Final = ("latest", "apply", "keep", "error")
ONE_SOURCE: Final = "makes no sense with one source: there is nothing to resolve, the source wins; remove it, or add a source"

NO_QUARANTINE: Final = (
    'must be "stop" with several sources: the nodes would differ in the rows that one of them holds back, '
    "and none of them would see a conflict"
)

_FUNCTION: Final = re.compile(r"python:[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


class KeyProblem(ValueError):
    """What is wrong with a key below the table that is being validated; `key` is relative to it."""

    def __init__(self, key: Sequence[str], message: str) -> None:
        self.key = tuple(key)
        super().__init__(message)


def read_policy(value: object) -> str | tuple[str, ...]:
    """Return a policy as it stands in the file, a list as a tuple. Raises ValueError."""
    if isinstance(value, str) and (value in POLICIES or _FUNCTION.fullmatch(value)):
        return value
    if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
        return tuple(value)
    words = ", ".join(f'"{word}"' for word in POLICIES)
    raise ValueError(f'must be {words}, "python:package.module:function", or a list of all sources, like ["a", "b"]')


Policy: TypeAlias = Annotated[str | tuple[str, ...], PlainValidator(read_policy)]
Fallback: TypeAlias = Literal["stop", "latest", "apply", "keep"]


class TableSettings(ShapeSettings):
    """`[syncs.NAME.table."SCHEMA.TABLE"]`: what holds for one table of a sync."""

    #: instead of the sync's
    on_unrepresentable: OnUnrepresentable | None = None
    #: instead of the sync's
    on_error: OnError | None = None
    #: the columns that tell rows apart where the table has no primary key
    key: Annotated[tuple[str, ...], AfterValidator(named_columns)] | None = None
    #: whether the table is copied whole, again and again, instead of its changes being read
    fullcopy: StrictBool = False
    #: instead of the sync's
    conflict: Policy | None = None
    #: columns to which differences are added
    delta: tuple[str, ...] = ()
    #: columns of which the greater value stays
    max: tuple[str, ...] = ()
    #: columns of which the lesser value stays
    min: tuple[str, ...] = ()


SettingsByTable: TypeAlias = Annotated[dict[str, TableSettings], BeforeValidator(quoted_names)]

Settings = TypeVar("Settings", bound=ShapeSettings)


@dataclass(frozen=True, slots=True)
class TableRules:
    """How conflicts in one table are resolved."""

    #: one of POLICIES, "python:package.module:function", or the sources, the strongest first
    conflict: str | tuple[str, ...]
    delta: frozenset[str] = frozenset()
    max: frozenset[str] = frozenset()
    min: frozenset[str] = frozenset()

    @property
    def merged(self) -> frozenset[str]:
        """The columns that are merged, whoever wins."""
        return self.delta | self.max | self.min


def rules(policy: str | tuple[str, ...], settings: TableSettings | None) -> TableRules:
    """Return the rules of a table in a sync with this policy."""
    if settings is None:
        return TableRules(policy)
    own = policy if settings.conflict is None else settings.conflict
    return TableRules(own, frozenset(settings.delta), frozenset(settings.max), frozenset(settings.min))


def qualified(tables: Mapping[str, Settings]) -> dict[str, Settings]:
    """Return the tables by their whole names. Raises KeyProblem."""
    found: dict[str, Settings] = {}
    for name, settings in tables.items():
        whole = literal(name if "." in name else f"public.{name}")
        if whole is None:
            raise KeyProblem([name], "is a pattern; name each table by itself, and wildcards of its name in brackets: [*]")
        if not all(whole.partition(".")):
            raise KeyProblem([name], "is not the name of a table; write SCHEMA.TABLE")
        if whole in found:
            raise KeyProblem([name], f'is table "{whole}" a second time; put all of its keys into one')
        found[whole] = settings
    return found


def given(tables: Mapping[str, TableSettings]) -> Iterator[tuple[str, str, str]]:
    """Give the keys of single tables that mean something only with several sources, as far as they are given."""
    for name, settings in tables.items():
        yield from (("table", name, key) for key in ("conflict", "delta", "max", "min") if key in settings.model_fields_set)


def first_merged(tables: Mapping[str, TableSettings]) -> tuple[str, str] | None:
    """Return a table that has merged columns, and the key that names them; None if none has."""
    return next(((name, key) for name, of in tables.items() for key in ("delta", "max", "min") if getattr(of, key)), None)


def quarantining(on_error: OnError, tables: Mapping[str, TableSettings]) -> Iterator[tuple[str, ...]]:
    """Give the keys that ask for a quarantine."""
    if on_error == "quarantine":
        yield ("on_error",)
    yield from (("table", name, "on_error") for name, settings in tables.items() if settings.on_error == "quarantine")


def check_policies(sources: Sequence[str], policy: str | tuple[str, ...], tables: Mapping[str, TableSettings]) -> None:
    """Raise KeyProblem for a list that is not the sources, each once, or a column that is merged in two ways."""
    _check_list(["conflict"], policy, sources)
    for name, settings in tables.items():
        if settings.conflict is not None:
            _check_list(["table", name, "conflict"], settings.conflict, sources)
        for key, column in _twice_merged(settings):
            raise KeyProblem(["table", name, key], f'column "{column}" is named twice; name it once, in one of delta, max and min')


def _check_list(key: Sequence[str], policy: str | tuple[str, ...], sources: Sequence[str]) -> None:
    if isinstance(policy, str):
        return
    remedy = f"name each source once, the strongest first: {', '.join(sources)}"
    if strangers := [name for name in policy if name not in sources]:
        raise KeyProblem(key, f'"{strangers[0]}" is not a source of the sync; {remedy}')
    if twice := _repeated(policy):
        raise KeyProblem(key, f'"{twice[0]}" is named twice; {remedy}')
    if missing := [name for name in sources if name not in policy]:
        raise KeyProblem(key, f'source "{missing[0]}" is missing; {remedy}')


def _twice_merged(settings: TableSettings) -> Iterator[tuple[str, str]]:
    """Columns that are named more than once, with the last key that does."""
    columns = [(key, column) for key in ("delta", "max", "min") for column in getattr(settings, key)]
    for column in _repeated(column for _, column in columns):
        yield next(key for key, named in reversed(columns) if named == column), column


def _repeated(names: Iterable[str]) -> list[str]:
    return [name for name, times in Counter(names).items() if times > 1]

"""Bucardo's control database, as values.

Things are called as Bucardo calls them, but for goats and herds, which are relations here and relgroups in its command.

https://bucardo.org/Bucardo/schema/
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Database:
    """A row of bucardo.db."""

    name: str
    #: postgres, mysql, mariadb, sqlite, mongo, redis, oracle, drizzle, firebird, or something with "flat" in it
    kind: str
    #: a DSN of Perl's DBI; it takes the place of all else
    dsn: str = field(default="", repr=False)
    host: str = ""
    port: str = ""
    dbname: str = ""
    user: str = ""
    password: str = field(default="", repr=False)
    #: more of the DSN, like sslmode=require
    options: str = field(default="", repr=False)
    service: str = ""
    #: a file like ~/.pgpass
    passfile: str = ""
    #: active, inactive or stalled
    status: str = "active"
    makedelta: bool = False

    @property
    def flat(self) -> bool:
        """Whether it is a file of SQL."""
        return "flat" in self.kind


@dataclass(frozen=True, slots=True)
class Relation:
    """A row of bucardo.goat: a table or a sequence."""

    id: int
    schema: str
    name: str
    is_sequence: bool = False
    #: the columns of its key; none if it has none
    key: tuple[str, ...] = ()
    #: instead of the sync's; None: as the sync says
    autokick: bool | None = None
    conflict_strategy: str = ""
    #: "on", or databases
    makedelta: str = ""
    #: whether only its triggers are to be dropped
    ghost: bool = False
    #: the names of other settings that somebody has changed
    settings: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class Sync:
    """A row of bucardo.sync, with the relations of its relgroup and the databases of its dbgroup."""

    name: str
    relations: tuple[Relation, ...]
    #: database to role: source, target or fullcopy; by name
    roles: Mapping[str, str]
    conflict_strategy: str = "bucardo_latest"
    autokick: bool = True
    #: seconds; 0: none
    checktime: float = 0
    status: str = "active"
    onetimecopy: int = 0
    #: the names of other settings that somebody has changed
    settings: tuple[str, ...] = ()

    def of_role(self, role: str) -> list[str]:
        """The databases that have this role; whatever is neither source nor fullcopy is a target to Bucardo."""
        own = {name: given if given in ("source", "fullcopy") else "target" for name, given in self.roles.items()}
        return [name for name, given in own.items() if given == role]

    @property
    def multi_master(self) -> bool:
        """Whether it has several sources."""
        return len(self.of_role("source")) > 1

    @property
    def tables(self) -> tuple[Relation, ...]:
        """What is replicated and is no sequence."""
        return tuple(one for one in self.relations if not one.is_sequence and not one.ghost)

    @property
    def sequences(self) -> tuple[Relation, ...]:
        """The sequences that are replicated."""
        return tuple(one for one in self.relations if one.is_sequence and not one.ghost)


@dataclass(frozen=True, slots=True)
class Custom:
    """A row of bucardo.customname or customcols: what one relation is on targets. Where it names neither, it holds for all."""

    relation: int
    #: the new name, or the SELECT clause
    value: str
    database: str | None = None
    sync: str | None = None


@dataclass(frozen=True, slots=True)
class Code:
    """A row of bucardo.customcode with one of its places; without a place it is never run."""

    name: str
    #: when it is run: before_txn, conflict, exception and so on
    hook: str
    active: bool
    sync: str | None = None
    relation: int | None = None

    def concerns(self, sync: Sync) -> bool:
        """Whether it is run in this sync."""
        return self.sync == sync.name or any(self.relation == one.id for one in sync.relations)


@dataclass(frozen=True, slots=True)
class Control:
    """All of it."""

    version: str
    databases: Mapping[str, Database]
    syncs: tuple[Sync, ...]
    relations: Mapping[int, Relation]
    names: tuple[Custom, ...] = ()
    columns: tuple[Custom, ...] = ()
    codes: tuple[Code, ...] = ()
    #: relations with a trigger of the user's own in the place of Bucardo's
    own_triggers: tuple[int, ...] = ()
    #: where files of SQL are written
    flatfile_dir: str = "."
    #: settings of bucardo_config that somebody has changed, by name
    changed: tuple[str, ...] = ()

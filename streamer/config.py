"""streamer.toml: the models, and the one function that reads them.

Everything that can be told from the file alone is checked here, so that a `Config` that exists is one that makes sense;
what needs a server is the business of `check`. `${NAME}` in a url or the token is taken from the environment, nowhere else.
"""

from __future__ import annotations

import fnmatch
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from streamer import config_problems, conflict_config, fullcopy_config, periods, shape_config
from streamer.conflict_config import Fallback, KeyProblem, Policy, SettingsByTable, TableRules, TableSettings
from streamer.errors import ConfigError
from streamer.http_config import Http
from streamer.model import OnError, OnUnrepresentable, TableName
from streamer.node_config import SOURCE_KINDS, Node
from streamer.shape_config import Selection, Shape, ShapeSettings, TargetSettings

DEFAULT_PATH: Final = Path("streamer.toml")
OWN_SCHEMA: Final = "streamer"
"""The schema that holds what we keep in a database; its tables are never replicated as data."""

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,24}$")]
"""A node or sync: it becomes a part of slot, publication and origin names, which allow no more and are 63 bytes long."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


_EVERY: Final = "every "

_CONFLICT_KEYS: Final = (
    "conflict",
    "conflict_timeout",
    "conflict_fallback",
    "conflict_days",
    "tombstone_days",
    "max_clock_skew",
)
"""Keys of a sync that mean something only with several sources."""


class Sync(_Model):
    """`[syncs.NAME]`: a replication of a set of tables between nodes."""

    #: nodes whose changes are captured; with two or more, each is a target of the others
    sources: tuple[Name, ...] = Field(min_length=1)
    #: nodes that only receive
    targets: tuple[Name, ...] = ()
    #: globs over schema.table; a name without a dot means the schema public
    tables: tuple[str, ...] = Field(min_length=1)
    #: globs taken out of `tables`
    exclude: tuple[str, ...] = ()
    #: whether rows that exist already are copied first
    copy_rows: Literal["never", "if-empty", "always"] = Field(default="if-empty", alias="copy")
    #: tables, and ranges of large ones, copied at once
    copy_jobs: int = Field(default=2, ge=1, le=64, strict=True)
    #: rows of a range, each of which is committed by itself
    copy_range_rows: int = Field(default=500_000, ge=1, strict=True)
    #: all the time, only when kicked ("manual"), or also by itself ("every 10m")
    run: str = "continuous"
    #: how often tables with fullcopy are copied while the sync runs all the time
    fullcopy_every: Annotated[str, AfterValidator(fullcopy_config.read_period)] = "1h"
    #: whether the sequences of PostgreSQL targets are kept at or ahead of the source's
    sequences: StrictBool = False
    #: what is written where the column of a target that is not PostgreSQL cannot hold a value
    on_unrepresentable: OnUnrepresentable = "error"
    #: what happens to a row that a target refuses: the edge stops, or goes on and the target holds the row in quarantine
    on_error: OnError = "stop"
    #: whether rows are compared only by the command, or all the time by the daemon
    verify: Literal["manual", "continuous"] = "manual"
    #: rows a second that are compared all the time
    verify_rate: int = Field(default=5000, ge=1, le=10_000_000, strict=True)
    #: who wins a conflict between sources
    conflict: Policy = "latest"
    #: seconds that a python: function may take
    conflict_timeout: float = Field(default=5.0, gt=0, allow_inf_nan=False, strict=True)
    #: what holds if the function fails
    conflict_fallback: Fallback = "stop"
    #: days for which resolved conflicts are kept
    conflict_days: int = Field(default=30, ge=1, le=36_500, strict=True)
    #: days for which deleted keys are kept
    tombstone_days: int = Field(default=7, ge=1, le=36_500, strict=True)
    #: seconds by which the clock of another source may be ahead
    max_clock_skew: float = Field(default=5.0, gt=0, allow_inf_nan=False, strict=True)
    #: what holds for single tables, by schema.table
    table: SettingsByTable = {}
    #: what holds for single targets, by node
    target: dict[Name, TargetSettings] = {}

    @field_validator("tables", "exclude")
    @classmethod
    def _qualified(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        if any(not p.strip() for p in patterns):
            raise ValueError("a pattern is empty; write for example public.*")
        return tuple(p if "." in p else f"public.{p}" for p in patterns)

    @field_validator("run")
    @classmethod
    def _known_run(cls, run: str) -> str:
        every = periods.seconds(run.removeprefix(_EVERY)) if run.startswith(_EVERY) else None
        if run not in ("continuous", "manual") and every is None:
            raise ValueError('must be "continuous", "manual" or "every NUMBER UNIT" with a unit of s, m, h or d, like "every 10m"')
        if every is not None and not periods.is_sensible(every):
            raise ValueError(f"the time between two runs must be at least 1s and at most {periods.LONGEST // 86400}d")
        return run

    @model_validator(mode="after")
    def _roles(self) -> Self:
        nodes = self.sources + self.targets
        if twice := {n for n in nodes if nodes.count(n) > 1}:
            raise ValueError(f'node "{min(twice)}" is named twice; a source is a target of the other sources already')
        if len(nodes) < 2:
            raise ValueError("there is nothing to replicate to: add a target or a second source")
        if self.verify == "continuous" and not self.continuous:
            raise KeyProblem(["verify"], 'must be "manual" unless run = "continuous": a sync at rest does not get on')
        return self

    @field_validator("table")
    @classmethod
    def _whole_names(cls, tables: dict[str, TableSettings]) -> dict[str, TableSettings]:
        return conflict_config.qualified(tables)

    @field_validator("target")
    @classmethod
    def _whole_names_of_targets(cls, targets: dict[str, TargetSettings]) -> dict[str, TargetSettings]:
        found = {}
        for node, settings in targets.items():
            try:
                found[node] = TargetSettings(table=conflict_config.qualified(settings.table))
            except KeyProblem as problem:
                raise KeyProblem([node, "table", *problem.key], str(problem)) from None
        return found

    @model_validator(mode="after")
    def _shapes(self) -> Self:
        targets = {node: settings.table for node, settings in self.target.items()}
        selection = Selection(self.tables, self.selects, self.targets, several_sources=self.multi_master)
        for key, message in shape_config.problems(self.table, targets, selection):
            raise KeyProblem(key, message)
        for key, message in fullcopy_config.problems(self.table, several_sources=self.multi_master):
            raise KeyProblem(key, message)
        return self

    @model_validator(mode="after")
    def _conflicts(self) -> Self:
        if not self.multi_master:
            given = [(key,) for key in _CONFLICT_KEYS if key in self.model_fields_set]
            for path in (*given, *conflict_config.given(self.table)):
                raise KeyProblem(path, conflict_config.ONE_SOURCE)
            return self
        for path in conflict_config.quarantining(self.on_error, self.table):
            raise KeyProblem(path, conflict_config.NO_QUARANTINE)
        if self.copy_rows == "always":
            raise KeyProblem(
                ["copy"], 'must be "if-empty" or "never" with several sources: "always" replaces rows that others made'
            )
        conflict_config.check_policies(self.sources, self.conflict, self.table)
        return self

    @property
    def multi_master(self) -> bool:
        """Whether several sources write the same rows, so that there are conflicts to resolve."""
        return len(self.sources) > 1

    @property
    def continuous(self) -> bool:
        """Whether it runs all the time."""
        return self.run == "continuous"

    @property
    def interval(self) -> int | None:
        """Seconds from the beginning of a run to that of the next; None if none begins by itself."""
        return periods.seconds(self.run.removeprefix(_EVERY))

    def rules_for(self, table: TableName) -> TableRules:
        """How conflicts in this table are resolved."""
        return conflict_config.rules(self.conflict, self.table.get(str(table)))

    def unrepresentable_for(self, table: TableName) -> OnUnrepresentable:
        """What happens to a value of this table that a target cannot hold."""
        settings = self.table.get(str(table))
        return (settings and settings.on_unrepresentable) or self.on_unrepresentable

    def quarantines(self, table: TableName) -> bool:
        """Whether a row of this table that a target refuses is held in quarantine."""
        settings = self.table.get(str(table))
        return ((settings and settings.on_error) or self.on_error) == "quarantine"

    def shapes_for(self, target: str) -> dict[TableName, Shape]:
        """What tables become on a target, those that do not stay as they are."""
        shapes = shape_config.shapes_of(self.table, self.target[target].table if target in self.target else {})
        return {table: replace(shape, whole=self.copies_whole(table)) for table, shape in shapes.items()}

    def selects(self, table: TableName) -> bool:
        """Whether the patterns choose this table. Globs are those of the shell, case counts, streamer's own never match."""
        name = str(table)
        return table.schema != OWN_SCHEMA and any(fnmatch.fnmatchcase(name, p) for p in self.tables) and not self.excludes(table)

    def excludes(self, name: TableName) -> bool:
        """Whether a table or sequence is left out by its name."""
        return any(fnmatch.fnmatchcase(str(name), p) for p in self.exclude)

    def copies_whole(self, table: TableName) -> bool:
        """Whether the config has this table copied whole, again and again."""
        settings = self.table.get(str(table))
        return settings is not None and settings.fullcopy and self.selects(table)

    def captures(self, table: TableName) -> bool:
        """Whether the sync reads the changes of this table."""
        return self.selects(table) and not self.copies_whole(table)

    def key_for(self, table: TableName) -> tuple[str, ...]:
        """The columns that the config names as the table's key, if it does."""
        settings = self.table.get(str(table))
        return (settings and settings.key) or ()

    def targets_of(self, source: str) -> tuple[str, ...]:
        """The nodes of the sync but the source; not each of them need have an edge from it (`Config.targets`)."""
        return tuple(n for n in self.sources + self.targets if n != source)


class Config(_Model):
    """A whole streamer.toml."""

    nodes: dict[Name, Node] = Field(min_length=1)
    syncs: dict[Name, Sync] = Field(min_length=1)
    http: Http = Http()

    @model_validator(mode="after")
    def _references(self) -> Self:
        for name, sync in self.syncs.items():
            for node in sync.sources + sync.targets:
                if node not in self.nodes:
                    raise ValueError(f'syncs.{name}: node "{node}" is not configured{config_problems.nearest(node, self.nodes)}')
            for node in sync.sources:
                if self.nodes[node].kind not in SOURCE_KINDS:
                    raise ValueError(f'syncs.{name}: node "{node}" is {self.nodes[node].kind}, which can only be a target')
        return self

    @model_validator(mode="after")
    def _event_files(self) -> Self:
        # positions of two streams say nothing about each other, and their transactions must not stand in each other's way
        writers: dict[str, str] = {}
        for sync, source, node in self.edges():
            settings = self.nodes[node]
            if settings.kind == "jsonl":
                edge = f'sync "{sync}" from "{source}" to "{node}"'
                for place in (settings.url, settings.progress_file(node).as_posix()):
                    if place in writers:
                        raise ValueError(
                            f'{writers[place]} and {edge} would share "{place}"; give each a jsonl node and file of its own'
                        )
                    writers[place] = edge
        return self

    @model_validator(mode="after")
    def _slot_names(self) -> Self:
        # two nodes may be databases of one cluster, in which slot names are unique
        streams: dict[str, str] = {}
        for name, sync in self.syncs.items():
            for source in sync.sources:
                slot, stream = slot_name(name, source), f'sync "{name}" from "{source}"'
                if slot in streams:
                    raise ValueError(f'{streams[slot]} and {stream} would share the slot "{slot}"; rename one of them')
                streams[slot] = stream
        return self

    @model_validator(mode="after")
    def _full_copies(self) -> Self:
        for name, sync in self.syncs.items():
            for key, table in fullcopy_config.explicit(sync.table):
                if reason := self.refuses_fullcopy(name, table):
                    raise ValueError(f'syncs.{name}.table."{key}".fullcopy: {reason}')
        return self

    @model_validator(mode="after")
    def _merges(self) -> Self:
        for name, sync in self.syncs.items():
            for node in sync.sources:
                if self.nodes[node].capture == "trigger" and (found := conflict_config.first_merged(sync.table)):
                    raise ValueError(
                        f'syncs.{name}.table."{found[0]}".{found[1]}: what a write adds is told by the old row, which triggers do '
                        f'not keep, and nodes.{node} has capture = "trigger"; remove this key, or capture "{node}" from its WAL'
                    )
        return self

    def refuses_fullcopy(self, sync: str, table: TableName) -> str:
        """Why a table cannot be copied whole to the targets of a sync; empty if it can."""
        files = [node for node in self.syncs[sync].targets if self.nodes[node].kind == "jsonl"]
        return fullcopy_config.refusal(self.syncs[sync], table, files, self.syncs)

    def edges(self) -> Iterator[tuple[str, str, str]]:
        """Every (sync, source, target)."""
        for name, sync in self.syncs.items():
            for source in sync.sources:
                for target in self.targets(name, source):
                    yield name, source, target

    def feeders(self, sync: str, target: str) -> tuple[str, ...]:
        """The sources of a sync that have an edge to `target`.

        Only PostgreSQL targets resolve conflicts; another one hears of all that several sources did from the first of them.
        """
        others = tuple(source for source in self.syncs[sync].sources if source != target)
        resolves = self.nodes[target].kind in SOURCE_KINDS or not self.syncs[sync].multi_master
        return others if resolves else others[:1]

    def targets(self, sync: str, source: str) -> tuple[str, ...]:
        """The nodes to which `source` has an edge in a sync."""
        return tuple(node for node in self.syncs[sync].targets_of(source) if source in self.feeders(sync, node))


def slot_name(sync: str, source: str) -> str:
    """The name of a stream's slot and publication."""
    return f"streamer_{sync}_{source}"


def load(path: Path = DEFAULT_PATH, environ: Mapping[str, str] = os.environ) -> Config:
    """Return the config in the file `path`.

    Raises ConfigError, in one line with the key, for anything that is wrong with it.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f'config file "{path}" does not exist', "write one with: streamer init") from None
    except IsADirectoryError:
        raise ConfigError(
            f'config file "{path}" is a directory', f"name a file, for example: --config {path}/streamer.toml"
        ) from None
    except OSError as error:
        raise ConfigError(f'config file "{path}" cannot be read: {error.strerror}', "check its owner and mode") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f'config file "{path}" is not UTF-8 (byte {error.start})', "save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f'config file "{path}" is not TOML: {error}') from None
    if not document:
        raise ConfigError(f'config file "{path}" is empty', "write one with: streamer init")
    try:
        return Config.model_validate(_expand_secrets(document, environ))
    except ValidationError as error:
        raise ConfigError(f'config file "{path}": {config_problems.first_problem(error, _known_keys)}') from None


def _expand_secrets(document: dict[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """Replace ${NAME} in the urls of the nodes and in the token."""
    nodes = document.get("nodes")
    places = [(node, "url", f"nodes.{name}") for name, node in nodes.items()] if isinstance(nodes, dict) else []
    for table, key, place in [*places, (document.get("http"), "token", "http")]:
        if isinstance(table, dict) and isinstance(table.get(key), str):
            table[key] = _expand(table[key], environ, f"{place}.{key}")
    return document


def _expand(text: str, environ: Mapping[str, str], key: str) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] not in environ:
            raise ConfigError(f"{key}: environment variable {match[1]} is not set", f"export {match[1]}=…")
        return environ[match[1]]

    if re.search(r"\$\{[^}]*$", text):  # without the text, which may hold a password
        raise ConfigError(f'{key}: "${{" is not closed', "write ${NAME}; a value that has a ${ itself goes into a variable")
    return re.sub(r"\$\{([^}]*)\}", value, text)


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    """The keys that could stand beside an unknown one."""
    models: dict[str, type[BaseModel]] = {"nodes": Node, "syncs": Sync, "http": Http}
    model = models[str(location[0])] if len(location) > 1 else Config
    if location[2:3] == ("table",) and len(location) == 5:
        model = TableSettings
    if location[2:3] == ("target",) and len(location) > 3:
        model = ShapeSettings if len(location) == 7 else TargetSettings
    return [f.alias or name for name, f in model.model_fields.items()]

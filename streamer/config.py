"""streamer.toml: the models, and the one function that reads them.

Everything that can be told from the file alone is checked here, so that a `Config` that exists is one that makes sense;
what needs a server is the business of `check`. `${NAME}` in a url is taken from the environment, nowhere else.
"""

from __future__ import annotations

import difflib
import fnmatch
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from streamer import conflict_config
from streamer.conflict_config import Fallback, KeyProblem, Policy, TableRules, TableSettings
from streamer.errors import ConfigError
from streamer.model import TableName

DEFAULT_PATH: Final = Path("streamer.toml")
SOURCE_KINDS: Final = ("postgresql",)
KINDS: Final = ("postgresql", "sqlite")
OWN_SCHEMA: Final = "streamer"
"""The schema that holds what we keep in a database; its tables are never replicated as data."""

_POSTGRES_URL: Final = re.compile(
    r"""(?!.*\s) (?!.*%(?!(?!00)[0-9a-fA-F]{2}))   # no spaces; percent signs encode something
    postgres(?:ql)?://
    (?:(?P<user>[^:@/]*)(?::[^@/]*)?@)?
    (?P<place>HOST(?:,HOST)*(?:/[^?@]*)?)
    (?:\?[^@]*)?""".replace("HOST", r"(?:\[[^]]+]|[^][:,/?@]*)(?::\d*)?"),
    re.VERBOSE,
)
"""https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS. Narrower than libpq, which takes a password
with a slash for a host and a path, and quotes what it does not understand: error messages would tell the password."""

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,24}$")]
"""A node or sync: it becomes a part of slot, publication and origin names, which allow no more and are 63 bytes long."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Node(_Model):
    """`[nodes.NAME]`: a database."""

    #: postgresql://user@host/db or sqlite:////path
    url: str
    #: how changes are read when the node is a source; auto takes pgoutput from 10 on and wal2json on 9.4 to 9.6
    capture: Literal["auto", "wal2json", "pgoutput"] = "auto"

    @property
    def kind(self) -> str:
        """The engine: one of KINDS."""
        return "sqlite" if self.url.startswith("sqlite:") else "postgresql"

    @property
    def path(self) -> Path:
        """The file of an SQLite node."""
        return Path(self.url.removeprefix("sqlite:///"))

    @field_validator("url")
    @classmethod
    def _known_kind(cls, url: str) -> str:
        kind, colon, _ = url.partition("://")
        if not colon:
            raise ValueError("is not a url; it begins with postgresql:// or sqlite:///")
        if kind not in (*KINDS, "postgres"):
            raise ValueError(f'"{kind}" is not a kind of url that streamer knows; it knows {", ".join(KINDS)}')
        if kind == "sqlite" and not re.match("sqlite:///.", url):
            raise ValueError("an SQLite url is sqlite:///relative/path or sqlite:////absolute/path")
        if kind != "sqlite" and not _POSTGRES_URL.fullmatch(url):
            raise ValueError(
                "is not postgresql://USER:PASSWORD@HOST:PORT/DATABASE?OPTION=VALUE; "
                "write % as %25, @ as %40, / as %2F and a space as %20 in user and password"
            )
        return url


class Http(_Model):
    """`[http]`: where the running daemon answers `status` and Prometheus."""

    #: host:port; loopback only
    listen: str = "127.0.0.1:9851"

    @field_validator("listen")
    @classmethod
    def _loopback(cls, listen: str) -> str:
        host, _, port = listen.rpartition(":")
        if host not in ("127.0.0.1", "localhost", "[::1]") or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError("must be 127.0.0.1:PORT, localhost:PORT or [::1]:PORT; nothing protects what it serves")
        return listen

    @property
    def address(self) -> tuple[str, int]:
        """Host and port, as sockets take them."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


_CONFLICT_KEYS: Final = (
    "conflict",
    "conflict_timeout",
    "conflict_fallback",
    "conflict_days",
    "tombstone_days",
    "max_clock_skew",
    "table",
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
    #: tables copied at once
    copy_jobs: int = Field(default=2, ge=1, le=64, strict=True)
    #: only "continuous" exists in this version
    run: Literal["continuous"] = "continuous"
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
    table: dict[str, TableSettings] = {}

    @field_validator("tables", "exclude")
    @classmethod
    def _qualified(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        if any(not p.strip() for p in patterns):
            raise ValueError("a pattern is empty; write for example public.*")
        return tuple(p if "." in p else f"public.{p}" for p in patterns)

    @model_validator(mode="after")
    def _roles(self) -> Self:
        nodes = self.sources + self.targets
        if twice := {n for n in nodes if nodes.count(n) > 1}:
            raise ValueError(f'node "{min(twice)}" is named twice; a source is a target of the other sources already')
        if len(nodes) < 2:
            raise ValueError("there is nothing to replicate to: add a target or a second source")
        return self

    @field_validator("table")
    @classmethod
    def _whole_names(cls, tables: dict[str, TableSettings]) -> dict[str, TableSettings]:
        return conflict_config.qualified(tables)

    @model_validator(mode="after")
    def _conflicts(self) -> Self:
        if not self.multi_master:
            for key in _CONFLICT_KEYS:
                if key in self.model_fields_set:
                    raise KeyProblem([key], conflict_config.ONE_SOURCE)
            return self
        if self.copy_rows == "always":
            raise KeyProblem(
                ["copy"], 'must be "if-empty" or "never" with several sources: "always" replaces rows that others made'
            )
        for name in self.table:
            if not self.selects(conflict_config.table_name(name)):
                raise KeyProblem(["table", name], "is not a table of the sync; check its spelling against tables and exclude")
        conflict_config.check_policies(self.sources, self.conflict, self.table)
        return self

    @property
    def multi_master(self) -> bool:
        """Whether several sources write the same rows, so that there are conflicts to resolve."""
        return len(self.sources) > 1

    def rules_for(self, table: TableName) -> TableRules:
        """How conflicts in this table are resolved."""
        return conflict_config.rules(self.conflict, self.table.get(str(table)))

    def selects(self, table: TableName) -> bool:
        """Whether the patterns choose this table. Globs are those of the shell, case counts, streamer's own never match."""
        name = str(table)
        return (
            table.schema != OWN_SCHEMA
            and any(fnmatch.fnmatchcase(name, p) for p in self.tables)
            and not any(fnmatch.fnmatchcase(name, p) for p in self.exclude)
        )

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
                    raise ValueError(f'syncs.{name}: node "{node}" is not configured{_nearest(node, self.nodes)}')
            for node in sync.sources:
                if self.nodes[node].kind not in SOURCE_KINDS:
                    raise ValueError(f'syncs.{name}: node "{node}" is {self.nodes[node].kind}, which can only be a target')
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


def redact(url: str) -> str:
    """The url without its password and options, for people to read."""
    if url.startswith("sqlite:"):
        return url
    match = _POSTGRES_URL.fullmatch(url)
    user, place = match.group("user", "place") if match else ("", "")
    return f"postgresql://{user + '@' if user else ''}{place}"


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
        return Config.model_validate(_expand_urls(document, environ))
    except ValidationError as error:
        raise ConfigError(f'config file "{path}": {_first_problem(error)}') from None


def _expand_urls(document: dict[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """Replace ${NAME} in the urls of the nodes."""
    nodes = document.get("nodes")
    for name, node in nodes.items() if isinstance(nodes, dict) else ():
        if isinstance(node, dict) and isinstance(node.get("url"), str):
            node["url"] = _expand(node["url"], environ, f"nodes.{name}.url")
    return document


def _expand(text: str, environ: Mapping[str, str], key: str) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] not in environ:
            raise ConfigError(f"{key}: environment variable {match[1]} is not set", f"export {match[1]}=…")
        return environ[match[1]]

    return re.sub(r"\$\{([^}]*)\}", value, text)


_RULES: Final = {
    "missing": "is missing",
    "too_short": "is empty; name at least one",
    "tuple_type": 'must be a list, like ["a", "b"]',
    "dict_type": "must hold tables, like [{key}.NAME]",
    "model_type": "must be a table, [{key}]",
    "string_pattern_mismatch": "names are lower-case letters, digits and _, start with a letter and have 25 characters at most",
}
"""What to say instead of pydantic's words, by its error type."""


def _first_problem(error: ValidationError) -> str:
    """One thing that pydantic complains of, as one line that names the key. Never the value: it may hold a password."""
    problems = error.errors(include_url=False, include_input=False)
    # a mistyped key may be missing as well
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    cause = problem.get("ctx", {}).get("error")
    location = (*problem["loc"], *(cause.key if isinstance(cause, KeyProblem) else ()))
    parts = [part for part in location if isinstance(part, str) and part != "[key]"]
    key = ".".join(f'"{part}"' if "." in part or not part else part for part in parts)
    if problem["type"] == "extra_forbidden":
        return f'unknown key "{key}"{_nearest(str(problem["loc"][-1]), _known_keys(problem["loc"]))}'
    message = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    message = _RULES.get(problem["type"], message).replace("{key}", key)
    return f"{key}: {message}" if key else message


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    """The keys that could stand beside an unknown one."""
    models: dict[str, type[BaseModel]] = {"nodes": Node, "syncs": Sync, "http": Http}
    model = models[str(location[0])] if len(location) > 1 else Config
    if location[2:3] == ("table",) and len(location) == 5:
        model = TableSettings
    return [f.alias or name for name, f in model.model_fields.items()]


def _nearest(word: str, known: Iterable[str]) -> str:
    """A hint for a mistyped word."""
    known = list(known)
    match = difflib.get_close_matches(word, known, n=1)
    return f'; did you mean "{match[0]}"?' if match else f"; known: {', '.join(known)}"

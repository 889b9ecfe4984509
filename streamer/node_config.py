"""`[nodes.NAME]` of streamer.toml: the model of a node, and what its url says.

The scheme of the url is the kind of the node. A url is checked here as far as that goes without asking anybody; `${NAME}` in it
has been replaced from the environment before (config.py). The trap: messages must never tell a password, and what
libpq or a driver says about a url that it does not understand would; so each pattern is narrower than the driver.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Self, get_args
from urllib.parse import parse_qsl, unquote

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

SOURCE_KINDS: Final = ("postgresql",)
KINDS: Final = ("postgresql", "mysql", "sqlite", "jsonl")

_SCHEMES: Final = dict.fromkeys(("postgres", "postgresql"), "postgresql") | dict.fromkeys(("mysql", "mariadb"), "mysql")
_PERCENT: Final = r"(?!.*\s) (?!.*%(?!(?!00)[0-9a-fA-F]{2}))"  # no spaces; percent signs encode something
_HOST: Final = r"(?:\[[^]]+]|[^][:,/?@]*)(?::\d*)?"
_POSTGRES_URL: Final = re.compile(
    rf"""{_PERCENT}
    postgres(?:ql)?://
    (?:[^:@/]*(?::[^@/]*)?@)?
    {_HOST}(?:,{_HOST})*(?:/[^?@]*)?
    (?:\?[^@]*)?""",
    re.VERBOSE,
)
"""https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS. Narrower than libpq, which takes a password
with a slash for a host and a path, and quotes what it does not understand."""
_MYSQL_URL: Final = re.compile(
    rf"""{_PERCENT}
    (?:mysql|mariadb)://
    (?:(?P<user>[^:@/]*)(?::(?P<password>[^@/]*))?@)?
    (?P<place>{_HOST}/(?P<database>[^/?@]+))
    (?:\?(?P<options>[^@]*))?""",
    re.VERBOSE,
)
_ENCODE: Final = "write % as %25, @ as %40, / as %2F and a space as %20 in user and password"
_MYSQL_PORT: Final = 3306

SslMode = Literal["disabled", "preferred", "required", "verify_ca", "verify_identity"]
"""How MySQL's own programs spell what is asked of TLS.

https://dev.mysql.com/doc/refman/8.4/en/connection-options.html#option_general_ssl-mode
"""


@dataclass(frozen=True, slots=True)
class MysqlAddress:
    """What a mysql:// or mariadb:// url says."""

    host: str
    port: int
    #: empty: the name of the operating system's user
    user: str
    password: str = field(repr=False)
    database: str
    #: the file of a socket, which then stands for host and port
    unix_socket: str = ""
    #: preferred: TLS if the server offers it; verify_… is the default where `ssl_ca` is given
    ssl_mode: SslMode = "preferred"
    ssl_ca: str = ""
    ssl_cert: str = ""
    ssl_key: str = ""

    @classmethod
    def parse(cls, url: str) -> MysqlAddress:
        """Return the parts of a url. Raises ValueError, in words for people, without the password."""
        match = _MYSQL_URL.fullmatch(url)
        if match is None:
            raise ValueError(f"is not mysql://USER:PASSWORD@HOST:PORT/DATABASE?OPTION=VALUE; {_ENCODE}")
        host, port = _host_and_port(match["place"].partition("/")[0])
        user, password, database = (unquote(match[name] or "") for name in ("user", "password", "database"))
        return cls(host, port, user, password, database, **_mysql_options(match["options"] or ""))


def _host_and_port(place: str) -> tuple[str, int]:
    host, _, port = place.rpartition(":") if re.search(r":\d*$", place) else (place, "", "")
    if port and not 0 < int(port) < 65536:
        raise ValueError(f"has the port {port}; ports are 1 to 65535")
    return host.strip("[]") or "localhost", int(port or _MYSQL_PORT)


def _mysql_options(text: str) -> dict[str, Any]:
    """The options as arguments of MysqlAddress."""
    known = ("unix_socket", "ssl_mode", "ssl_ca", "ssl_cert", "ssl_key")
    try:
        options = dict(parse_qsl(text, strict_parsing=True, keep_blank_values=True)) if text else {}
    except ValueError:
        raise ValueError("has options that are not NAME=VALUE&NAME=VALUE") from None
    if unknown := options.keys() - set(known):
        raise ValueError(f'has the option "{min(unknown)}"; the options are {", ".join(known)}')
    mode = options.get("ssl_mode", "verify_identity" if options.get("ssl_ca") else "preferred")
    modes = get_args(SslMode)
    if (mode := mode.lower().replace("-", "_")) not in modes:
        raise ValueError(f"has a value of ssl_mode that does not exist; there are {', '.join(modes)}")
    if mode.startswith("verify") and not options.get("ssl_ca"):
        raise ValueError(f"says ssl_mode={mode} without ssl_ca, the file with the certificate of the authority")
    if options.get("ssl_key") and not options.get("ssl_cert"):
        raise ValueError("says ssl_key without ssl_cert")
    return options | {"ssl_mode": mode}


WalGuard = Literal["alert", "pause", "drop-slot"]
_SIZE: Final = re.compile(r"([0-9]{1,9}) ?([kMGT])B")
_UNITS: Final = {"k": 10, "M": 20, "G": 30, "T": 40}


PGOUTPUT: Final = 100000
LOGICAL_DECODING: Final = 90400


def choose_capture(capture: str, server: int) -> tuple[str, str]:
    """Return how a node with this `capture` setting is read on a server of this version, and why: wal2json, pgoutput, trigger."""
    if capture != "auto":
        return capture, "the config says so"
    if server >= PGOUTPUT:
        return "pgoutput", "it is part of PostgreSQL from version 10 on"
    if server >= LOGICAL_DECODING:
        return "wal2json", "this server is older than version 10 and has no pgoutput"
    return "trigger", "this server is older than version 9.4 and has no logical decoding"


class Node(BaseModel):
    """`[nodes.NAME]`: a database, or a file of changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: postgresql://user@host/db, mysql://user@host/db, sqlite:////path, jsonl:////path or jsonl:- for standard output
    url: str
    #: how changes are read when the node is a source; auto takes pgoutput from 10 on, wal2json on 9.4 to 9.6, and triggers before
    capture: Literal["auto", "wal2json", "pgoutput", "trigger"] = "auto"
    #: where a MySQL node has the tables of schemas other than public: in the url's database, named schema.table, or in databases of
    #: the schemas' names
    schemas: Literal["prefix", "database"] = "prefix"
    #: size in MB (2**20 bytes) at which a jsonl node goes on in another file; without it there is one file
    rotate_mb: int | None = Field(default=None, ge=1, strict=True)
    #: the file that holds the progress of a jsonl node; by default the url's with .progress behind it, or streamer-NODE.progress
    progress: str | None = Field(default=None, min_length=1)
    #: how much WAL a slot of ours may hold back on this source, like "20GB" (kB, MB, GB, TB of 1024); without it any amount
    max_retained_wal: str | None = None
    #: what happens when a slot holds back more
    wal_guard: WalGuard = "alert"

    @property
    def kind(self) -> str:
        """The engine: one of KINDS."""
        scheme = self.url.partition(":")[0]
        return _SCHEMES.get(scheme, scheme)

    @property
    def path(self) -> Path:
        """The file of an SQLite or jsonl node."""
        return Path(self.url.partition(":///")[2])

    @property
    def standard_output(self) -> bool:
        """Whether a jsonl node is not a file."""
        return self.url == "jsonl:-"

    @property
    def rotate_bytes(self) -> int | None:
        """`rotate_mb` in bytes."""
        return None if self.rotate_mb is None else self.rotate_mb << 20

    def progress_file(self, name: str) -> Path:
        """The file that holds the progress of this jsonl node, which the config calls `name`."""
        if self.progress is not None:
            return Path(self.progress)
        return Path(f"streamer-{name}.progress") if self.standard_output else self.path.with_name(f"{self.path.name}.progress")

    @property
    def mysql(self) -> MysqlAddress:
        """How to reach a MySQL or MariaDB node."""
        return MysqlAddress.parse(self.url)

    @property
    def max_retained_bytes(self) -> int | None:
        """`max_retained_wal` in bytes."""
        size = _SIZE.fullmatch(self.max_retained_wal or "")
        return int(size[1]) << _UNITS[size[2]] if size else None

    @field_validator("max_retained_wal")
    @classmethod
    def _size(cls, text: str | None) -> str | None:
        size = _SIZE.fullmatch(text or "")
        if text is not None and (size is None or int(size[1]) == 0):
            raise ValueError('must be a number and a unit of kB, MB, GB or TB, like "20GB"')
        return text

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        if self.max_retained_wal is not None and self.kind not in SOURCE_KINDS:
            raise ValueError(f"max_retained_wal means something for a PostgreSQL node only, and this one is {self.kind}")
        if self.wal_guard != "alert" and self.max_retained_wal is None:
            raise ValueError(f'wal_guard = "{self.wal_guard}" needs max_retained_wal, for example "20GB"')
        return self

    @field_validator("url")
    @classmethod
    def _known_kind(cls, url: str) -> str:
        if url == "jsonl:-":
            return url
        scheme, colon, rest = url.partition("://")
        if not colon:
            raise ValueError("is not a url; it begins with postgresql://, mysql://, sqlite:/// or jsonl:///, or is jsonl:-")
        kind = _SCHEMES.get(scheme, scheme)
        if kind not in KINDS:
            raise ValueError(f'"{scheme}" is not a kind of url that streamer knows; it knows {", ".join(KINDS)}')
        if kind == "sqlite" and not re.match("/.", rest):
            raise ValueError("an SQLite url is sqlite:///relative/path or sqlite:////absolute/path")
        if kind == "jsonl" and not re.match("/.", rest):
            raise ValueError("a jsonl url is jsonl:///relative/path or jsonl:////absolute/path; jsonl:- stands for standard output")
        if kind == "mysql":
            MysqlAddress.parse(url)
        if kind == "postgresql" and not _POSTGRES_URL.fullmatch(url):
            raise ValueError(f"is not postgresql://USER:PASSWORD@HOST:PORT/DATABASE?OPTION=VALUE; {_ENCODE}")
        return url

    @model_validator(mode="after")
    def _capture_of_sources(self) -> Self:
        if self.capture != "auto" and self.kind not in SOURCE_KINDS:
            raise ValueError(f"capture means something for a PostgreSQL node only, and this one is {self.kind}; remove it")
        return self

    @model_validator(mode="after")
    def _schemas_of_mysql(self) -> Self:
        if self.schemas != "prefix" and self.kind != "mysql":
            raise ValueError(f"schemas means something for a MySQL or MariaDB node only, and this one is {self.kind}")
        return self

    @model_validator(mode="after")
    def _files_of_jsonl(self) -> Self:
        for key in ("rotate_mb", "progress"):
            if getattr(self, key) is not None and self.kind != "jsonl":
                raise ValueError(f"{key} means something for a jsonl node only, and this one is {self.kind}")
        if self.rotate_mb is not None and self.standard_output:
            raise ValueError("rotate_mb means something for files only, and this is standard output")
        return self

"""Databases of Bucardo's as nodes: their urls, without passwords.

The trap: a url holds `${NAME}` for the password, and what stands in the environment is put there as it is; so a password with an @
or a % must be encoded in the environment, and the report says so.

Bucardo makes its DSNs in bucardo.db_getconn: a dbdsn takes the place of everything, a service may give the rest.
https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import quote

from streamer.bucardo.control import Control, Database
from streamer.bucardo.names import Names
from streamer.bucardo.notes import Notes, Variable, listed

_NO_SINK: Final = (
    "streamer writes to PostgreSQL, MySQL, MariaDB, SQLite and files of JSON lines; from such a file (docs/events.md) a program of "
    "yours can write there"
)
_ALIASES: Final = {
    "db": "dbname",
    "database": "dbname",
    "pass": "password",
    "passwd": "password",
    "pwd": "password",
    "username": "user",
}


@dataclass(frozen=True, slots=True)
class NodeDraft:
    """A node as it will stand in the file."""

    name: str
    database: Database
    url: str
    #: why it is written as a comment; empty if it is a node
    left_out: str = ""


def drafts(control: Control, notes: Notes) -> dict[str, NodeDraft]:
    """Return the nodes by the names of Bucardo's databases."""
    names = Names()
    found = {name: _draft(database, names.take(name), control, notes) for name, database in control.databases.items()}
    for name, draft in found.items():
        thing = f'db "{name}"'
        if draft.name != name:
            notes.add("different", thing, f'is node "{draft.name}": names here are lower-case letters, digits and _, at most 25')
        if draft.left_out:
            notes.add("left out", thing, draft.left_out)
        if draft.database.status == "stalled":
            notes.add("different", thing, "is stalled: Bucardo waits for it, and so does streamer, by itself and for any node")
    return found


def _draft(database: Database, name: str, control: Control, notes: Notes) -> NodeDraft:
    draft = NodeDraft(name, database, "")
    try:
        url, password = _url(database, name, control, notes)
    except ValueError as reason:
        return replace(draft, left_out=str(reason))
    if password:
        notes.variables.append(Variable(_variable(name), database.name, quote(password, safe="") != password))
    inactive = "is inactive; when it is in use again, take the comment away, here and in its syncs"
    return replace(draft, url=url, left_out=inactive if database.status == "inactive" else "")


def _variable(node: str) -> str:
    return f"{node.upper()}_PASSWORD"


def _url(database: Database, name: str, control: Control, notes: Notes) -> tuple[str, str]:
    """The url, and the password that `${NAME}` in it stands for. Raises ValueError where there can be none."""
    thing = f'db "{database.name}"'
    if database.flat:
        notes.add(
            "different",
            thing,
            "is a directory of files of SQL, one for each run; here it is a file of JSON lines, one for each change "
            "(docs/events.md), and whatever loads those files has to read JSON",
        )
        path = f"{control.flatfile_dir.rstrip('/')}/{name}.jsonl".removeprefix("./")
        _relative(path, thing, notes)
        return _file_url("jsonl", path), ""
    if database.kind == "sqlite":
        _relative(database.dbname, thing, notes)
        return _file_url("sqlite", database.dbname), ""
    values = _values(database)
    password = values.pop("password", "")
    if any("pass" in key and key != "passfile" for key in values):
        raise ValueError("has a second password, that of its key, in its DSN; write its url by hand")
    if database.kind == "postgres":
        if elsewhere := [values[key] for key in ("service", "passfile") if key in values]:
            notes.add("different", thing, f"{listed(elsewhere)} is looked for on the machine of streamer")
        return _postgres_url(values, f"${{{_variable(name)}}}" if password else ""), password
    if database.kind in ("mysql", "mariadb"):
        if more := sorted(values.keys() - {"host", "port", "dbname", "user"}):
            notes.add("by hand", thing, f"{', '.join(more)} of its DSN: say it as options of the url (docs/mysql.md)")
        return _mysql_url(database.kind, values, f"${{{_variable(name)}}}" if password else ""), password
    raise ValueError(f"is {database.kind}; {_NO_SINK}")


def _values(database: Database) -> dict[str, str]:
    """The parts of the DSN that Bucardo would connect with, as libpq calls them."""
    if database.dsn:
        return _parsed(re.sub(r"^dbi:\w+:", "", database.dsn, flags=re.IGNORECASE))
    own = {
        "dbname": database.dbname,
        "host": database.host,
        "port": database.port,
        "service": database.service,
        "user": database.user,
        "password": database.password,
        "passfile": "" if database.password else database.passfile,
    }
    return {key: value for key, value in own.items() if value} | _parsed(database.options)


def _parsed(dsn: str) -> dict[str, str]:
    values = {}
    for part in re.split(r"[;\s]+", dsn.strip()) if dsn.strip() else ():
        key, equals, value = part.partition("=")
        if part and not equals:
            raise ValueError("has a DSN that is not NAME=VALUE;NAME=VALUE; write its url by hand")
        if part:
            values[_ALIASES.get(key.lower(), key.lower())] = value.strip("'")
    return values


def _postgres_url(values: Mapping[str, str], password: str) -> str:
    rest = dict(values)
    user, database = rest.pop("user", ""), rest.pop("dbname", "")
    place = ""
    if re.fullmatch(r"[\w.-]+|[0-9a-fA-F:]+", rest.get("host", "")):  # else a directory of sockets, or several hosts
        host, port = rest.pop("host"), rest.pop("port", "")
        place = (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")
    options = "&".join(f"{key}={_encoded(value)}" for key, value in rest.items())
    return f"postgresql://{_login(user, password)}{place}/{_encoded(database)}" + (f"?{options}" if options else "")


def _mysql_url(scheme: str, values: Mapping[str, str], password: str) -> str:
    if not values.get("dbname"):
        raise ValueError("names no database; write its url by hand")
    port = f":{values['port']}" if values.get("port") else ""
    return f"{scheme}://{_login(values.get('user', ''), password)}{values.get('host', '')}{port}/{_encoded(values['dbname'])}"


def _login(user: str, password: str) -> str:
    login = _encoded(user) + (f":{password}" if password else "")
    return f"{login}@" if login else ""


def _encoded(text: str) -> str:
    return quote(text, safe="")


def _file_url(scheme: str, path: str) -> str:
    return f"{scheme}:///{path}"


def _relative(path: str, thing: str, notes: Notes) -> None:
    if not path.startswith("/"):
        notes.add("different", thing, f'"{path}" is looked for where streamer is started')

"""streamer as a role that may do what docs/installation.md grants, and nothing else, instead of as a superuser.

With STREAMER_LEAST_PRIVILEGE in the environment every database of a test is prepared with the statements of the page, read from the
page itself, and configs reach it as the role `streamer`. What tests do to a database by themselves they go on to do as the
superuser. The name of a database says what it is: `source`, `target`, or else both.
The trap: tests make tables as the superuser, and the page speaks of tables that belong to an application. So an event trigger
gives each new table of a source to the role `shop`, and repeats on a target what the page grants on all tables of a schema.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from psycopg import sql

if TYPE_CHECKING:
    from tests.servers import Database

PAGE: Final = Path(__file__).parents[1] / "docs/installation.md"
SWITCH: Final = "STREAMER_LEAST_PRIVILEGE"
PASSWORD: Final = "choose-one"
SECTIONS: Final = {"source": "On a source", "target": "On a target"}
OWNER: Final = """
    FOR made IN
        SELECT object_type AS kind, object_identity AS name FROM pg_event_trigger_ddl_commands() c
        WHERE schema_name IS DISTINCT FROM 'pg_temp' AND (object_type IN ('schema', 'table') OR object_type = 'sequence'
            AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.objid = c.objid AND d.deptype IN ('a', 'i')))
    LOOP
        EXECUTE format('ALTER %s %s OWNER TO shop', made.kind, made.name);
    END LOOP;
"""
GRANTS: Final = """
    FOR made IN SELECT nspname FROM pg_namespace WHERE nspname !~ '^(pg_|information_schema$|dba$|streamer$)' LOOP
        EXECUTE replace({}, 'SCHEMA public', format('SCHEMA %I', made.nspname));
    END LOOP;
"""
HAND_OVER: Final = """
CREATE SCHEMA dba;
CREATE FUNCTION dba.hand_over() RETURNS event_trigger LANGUAGE plpgsql AS $function$
DECLARE
    made record;
BEGIN
    IF current_user <> 'postgres' THEN
        RETURN;
    END IF;
    {}
END
$function$;
CREATE EVENT TRIGGER hand_over ON ddl_command_end
    WHEN TAG IN ('CREATE SCHEMA', 'CREATE SEQUENCE', 'CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO')
    EXECUTE FUNCTION dba.hand_over();
"""


def wanted() -> bool:
    """Whether streamer is to be that role."""
    return bool(os.environ.get(SWITCH))


def blocks(heading: str, language: str) -> list[str]:
    """The blocks of code in a section of the page."""
    section = PAGE.read_text(encoding="utf-8").split(f"### {heading}\n")[1].split("\n### ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


def reached(url: str) -> str:
    """The url by which a config reaches a database."""
    return url.replace("//postgres@", f"//streamer:{PASSWORD}@") if wanted() else url


def prepare(database: Database) -> None:
    """Do in a new database what the page tells a superuser to do."""
    server = database.server
    there = {name for (name,) in server.query("SELECT rolname FROM pg_roles")}
    if "shop" not in there:
        server.execute("CREATE ROLE shop")
    statements = _statements(SECTIONS.get(database.name, "On a node that is both"))
    for statement in statements:
        text = statement.replace("DATABASE shop", f'DATABASE "{database.name}"')
        database.execute(text.replace("CREATE ROLE", "ALTER ROLE") if "streamer" in there else text)
    owned = OWNER if "GRANT shop TO streamer" in statements else ""
    repeated = "; ".join(statement for statement in statements if "IN SCHEMA public" in statement)
    grants = sql.SQL(GRANTS).format(repeated).as_string() if repeated else ""
    database.execute(HAND_OVER.format(owned + grants))


def require_used(database: Database) -> None:
    """Fail if what streamer has made in the database was made by the superuser: then the test has passed us by."""
    there = database.server.query("SELECT 1 FROM pg_database WHERE datname = %s", [database.name])
    owner = "SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = 'streamer'"
    assert not there or database.query(owner) != [("postgres",)], f"{database!r} was set up by the superuser"


def _statements(heading: str) -> list[str]:
    """The first block there, without comments, psql's own commands, and the settings that servers of tests have anyway."""
    block = re.sub(r"^\\.*$|--.*$", "", blocks(heading, "sql")[0], flags=re.MULTILINE)
    found = [statement.strip() for statement in block.split(";")]
    return [statement for statement in found if statement and not statement.startswith("ALTER SYSTEM")]

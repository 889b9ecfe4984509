"""Reading a control database that is none, is too old, or may not be read: one line each, with a remedy and without a password."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from streamer.admin.import_bucardo import import_bucardo
from streamer.admin.new_file import write_new
from streamer.cli import app
from streamer.errors import ConnectError, SourceError, StreamerError, UsageError
from tests.servers import Database, PostgresServer, free_port

CONFIG = "CREATE TABLE bucardo.bucardo_config (name text, setting text, defval text, item text);"
VERSION = "INSERT INTO bucardo.bucardo_config VALUES ('bucardo_version', '{0}', '{0}')"


def refused(dsn: str, kind: type[StreamerError]) -> str:
    with pytest.raises(kind) as refusal:
        import_bucardo(dsn)
    line = str(refusal.value)
    assert "s3cret" not in line
    assert refusal.value.hint
    return line


@pytest.fixture
def control(source15: Database) -> Database:
    source15.execute("CREATE SCHEMA bucardo")
    return source15


@pytest.mark.parametrize("dsn", ["postgres://u:s3cret%zz@h/b", "host=h password=s3cret x", "s3cret"])
def test_what_is_no_connection_string_is_not_repeated(dsn: str) -> None:
    assert refused(dsn, UsageError).startswith("DSN is not a connection string; ")


def test_a_server_that_does_not_answer_is_named() -> None:
    port = free_port()
    line = refused(f"postgresql://u:s3cret@127.0.0.1:{port}/bucardo", ConnectError)
    assert line.startswith("Bucardo's control database: ")
    assert f"port {port}" in line
    assert "Connection refused" in line


def test_a_wrong_password_is_told_as_such(pg15: PostgresServer, control: Database) -> None:
    pg15.execute("CREATE ROLE reader LOGIN PASSWORD 'right'")
    line = refused(pg15.url(control.name, "reader", "s3cret"), ConnectError)
    assert 'password authentication failed for user "reader"' in line


def test_the_database_is_bucardo_unless_the_dsn_says_otherwise(pg15: PostgresServer) -> None:
    assert 'database "bucardo" does not exist' in refused(pg15.url("").rstrip("/"), ConnectError)


def test_any_other_database_is_not_taken_for_it(source15: Database, control: Database) -> None:
    what = f'database "{source15.name}" is not Bucardo\'s control database: it holds '
    assert refused(source15.url, SourceError).startswith(f"{what}no schema of Bucardo's; ")
    control.execute("CREATE TABLE bucardo.bucardo_delta_targets (tablename text)")
    assert refused(source15.url, SourceError).startswith(f"{what}a database that Bucardo replicates; ")


@pytest.mark.parametrize(
    ("version", "found", "remedy"),
    [
        ("4.5.0", "Bucardo 4.5.0", "docs/from-bucardo.md"),
        ("4.99.7", "Bucardo 4.99.7", "bucardo upgrade"),
        ("", "a Bucardo that tells no version", "docs/from-bucardo.md"),
    ],
)
def test_another_version_is_named_and_what_to_do(control: Database, version: str, found: str, remedy: str) -> None:
    control.execute(CONFIG)
    control.execute(VERSION.format(version) if version else "SELECT 1")
    line = refused(control.url, SourceError)
    assert line.startswith(f'database "{control.name}" is of {found}, and only Bucardo 5 is read')
    assert remedy in line


def test_a_table_that_is_missing_wants_an_upgrade(control: Database) -> None:
    control.execute(CONFIG)
    control.execute(VERSION.format("5.0.0"))
    assert 'lacks the table "bucardo.bucardo_custom_trigger" of Bucardo 5.0.0; bring it up to date: bucardo upgrade' in refused(
        control.url, SourceError
    )


def test_a_role_that_may_not_read_is_told_the_grants_and_they_do(pg15: PostgresServer, control: Database) -> None:
    pg15.execute("CREATE ROLE \"Re ader\" LOGIN PASSWORD 's3cret'")
    control.execute(CONFIG)
    control.execute(VERSION.format("4.0.0"))
    url = pg15.url(control.name, "Re ader", "s3cret")
    line = refused(url, SourceError)
    assert line.startswith(
        'role "Re ader" may not read Bucardo\'s control database: permission denied for schema bucardo; as its owner: '
    )
    for grant in line.split("as its owner: ")[1].split("; "):
        control.execute(grant)
    assert "is of Bucardo 4.0.0" in refused(url, SourceError)


def test_a_file_that_exists_is_not_overwritten_unless_that_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "streamer.toml"
    write_new("one", file, force=False)
    with pytest.raises(UsageError, match=r'streamer\.toml" exists already; give another name, or overwrite it with --force'):
        write_new("two", file, force=False)
    assert file.read_text() == "one"
    write_new("two", file, force=True)
    assert file.read_text() == "two"
    with pytest.raises(UsageError, match="cannot be written: No such file or directory"):
        write_new("one", tmp_path / "missing" / "file", force=False)


def test_an_empty_control_database_gives_no_sync_and_exit_code_1(control: Database) -> None:
    control.execute(CONFIG)
    control.execute(VERSION.format("5.6.0"))
    for table, columns in {
        "bucardo_custom_trigger": "goat int",
        "customcode": "id int, name text",
        "customcode_map": "code int",
        "customcols": "id int",
        "customname": "id int",
        "db": "name text",
        "dbmap": "db text",
        "goat": "id int",
        "herdmap": "herd text",
        "sync": "name text",
    }.items():
        control.execute(f"CREATE TABLE bucardo.{table} ({columns})")
    done = CliRunner().invoke(app, ["import-bucardo", control.url, "--json"])
    assert done.exit_code == 1
    assert '"notes": []' in done.output
    assert str(done.exception) == "no sync is left that streamer can run; the report tells why each was left out"

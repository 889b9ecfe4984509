"""The commands on a MariaDB target: setup makes it, check says what is wrong with it, teardown leaves nothing of ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest

from streamer.admin.check import check
from streamer.admin.run import run
from streamer.admin.setup import setup
from streamer.admin.status import status
from streamer.admin.tables import tables
from streamer.admin.teardown import teardown
from streamer.config import Config
from streamer.errors import ConnectError, SchemaError
from streamer.sinks.mysql_ddl import OWN_TABLES
from tests.configs import make_config
from tests.mysql_servers import MysqlDatabase
from tests.servers import Database

TABLES = """
CREATE TABLE t (id int PRIMARY KEY, name text NOT NULL, at timestamptz DEFAULT now());
INSERT INTO t SELECT n, 'name ' || n FROM generate_series(1, 3) AS n;
CREATE TABLE log (line text)
"""
RIGHTS = "SELECT, INSERT, UPDATE, DELETE, CREATE, DROP, CREATE TEMPORARY TABLES"


@dataclass
class User:
    """A user of the target who may do what docs/mysql.md says, and no more."""

    database: MysqlDatabase
    password: str = "it's: 50%/@"

    @property
    def url(self) -> str:
        return self.database.server.url(self.database.name, "streamer", self.password)

    def grant(self, rights: str, on: str = "shop.*") -> None:
        self.database.execute(f"GRANT {rights} ON {on} TO streamer@'127.0.0.1'")


@pytest.fixture
def user(mariadb: MysqlDatabase) -> Iterator[User]:
    user = User(mariadb)
    mariadb.execute("CREATE USER streamer@'127.0.0.1' IDENTIFIED BY %s", [user.password])
    try:
        yield user
    finally:
        mariadb.server.start()
        mariadb.execute("DROP USER streamer@'127.0.0.1'")
        mariadb.execute("SET GLOBAL innodb_flush_log_at_trx_commit = 1")
        mariadb.execute("SET GLOBAL local_infile = 1")


@pytest.fixture
def config(source15: Database, user: User) -> Config:
    source15.execute(TABLES)
    user.grant(RIGHTS)
    return make_config({"a": source15.url, "m": user.url})


def set_up(config: Config) -> list[str]:
    said: list[str] = []
    setup(config, None, said.append)
    return [line for line in said if line.startswith("m:")]


def found(config: Config) -> list[str]:
    """What check says of the target."""
    return [
        f"{f.severity}: {f.object}: {f.reason}; {f.remedy}" for f in check(config) if 'node "m"' in f.object or 'on "m"' in f.object
    ]


def test_setup_run_status_and_teardown_with_the_documented_rights(
    config: Config, source15: Database, mariadb: MysqlDatabase
) -> None:
    before = mariadb.query("SHOW TABLES")
    assert {t.table: t.targets["m"] for t in tables(config, None)[0]} == {
        "public.t": "will be created, copy, then stream",
        "public.log": "will be created, copy, then inserts only",
    }
    assert set_up(config) == [
        "m: created tables streamer_progress, streamer_copy, streamer_copied_part, streamer_quarantine",
        "m: created table `shop`.`log`",
        "m: created table `shop`.`t`",
    ]
    assert set_up(config) == [f'm: kept database "shop" on 127.0.0.1:{mariadb.server.port}']
    assert run(config, sync=None, source=None, once=True) == []
    source15.execute("UPDATE t SET name = 'new' WHERE id = 2; DELETE FROM t WHERE id = 3; INSERT INTO log VALUES ('ä €')")
    assert run(config, sync=None, source=None, once=True) == []
    assert mariadb.query("SELECT id, name FROM t ORDER BY id") == [(1, "name 1"), (2, "new")]
    assert mariadb.query("SELECT * FROM log") == [("ä €",)]
    assert {t.targets["m"] for t in tables(config, None)[0]} == {"stream", "inserts only"}
    (line,) = status(config).edges
    assert (line.state, line.error) == ("not running", None)
    assert line.position == mariadb.query("SELECT position FROM streamer_progress")[0][0]
    said: list[str] = []
    assert teardown(config, None, force=False, confirm=lambda lines: True, say=said.append) == []
    assert 'm: removed progress of sync "shop"' in said
    assert "m: removed tables streamer_progress, streamer_copy, streamer_copied_part, streamer_quarantine" in said
    assert mariadb.query("SHOW TABLES") == [*before, ("log",), ("t",)]


@pytest.mark.parametrize("gone", [OWN_TABLES[1:], OWN_TABLES[:1]])
def test_teardown_goes_on_where_another_one_was_broken_off(source15: Database, mariadb: MysqlDatabase, gone: Sequence[str]) -> None:
    source15.execute(TABLES)
    config = make_config({"a": source15.url, "m": mariadb.url})
    setup(config, None, lambda line: None)
    mariadb.execute(f"DROP TABLE {', '.join(gone)}")
    assert teardown(config, None, force=False, confirm=lambda lines: True, say=lambda line: None) == []
    assert mariadb.query("SHOW TABLES LIKE 'streamer%'") == []


def test_check_has_nothing_to_say_against_what_setup_has_made(config: Config, mariadb: MysqlDatabase) -> None:
    set_up(config)
    (line,) = found(config)
    assert line.startswith(f'ok: node "m": is {"MySQL" if mariadb.server.is_mysql else "MariaDB"} ')


def test_check_tells_what_is_missing_before_setup(config: Config) -> None:
    said = "\n".join(found(config))
    assert 'warning: node "m": has no table `shop`.`t` for "public.t"; run: streamer setup' in said


def test_check_tells_what_was_altered_by_hand(config: Config, mariadb: MysqlDatabase) -> None:
    set_up(config)
    mariadb.execute("ALTER TABLE t DROP COLUMN name")
    mariadb.execute("ALTER TABLE t DROP PRIMARY KEY")
    mariadb.execute("ALTER TABLE log ENGINE = MyISAM")
    mariadb.execute("CREATE TRIGGER loud BEFORE INSERT ON t FOR EACH ROW SET @x = 1")
    said = "\n".join(found(config))
    assert 'error: table "public.t" on "m": has no column "name"; there: ALTER TABLE `shop`.`t` ADD COLUMN `name` LONGTEXT' in said
    assert (
        "has no primary key or unique index over (id) on the target; there: ALTER TABLE `shop`.`t` ADD PRIMARY KEY (`id`)" in said
    )
    assert "the engine MyISAM on the target, which knows no transactions; there: ALTER TABLE `shop`.`log` ENGINE = InnoDB" in said


def test_check_tells_of_columns_that_are_narrower_or_that_the_source_does_not_have(config: Config, mariadb: MysqlDatabase) -> None:
    set_up(config)
    mariadb.execute("ALTER TABLE t MODIFY name VARCHAR(100) NOT NULL, MODIFY at TIMESTAMP(6) NULL, ADD extra INT NOT NULL")
    said = found(config)
    begin = 'warning: table "public.t" on "m": column '
    assert [line.partition(", narrower")[0] for line in said if line.startswith(begin)] == [
        f'{begin}"name" is varchar(100)',
        f'{begin}"at" is timestamp(6)',
    ]
    told = "\n".join(said)
    assert "has 256 characters, more than 100; there: ALTER TABLE `shop`.`t` MODIFY `name` LONGTEXT CHARACTER SET utf8mb4" in told
    assert "else on_unrepresentable says what happens to such values" in told
    assert 'error: table "public.t" on "m": column "extra" is NOT NULL without a default, and the source does not have it' in told
    mariadb.execute("ALTER TABLE t MODIFY name LONGTEXT NOT NULL, MODIFY at DATETIME(6), MODIFY extra INT NULL")
    assert len(found(config)) == 1


def test_check_refuses_names_that_mysql_takes_for_one_before_anything_is_made(
    config: Config, source15: Database, mariadb: MysqlDatabase
) -> None:
    source15.execute('ALTER TABLE t ADD COLUMN "Name" text; CREATE TABLE bare ()')
    said = "\n".join(found(config))
    assert 'error: table "public.t" on "m": columns "name" and "Name" of table "public.t" would share a name in MySQL' in said
    assert 'table "public.bare" has no column whose values travel' in said
    with pytest.raises(SchemaError, match=r"would share a name|no column whose values travel"):
        set_up(config)
    assert ("t",) not in mariadb.query("SHOW TABLES")


def test_a_server_that_wants_keys_is_an_error_that_names_table_and_setting(config: Config, mariadb: MysqlDatabase) -> None:
    setting = "sql_require_primary_key" if mariadb.server.is_mysql else "innodb_force_primary_key"
    mariadb.execute(f"SET GLOBAL {setting} = 1")
    try:
        assert f'error: table "public.log" on "m": the server makes no table without a primary key ({setting})' in "\n".join(
            found(config)
        )
        with pytest.raises(SchemaError, match=f'no table without a primary key .{setting}., and "public.log" has none'):
            set_up(config)
    finally:
        mariadb.execute(f"SET GLOBAL {setting} = 0")


def test_a_table_with_more_columns_than_a_row_holds_is_named(config: Config, source15: Database) -> None:
    source15.execute(f"CREATE TABLE wide (id int PRIMARY KEY, {', '.join(f'c{i} text' for i in range(900))})")
    with pytest.raises(SchemaError, match=r'table "public\.wide" is refused: node "m": Row size too large.*; exclude it,'):
        set_up(config)


def test_setup_tells_what_it_has_made_before_it_failed(config: Config, mariadb: MysqlDatabase, user: User) -> None:
    mariadb.execute("CREATE VIEW t AS SELECT 1 AS id")
    said: list[str] = []
    with pytest.raises(SchemaError, match=r'"public\.t" is a view'):
        setup(config, None, said.append)
    assert "m: created table `shop`.`log`" in said
    mariadb.execute("DROP VIEW t")


def test_check_tells_of_triggers_to_who_may_see_them(config: Config, mariadb: MysqlDatabase, user: User) -> None:
    set_up(config)
    mariadb.execute("CREATE TRIGGER loud BEFORE INSERT ON t FOR EACH ROW SET @x = 1")
    user.grant("TRIGGER")
    assert "has triggers, which fire for the rows that streamer writes: loud; there: DROP TRIGGER `loud`" in "\n".join(
        found(config)
    )


def test_check_tells_of_keys_that_may_collide(config: Config, source15: Database, mariadb: MysqlDatabase) -> None:
    source15.execute("CREATE TABLE words (word varchar(40) PRIMARY KEY)")
    mariadb.execute("CREATE TABLE words (word VARCHAR(40) CHARACTER SET latin1 PRIMARY KEY) ENGINE = InnoDB")
    assert 'warning: table "public.words" on "m": key column "word" has the collation latin1_swedish_ci' in "\n".join(found(config))


def test_check_tells_what_the_server_would_lose(config: Config, mariadb: MysqlDatabase) -> None:
    mariadb.execute("SET GLOBAL innodb_flush_log_at_trx_commit = 2")
    mariadb.execute("SET GLOBAL local_infile = 0")
    said = "\n".join(found(config))
    assert 'warning: node "m": loses commits when it crashes (innodb_flush_log_at_trx_commit = 2)' in said
    assert 'warning: node "m": does not allow LOAD DATA LOCAL' in said


def test_check_names_the_rights_that_are_missing(source15: Database, user: User) -> None:
    source15.execute(TABLES)
    user.database.execute("CREATE TABLE t (id INT PRIMARY KEY, name TEXT, at DATETIME(6)) ENGINE = InnoDB")
    user.grant("SELECT")
    said = "\n".join(found(make_config({"a": source15.url, "m": user.url})))
    assert f"there, as an administrator: GRANT {RIGHTS} ON `shop`.* TO 'streamer'@'127.0.0.1'" in said
    assert "there, as an administrator: GRANT SELECT, INSERT, UPDATE, DELETE ON `shop`.`t` TO 'streamer'@'127.0.0.1'" in said


def test_the_grants_that_are_told_for_databases_of_schemas_are_enough(
    source15: Database, user: User, mariadb: MysqlDatabase
) -> None:
    source15.execute('CREATE SCHEMA "odd sales"; CREATE TABLE "odd sales".orders (id int PRIMARY KEY)')
    user.grant(RIGHTS)
    config = with_databases(make_config({"a": source15.url, "m": user.url}))
    try:
        with pytest.raises(SchemaError) as caught:
            set_up(config)
        assert caught.value.hint == f"there, as an administrator: GRANT {RIGHTS} ON `odd sales`.* TO 'streamer'@'127.0.0.1'"
        (remedy,) = (
            line.partition("administrator: ")[2] for line in found(config) if "database `odd sales` does not exist" in line
        )
        for statement in remedy.split("; "):
            mariadb.execute(statement)
        assert "m: created table `odd sales`.`orders`" in set_up(config)
    finally:
        mariadb.execute("DROP DATABASE IF EXISTS `odd sales`")


def with_databases(config: Config) -> Config:
    """The config with a database for each schema."""
    node = config.nodes["m"].model_copy(update={"schemas": "database"})
    return config.model_copy(update={"nodes": {**config.nodes, "m": node}})


def test_two_names_for_one_database_are_told(source15: Database, mariadb: MysqlDatabase) -> None:
    source15.execute(TABLES)
    config = make_config({"a": source15.url, "m": mariadb.url, "n": mariadb.url.replace("mysql:", "mariadb:")})
    assert 'nodes "m" and "n" are the same database' in [f.reason for f in check(config)]


@pytest.mark.parametrize(
    ("url", "reason", "remedy"),
    [
        (
            "mysql://streamer:wrong@127.0.0.1:{port}/shop",
            "Access denied for user 'streamer'",
            "correct user and password in nodes.m",
        ),
        ("mysql://root@127.0.0.1:{port}/nothing", "Unknown database 'nothing'", "there: CREATE DATABASE `nothing`"),
        ("mysql://root@127.0.0.1:1/shop", "Can't connect to MySQL server", "start that server, or correct host and port"),
        (
            "mysql://root@localhost/shop?unix_socket=/nowhere/sock",
            "/nowhere/sock: No such file or directory",
            "correct nodes.m.url",
        ),
        ("mysql://root@127.0.0.1:{port}/shop?ssl_mode=required", "SSL is required", "let the server offer TLS, or set ssl_mode"),
        ("mysql://root@127.0.0.1:{port}/shop?ssl_ca=/nowhere.pem", "No such file or directory", "correct nodes.m.url"),
    ],
)
def test_a_server_that_cannot_be_reached_is_an_error_with_a_remedy(
    source15: Database, user: User, url: str, reason: str, remedy: str
) -> None:
    if reason == "SSL is required" and user.database.server.is_mysql:
        pytest.skip("a server of MySQL offers TLS")
    source15.execute(TABLES)
    config = make_config({"a": source15.url, "m": url.format(port=user.database.server.port)})
    with pytest.raises(ConnectError) as caught:
        set_up(config)
    assert reason in caught.value.message
    assert remedy in caught.value.hint
    assert "wrong" not in str(caught.value)


def test_a_unix_socket_will_do(source15: Database, mariadb: MysqlDatabase) -> None:
    source15.execute(TABLES)
    config = make_config({"a": source15.url, "m": f"mariadb://root@localhost/shop?unix_socket={mariadb.server.socket}"})
    set_up(config)
    assert run(config, sync=None, source=None, once=True) == []
    assert mariadb.query("SELECT count(*) FROM t") == [(3,)]


def test_schemas_may_be_databases(source15: Database, mariadb: MysqlDatabase) -> None:
    source15.execute("CREATE SCHEMA sales; CREATE TABLE sales.orders (id int PRIMARY KEY); INSERT INTO sales.orders VALUES (7)")
    config = with_databases(make_config({"a": source15.url, "m": mariadb.url}))
    try:
        assert "m: created table `sales`.`orders`" in set_up(config)
        assert run(config, sync=None, source=None, once=True) == []
        assert mariadb.query("SELECT * FROM sales.orders") == [(7,)]
    finally:
        mariadb.execute("DROP DATABASE IF EXISTS sales")

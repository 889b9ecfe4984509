"""docs/from-bucardo.md, typed into a shell as it stands, where a real Bucardo keeps pgbench on three databases in step; and what
the importer makes of everything else that Bucardo's command can say."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from streamer import config, topology
from streamer.admin.import_bucardo import import_bucardo
from streamer.bucardo.notes import Note
from streamer.model import TableName
from tests.acceptance.pgbench import BALANCES, fill_with_pgbench
from tests.acceptance.shell import Block, Shell, page, shell
from tests.bucardo import Bucardo, missing
from tests.conftest import Databases
from tests.servers import SUPERUSER, Database, PostgresServer, free_port
from tests.waiting import wait_for, wait_for_equal

PAGE: Final = "docs/from-bucardo.md"
PASSWORD: Final = "of-bucardo"
SEQUENCE: Final = "SELECT last_value FROM pgbench_history_id_seq"
OURS: Final = """
SELECT slot_name FROM pg_replication_slots WHERE database = current_database()
UNION ALL SELECT nspname FROM pg_namespace WHERE nspname = 'streamer'
"""
THEIRS: Final = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'bucardo%'"


@pytest.fixture
def bucardo(databases: Databases, pg15: PostgresServer, tmp_path: Path) -> Iterator[Bucardo]:
    """An installation that knows no databases yet; they go after its own."""
    if lacking := missing(pg15):
        pytest.skip(lacking)
    databases.create(pg15, "bucardo").drop()
    directory = tmp_path / "bucardo"
    directory.mkdir()
    made = Bucardo(pg15, directory)
    try:
        yield made
    finally:
        made.close()


# -- the page ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def shops(databases: Databases, pg15: PostgresServer, pg18: PostgresServer, bucardo: Bucardo) -> dict[str, Database]:
    """Three databases and one that only receives, equal from the start, under Bucardo's care, which is at work."""
    found = {name: databases.create(pg18 if name == "b" else pg15, f"shop_{name}") for name in "abcd"}
    pg15.execute(f"ALTER ROLE bucardo PASSWORD '{PASSWORD}'")
    for name, database in found.items():
        fill_with_pgbench(database)
        more = ["user=bucardo", f"pass={PASSWORD}"] if name == "c" else []
        bucardo.add_database(name, database, *more)
    bucardo.command("add", "all", "tables", "db=a", "relgroup=pgbench")
    bucardo.command("add", "all", "sequences", "db=a", "relgroup=pgbench")
    bucardo.command("add", "sync", "shop", "relgroup=pgbench", "dbs=a:source,b:source,c:source,d:target")
    bucardo.start("shop")
    return found


class Reader:
    """Somebody who does what stands below a heading of the page."""

    def __init__(self, typing: Shell, directory: Path, bucardo: Bucardo, shops: dict[str, Database]) -> None:
        self._typing = typing
        self._config = directory / "streamer.toml"
        self._places = {
            "bucardo@10.0.0.9:5432": f"{SUPERUSER}@127.0.0.1:{bucardo.control.server.port}",
            "10.0.0.1:5432": f"127.0.0.1:{shops['a'].server.port}",
            "10.0.0.2:5432": f"127.0.0.1:{shops['b'].server.port}",
        }

    def do(self, heading: str) -> None:
        blocks = [block for block in page(PAGE) if block.heading == heading]
        assert blocks, heading
        for block in blocks:
            self._type(block)

    def _type(self, block: Block) -> None:
        text = block.text
        if block.language == "toml":
            assert text in self._config.read_text()
            return
        for place, here in self._places.items():
            text = text.replace(place, here)
        self._typing.follow(text)
        if "import-bucardo" in text:
            with self._config.open("a") as config:
                config.write(f'[http]\nlisten = "127.0.0.1:{free_port()}"\n')


def write_at_once(*shops: Database) -> None:
    """Let pgbench write 100 transactions to each of them, at the same time."""
    pgbench = [str(shops[0].server.bin_dir / "pgbench"), "-n", "-c", "2", "-t", "50"]
    running = [subprocess.Popen([*pgbench, shop.url], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for shop in shops]
    assert [process.wait(60) for process in running] == [0] * len(shops)


def wait_until_equal(shops: dict[str, Database]) -> None:
    for query in BALANCES:
        wait_for(lambda query=query: len({str(one.query(query)) for one in shops.values()}) == 1, f"equal rows: {query}")  # type: ignore[misc]


def test_three_databases_of_bucardo_go_over_to_streamer_and_back(
    tmp_path: Path, bucardo: Bucardo, shops: dict[str, Database]
) -> None:
    with shell(tmp_path, bucardo.control.server.bin_dir) as typing:
        command = tmp_path / "bin/bucardo"
        command.write_text(f'#!/bin/sh\ncd {bucardo.directory}\nexport HOME=$PWD\nexec {shlex.join(_real(bucardo))} "$@"\n')
        command.chmod(0o755)
        reader = Reader(typing, tmp_path, bucardo, shops)
        reader.do("Import")
        config = (tmp_path / "streamer.toml").read_text()
        assert PASSWORD not in config + (tmp_path / "report").read_text()
        assert "${C_PASSWORD}" in config
        write_at_once(shops["a"])
        reader.do("Switch over")
        write_at_once(shops["a"], shops["b"], shops["c"])
        typing.follow('$ streamer kick shop --wait 60\nsync "shop" is done\n')
        wait_until_equal(shops)
        highest = max(shops[name].query(SEQUENCE)[0][0] for name in "abc")
        wait_for_equal(lambda: shops["d"].query(SEQUENCE), [(highest,)], "the sequence to follow")
        counted = "SELECT count(*), count(DISTINCT id % 3) FROM pgbench_history WHERE id > 1000000"
        assert shops["d"].query(counted) == [(300, 3)]
        reader.do("The way back")
    for shop in shops.values():
        assert shop.query(OURS) == []
    write_at_once(shops["a"])
    wait_until_equal(shops)
    assert all(shops[name].query(THEIRS) != [(0,)] for name in "abc")


def _real(bucardo: Bucardo) -> list[str]:
    """The command with its options, wherever it is."""
    program, *options = bucardo.program
    return [shutil.which(program) or program, *options]


# -- everything else ---------------------------------------------------------------------------------------------------------------

TABLES: Final = """
CREATE TABLE orders (id integer PRIMARY KEY, name text, secret text);
CREATE TABLE "Odd *" (id integer PRIMARY KEY);
CREATE SEQUENCE free;
"""
COMMANDS: Final = """
add db file type=sqlite dbname=/srv/shop.sqlite --force
add db maria type=mariadb dbname=shop host=10.0.0.7 user=shop pass=of@maria --force
add db mongo type=mongo dbname=shop host=10.0.0.8 --force
add all tables db=Main relgroup=shop
add sequence public.free db=Main relgroup=shop
add sync oneway relgroup=shop dbs=Main:source,b:target,maria:target,mongo:target onetimecopy=2
add sync masters relgroup=shop dbs=Main:source,c:source,file:target "conflict_strategy=c Main"
add sync whole tables=public.orders dbs=b:source,whole:fullcopy
add sync twice relgroup=shop dbs=c:source,b:target autokick=0 "checktime=10 minutes"
add sync idle relgroup=shop dbs=c:source,whole:target status=inactive
add customname public.orders crm.clients db=b sync=oneway
add customcols public.orders "SELECT id, name AS full_name" db=b
add customcols public.orders "SELECT id, upper(name) AS name" db=maria
add customcode longest whenrun=conflict sync=masters src_code=code
add customcode mail whenrun=after_sync relation=public.orders src_code=code
update db b makedelta=1
"""


def test_what_the_real_command_writes_is_read_as_it_was_meant(
    tmp_path: Path, bucardo: Bucardo, databases: Databases, pg15: PostgresServer
) -> None:
    for name in ("Main", "b", "c", "whole"):
        database = databases.create(pg15, f"shop_{name.lower()}")
        database.execute(TABLES)
        bucardo.add_database(name, database)
    (bucardo.directory / "code").write_text("return;\n")
    for line in COMMANDS.strip().splitlines():
        bucardo.command(*shlex.split(line))
    bucardo.control.execute("ALTER DATABASE bucardo SET datestyle = German")
    bucardo.control.execute("ALTER DATABASE bucardo SET intervalstyle = sql_standard")
    found = import_bucardo(bucardo.control.url)
    file = tmp_path / "streamer.toml"
    file.write_text(found.config)
    read = config.load(file, {"MARIA_PASSWORD": "of%40maria"})
    topology.check(read)
    assert [(one.name, one.encoded) for one in found.notes.variables] == [("MARIA_PASSWORD", True)]
    assert "of@maria" not in found.config + found.notes.as_text() + found.notes.as_json()
    assert read.nodes["maria"].mysql.password == "of@maria"
    assert read.nodes["file"].url == "sqlite:////srv/shop.sqlite"
    assert set(read.nodes) == {"main", "b", "c", "whole", "file", "maria"}
    assert set(read.syncs) == {"oneway", "masters", "whole"}

    oneway, masters, whole = (read.syncs[name] for name in ("oneway", "masters", "whole"))
    assert (oneway.sources, oneway.targets, oneway.copy_rows, oneway.sequences) == (("main",), ("b", "maria"), "if-empty", True)
    assert oneway.selects(TableName("public", "Odd *"))
    assert not oneway.selects(TableName("public", "Odd one"))
    shape = oneway.shapes_for("b")[TableName("public", "orders")]
    assert (str(shape.target), shape.columns, shape.renamed) == ("crm.clients", frozenset({"id", "name"}), {"name": "full_name"})
    assert oneway.shapes_for("maria")[TableName("public", "orders")].transform == "python:from_bucardo:public_orders"
    assert (masters.sources, masters.targets, masters.conflict) == (("main", "c"), ("file",), "python:from_bucardo:longest")
    assert (whole.run, whole.copies_whole(TableName("public", "orders"))) == ("manual", True)

    handed_on = 'what sync "oneway" brings there goes on by sync "whole", as here always'
    assert Note("same", 'db "b", makedelta', handed_on) in found.notes.notes
    assert "# [syncs.idle]" in found.config
    left_out = {note.object: note.text for note in found.notes.notes if note.kind == "left out"}
    assert left_out['sync "twice"'].startswith('streamer refuses it: a transaction made on "')
    assert left_out['db "mongo"'].startswith("is mongo; ")
    assert {note.object for note in found.notes.notes if note.kind == "by hand"} >= {
        'customcode "longest" (conflict)',
        'customcode "mail" (after_sync)',
    }

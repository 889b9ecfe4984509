"""streamer.toml: what is read, and each thing that can be wrong with it, once, with the message that a person gets."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from streamer.config import Config, Sync, load
from streamer.errors import ConfigError
from streamer.model import TableName
from streamer.node_config import Node

NODES = """
[nodes.a]
url = "postgresql://streamer@db1/shop"
[nodes.b]
url = "postgres://db2/shop"
capture = "wal2json"
[nodes.s]
url = "sqlite:///shop.sqlite"
"""
SYNC = """
[syncs.shop]
sources = ["a"]
targets = ["b", "s"]
tables = ["public.*"]
"""
ENVIRON = {"SHOP_PASSWORD": "correct-horse"}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def write_config(text: str) -> Path:
        path = tmp_path / "streamer.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_config


def test_a_whole_config(write: Callable[[str], Path]) -> None:
    config = load(write(NODES + SYNC + '[http]\nlisten = "[::1]:80"'), {})
    assert [(name, node.kind, node.capture) for name, node in config.nodes.items()] == [
        ("a", "postgresql", "auto"),
        ("b", "postgresql", "wal2json"),
        ("s", "sqlite", "auto"),
    ]
    sync = config.syncs["shop"]
    assert (sync.sources, sync.targets, sync.tables, sync.exclude) == (("a",), ("b", "s"), ("public.*",), ())
    assert (sync.copy_rows, sync.copy_jobs, sync.run) == ("if-empty", 2, "continuous")
    assert config.http.address == ("::1", 80)


def test_defaults_of_http(write: Callable[[str], Path]) -> None:
    assert load(write(NODES + SYNC), {}).http.address == ("127.0.0.1", 9851)


def test_a_byte_order_mark_is_passed_over(write: Callable[[str], Path]) -> None:
    assert load(write("\ufeff" + NODES + SYNC), {}).syncs


def test_urls_are_expanded_from_the_environment(write: Callable[[str], Path]) -> None:
    text = NODES.replace("streamer@db1", "streamer:${SHOP_PASSWORD}@${HOST}:5433") + SYNC
    config = load(write(text), {**ENVIRON, "HOST": "db9"})
    assert config.nodes["a"].url == "postgresql://streamer:correct-horse@db9:5433/shop"


def test_nothing_but_urls_is_expanded(write: Callable[[str], Path]) -> None:
    assert load(write(NODES + SYNC.replace("public.*", "${HOME}.*")), {"HOME": "x"}).syncs["shop"].tables == ("${HOME}.*",)


def problem_with_file(path: Path) -> str:
    """The error of loading the file, one line, with FILE for its path."""
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(path), "FILE")


def test_a_missing_file(tmp_path: Path) -> None:
    assert problem_with_file(tmp_path / "no.toml") == 'config file "FILE" does not exist; write one with: streamer init'


def test_a_directory(tmp_path: Path) -> None:
    assert problem_with_file(tmp_path) == (
        'config file "FILE" is a directory; name a file, for example: --config FILE/streamer.toml'
    )


def test_a_file_that_cannot_be_read(write: Callable[[str], Path]) -> None:
    path = write("") / "streamer.toml"
    assert problem_with_file(path) == 'config file "FILE" cannot be read: Not a directory; check its owner and mode'


@pytest.mark.parametrize("text", ["", " \n\n", "# only a comment\n"])
def test_an_empty_file(write: Callable[[str], Path], text: str) -> None:
    assert problem_with_file(write(text)) == 'config file "FILE" is empty; write one with: streamer init'


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin1.toml"
    path.write_bytes("# caf\u00e9\n".encode("latin-1"))
    assert problem_with_file(path) == 'config file "FILE" is not UTF-8 (byte 5); save it as UTF-8'


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("nodes: {a: 1}", "(at line 1, ", id="yaml"),
        pytest.param('[nodes.a]\nurl = "open', "Unterminated string", id="open string"),
        pytest.param(NODES + SYNC + SYNC, "Cannot declare ('syncs', 'shop') twice (at line 15, ", id="a table twice"),
    ],
)
def test_a_file_that_is_not_toml(write: Callable[[str], Path], text: str, problem: str) -> None:
    message = problem_with_file(write(text))
    assert message.startswith('config file "FILE" is not TOML: ')
    assert problem in message


RUN = 'syncs.shop.run: must be "continuous", "manual" or "every NUMBER UNIT" with a unit of s, m, h or d, like "every 10m"'
INTERVAL = "syncs.shop.run: the time between two runs must be at least 1s and at most 366d"
NAMES = "names are lower-case letters, digits and _, start with a letter and have 25 characters at most"
LISTEN = "http.listen: must be HOST:PORT, like 127.0.0.1:9851 or [::1]:9851"
SIZE = 'nodes.a.max_retained_wal: must be a number and a unit of kB, MB, GB or TB, like "20GB"'
TOKEN = "http.token: must be at least 12 characters of ASCII without spaces, for example of: openssl rand -hex 24"
POSTGRES_URL = (
    "nodes.a.url: is not postgresql://USER:PASSWORD@HOST:PORT/DATABASE?OPTION=VALUE; "
    "write % as %25, @ as %40, / as %2F and a space as %20 in user and password"
)


def with_url(url: str) -> str:
    return NODES.replace("postgresql://streamer@db1/shop", url) + SYNC


PROBLEMS = {
    # keys
    "unknown key at the top": (NODES + SYNC + "[htp]", 'unknown key "htp"; did you mean "http"?'),
    "unknown key at the top, like none": (NODES + SYNC + "[x]", 'unknown key "x"; known: nodes, syncs, http'),
    "mistyped key that is then missing": (
        NODES.replace("nodes", "node") + SYNC,
        'unknown key "node"; did you mean "nodes"?',
    ),
    "unknown key of a node": (NODES + 'uri = "x"\n' + SYNC, 'unknown key "nodes.s.uri"; did you mean "url"?'),
    "unknown key of a sync": (NODES + SYNC + "exclud = []", 'unknown key "syncs.shop.exclud"; did you mean "exclude"?'),
    "alias, not field name": (NODES + SYNC + 'copi = "never"', 'unknown key "syncs.shop.copi"; did you mean "copy"?'),
    "unknown key of http": (NODES + SYNC + '[http]\nlisen = ""', 'unknown key "http.lisen"; did you mean "listen"?'),
    "no syncs": (NODES, "syncs: is missing"),
    "no url": ("[nodes.a]\n" + SYNC, "nodes.a.url: is missing"),
    "no nodes in nodes": ("[nodes]\n" + SYNC, "nodes: is empty; name at least one"),
    "no syncs in syncs": (NODES + "[syncs]", "syncs: is empty; name at least one"),
    # types
    "nodes that are no table": ("nodes = 3\n" + SYNC, "nodes: must hold tables, like [nodes.NAME]"),
    "target for targets": (
        NODES + SYNC.replace("targets =", "target ="),
        'syncs.shop.target: must hold tables, like [syncs.shop.target.NAME], unless you mean "targets"',
    ),
    "table for tables": (
        NODES + SYNC.replace("tables =", "table ="),
        'syncs.shop.table: must hold tables, like [syncs.shop.table.NAME], unless you mean "tables"',
    ),
    "node that is no table": ('nodes.a = "postgresql://u:secret@h/x"\n' + SYNC, "nodes.a: must be a table, [nodes.a]"),
    "http that is no table": ("http = 9851\n" + NODES + SYNC, "http: must be a table, [http]"),
    "url that is no text": (NODES.replace('"postgres://db2/shop"', "5432") + SYNC, "nodes.b.url: must be a valid string"),
    "sources that are no list": (
        NODES + SYNC.replace('["a"]', '"a"'),
        'syncs.shop.sources: must be a list, like ["a", "b"]',
    ),
    "target that is no text": (NODES + SYNC.replace('"b", "s"', '"b", 1'), "syncs.shop.targets: must be a valid string"),
    "text for a number": (NODES + SYNC + 'copy_jobs = "4"', "syncs.shop.copy_jobs: must be a valid integer"),
    "text for truth": (NODES + SYNC + 'sequences = "on it"', "syncs.shop.sequences: must be true or false, without quotes"),
    "truth for a number": (NODES + SYNC + "copy_jobs = true", "syncs.shop.copy_jobs: must be a valid integer"),
    # values
    "too few jobs": (NODES + SYNC + "copy_jobs = 0", "syncs.shop.copy_jobs: must be greater than or equal to 1"),
    "unknown capture": (
        NODES.replace("wal2json", "triggers") + SYNC,
        "nodes.b.capture: must be 'auto', 'wal2json', 'pgoutput' or 'trigger'",
    ),
    "unknown copy": (NODES + SYNC + 'copy = "yes"', "syncs.shop.copy: must be 'never', 'if-empty' or 'always'"),
    "unknown run": (NODES + SYNC + 'run = "sometimes"', RUN),
    "run without a unit": (NODES + SYNC + 'run = "every 10"', RUN),
    "run without rest": (NODES + SYNC + 'run = "every 0s"', INTERVAL),
    "run once in a lifetime": (NODES + SYNC + 'run = "every 999999999d"', INTERVAL),
    "empty pattern": (NODES + SYNC.replace("public.*", ""), "syncs.shop.tables: a pattern is empty; write for example public.*"),
    "no tables": (NODES + SYNC.replace('"public.*"', ""), "syncs.shop.tables: is empty; name at least one"),
    "no sources": (NODES + SYNC.replace('["a"]', "[]"), "syncs.shop.sources: is empty; name at least one"),
    "name in capitals": (NODES.replace("nodes.b", "nodes.B") + SYNC, f"nodes.B: {NAMES}"),
    "name that is too long": (NODES + SYNC.replace("shop]", "s" * 26 + "]"), f"syncs.{'s' * 26}: {NAMES}"),
    "name with a line end": (NODES.replace("nodes.b", r'nodes."b\n"') + SYNC, f"nodes.b : {NAMES}"),
    "name in a list": (NODES + SYNC.replace('"b"', '"b-1"'), f"syncs.shop.targets: {NAMES}"),
    # roles
    "node that is not configured": (
        NODES.replace("nodes.b", "nodes.backup") + SYNC.replace('"b"', '"bakcup"'),
        'syncs.shop: node "bakcup" is not configured; did you mean "backup"?',
    ),
    "node like none": (NODES + SYNC.replace('"b"', '"zzz"'), 'syncs.shop: node "zzz" is not configured; known: a, b, s'),
    "source that is sqlite": (
        NODES + SYNC.replace('["a"]', '["a", "s"]').replace(', "s"]\ntables', "]\ntables"),
        'syncs.shop: node "s" is sqlite, which can only be a target',
    ),
    "node named twice": (
        NODES + SYNC.replace('"b", "s"', '"a"'),
        'syncs.shop: node "a" is named twice; a source is a target of the other sources already',
    ),
    "nothing to replicate to": (
        NODES + SYNC.replace('"b", "s"', ""),
        "syncs.shop: there is nothing to replicate to: add a target or a second source",
    ),
    # urls
    "mysql": (
        with_url("oracle://db1/shop"),
        'nodes.a.url: "oracle" is not a kind of url that streamer knows; it knows postgresql, mysql, sqlite, jsonl',
    ),
    "conninfo": (
        with_url("host=db1 password=secret"),
        "nodes.a.url: is not a url; it begins with postgresql://, mysql://, sqlite:/// or jsonl:///, or is jsonl:-",
    ),
    "sqlite without a path": (
        with_url("sqlite://shop.sqlite"),
        "nodes.a.url: an SQLite url is sqlite:///relative/path or sqlite:////absolute/path",
    ),
    "port that is no number": (with_url("postgresql://db1:secret/shop"), POSTGRES_URL),
    "password with @": (with_url("postgresql://u:se@cret@db1/shop"), POSTGRES_URL),
    "password with /": (with_url("postgresql://u:se/cret@db1/shop"), POSTGRES_URL),
    "password with / after digits": (with_url("postgresql://u:12/secret@db1/shop"), POSTGRES_URL),
    "password with %": (with_url("postgresql://u:50%secret@db1/shop"), POSTGRES_URL),
    "password with %00": (with_url("postgresql://u:secret%00@db1/shop"), POSTGRES_URL),
    "password with a space": (with_url("postgresql://u: secret@db1/shop"), POSTGRES_URL),
    "option with %": (with_url("postgresql://u@db1/shop?password=50%secret"), POSTGRES_URL),
    "IPv6 address that does not end": (with_url("postgresql://u:secret@[::1/shop"), POSTGRES_URL),
    # http
    "http on every address": (
        NODES + SYNC + '[http]\nlisten = "0.0.0.0:9851"',
        'http.token: is missing, and 0.0.0.0:9851 can be reached from other machines; write token = "${STREAMER_TOKEN}" and '
        "export STREAMER_TOKEN, or listen on 127.0.0.1",
    ),
    "http with a short token": (NODES + SYNC + '[http]\ntoken = "hunter2"', TOKEN),
    "http with a token that no header can carry": (NODES + SYNC + '[http]\ntoken = "pässword-of-mine"', TOKEN),
    "max_retained_wal without a unit": (NODES.replace("[nodes.b]", 'max_retained_wal = "20"\n[nodes.b]') + SYNC, SIZE),
    "max_retained_wal of nothing": (NODES.replace("[nodes.b]", 'max_retained_wal = "0GB"\n[nodes.b]') + SYNC, SIZE),
    "wal_guard without a limit": (
        NODES.replace("[nodes.b]", 'wal_guard = "pause"\n[nodes.b]') + SYNC,
        'nodes.a: wal_guard = "pause" needs max_retained_wal, for example "20GB"',
    ),
    "http without an address": (NODES + SYNC + '[http]\nlisten = ":9851"', LISTEN),
    "http without a port": (NODES + SYNC + '[http]\nlisten = "127.0.0.1"', LISTEN),
    "http on port 0": (NODES + SYNC + '[http]\nlisten = "127.0.0.1:0"', LISTEN),
    "http on a port that is no number": (NODES + SYNC + '[http]\nlisten = "127.0.0.1:\u00b2"', LISTEN),
    "http on a port that is too high": (NODES + SYNC + '[http]\nlisten = "localhost:65536"', LISTEN),
}


@pytest.mark.parametrize(("text", "message"), PROBLEMS.values(), ids=PROBLEMS)
def test_problem(write: Callable[[str], Path], text: str, message: str) -> None:
    said = problem_with_file(write(text))
    assert said == f'config file "FILE": {message}'
    assert "secret" not in said


@pytest.mark.parametrize("name", ["SHOP_PASSWORD", "shop-password", ""])
def test_a_variable_that_is_not_set(write: Callable[[str], Path], name: str) -> None:
    said = problem_with_file(write(with_url(f"postgresql://u:${{{name}}}@db1/shop")))
    assert said == f"nodes.a.url: environment variable {name} is not set; export {name}=…".replace("  ", " ")


@pytest.mark.parametrize("url", ["postgresql://u:${SHOP_PASSWORD@db1/shop", "postgresql://${USER}:secret${@db1/shop"])
def test_a_variable_whose_brace_is_not_closed_is_not_taken_literally(write: Callable[[str], Path], url: str) -> None:
    with pytest.raises(ConfigError) as told:
        load(write(with_url(url)), {"USER": "u"})
    assert str(told.value) == 'nodes.a.url: "${" is not closed; write ${NAME}; a value that has a ${ itself goes into a variable'


def test_a_value_of_the_environment_may_hold_anything(write: Callable[[str], Path]) -> None:
    config = load(write(with_url("postgresql://u:${SHOP_PASSWORD}@db1/shop")), {"SHOP_PASSWORD": "a${b"})
    assert config.nodes["a"].url == "postgresql://u:a${b@db1/shop"


def test_the_token_comes_from_the_environment_and_is_not_shown(write: Callable[[str], Path]) -> None:
    path = write(NODES + SYNC + '[http]\nlisten = "0.0.0.0:9851"\ntoken = "${TOKEN}"')
    http = load(path, {"TOKEN": "correct-horse-battery"}).http
    assert (http.token, http.loopback, http.url) == ("correct-horse-battery", False, "http://127.0.0.1:9851")
    assert "correct" not in repr(http)
    assert problem_with_file(path) == "http.token: environment variable TOKEN is not set; export TOKEN=…"


def shown(path: Path, environ: dict[str, str]) -> str:
    """What a person gets to see if the url of node a is not right."""
    try:
        load(path, environ)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("secret", ["p@ss", "se[cr]et", "se[cret", "se/cret", "50%off", "secr\u2100et", "ho st", "s:e:c:r"])
@pytest.mark.parametrize("url", ["postgresql://u:${PW}@db1/shop", "${PW}", "mysql://u:${PW}@db1/shop"])
def test_no_message_tells_a_secret(write: Callable[[str], Path], url: str, secret: str) -> None:
    assert secret not in shown(write(with_url(url)), {"PW": secret})


def test_syncs_and_nodes_whose_streams_would_share_a_slot(write: Callable[[str], Path]) -> None:
    """The nodes may be two databases of one cluster, where slot names are unique."""
    text = """
[nodes]
c = {url = "postgresql://db1/c"}
b_c = {url = "postgresql://db1/bc"}
[syncs]
a_b = {sources = ["c"], targets = ["b_c"], tables = ["x"]}
a = {sources = ["b_c"], targets = ["c"], tables = ["y"]}
"""
    assert problem_with_file(write(text)) == (
        'config file "FILE": sync "a_b" from "c" and sync "a" from "b_c" would share the slot "streamer_a_b_c"; rename one of them'
    )


def test_edges_lead_from_each_source_to_every_other_node() -> None:
    config = Config(
        nodes={name: Node(url=f"postgresql://{name}/shop") for name in "abt"},
        syncs={
            "mesh": Sync(sources=("a", "b"), targets=("t",), tables=("*.*",)),
            "back": Sync(sources=("t",), targets=("a",), tables=("log.*",)),
        },
    )
    assert list(config.edges()) == [
        ("mesh", "a", "b"),
        ("mesh", "a", "t"),
        ("mesh", "b", "a"),
        ("mesh", "b", "t"),
        ("back", "t", "a"),
    ]


@pytest.mark.parametrize(
    ("tables", "exclude", "table", "selected"),
    [
        (["public.*"], [], "public.orders", True),
        (["public.*"], [], "audit.orders", False),
        (["orders"], [], "public.orders", True),
        (["orders"], [], "audit.orders", False),
        (["ord*"], [], "public.orders", True),
        (["public.Orders"], [], "public.orders", False),
        (["public.order?"], [], "public.orders", True),
        (["public.[a-m]*"], [], "public.orders", False),
        (["*.orders"], [], "audit.orders", True),
        (["a.x", "b.y"], [], "b.y", True),
        (["public.*"], ["orders"], "public.orders", False),
        (["public.*"], ["public.tmp_*"], "public.tmp_1", False),
        (["public.*"], ["public.tmp_*"], "public.orders", True),
        (["*.*"], [], "streamer.progress", False),
        (["streamer.progress"], [], "streamer.progress", False),
        (["public.*"], [], "public.a.b", True),
    ],
)
def test_selection(tables: list[str], exclude: list[str], table: str, selected: bool) -> None:
    sync = Sync(sources=("a",), targets=("b",), tables=tuple(tables), exclude=tuple(exclude))
    schema, _, name = table.partition(".")
    assert sync.selects(TableName(schema, name)) is selected


def test_the_environment_of_the_process_is_the_default(write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "SHOP_PASSWORD", "correct-horse")
    assert "correct-horse" in load(write(with_url("postgresql://u:${SHOP_PASSWORD}@db1/shop"))).nodes["a"].url


@pytest.mark.parametrize(
    ("run", "interval"),
    [
        ("continuous", None),
        ("manual", None),
        ("every 1s", 1),
        ("every 90 s", 90),
        ("every 10m", 600),
        ("every 2h", 7200),
        ("every 1d", 86400),
    ],
)
def test_a_sync_runs_all_the_time_or_when_kicked_or_by_the_clock(
    write: Callable[[str], Path], run: str, interval: int | None
) -> None:
    sync = load(write(NODES + SYNC + f'run = "{run}"'), {}).syncs["shop"]
    assert (sync.interval, sync.continuous) == (interval, run == "continuous")

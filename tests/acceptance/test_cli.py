"""The command line as a user meets it: a subprocess with arguments, exit codes, output, and signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from streamer import config as config_module
from streamer.admin.init import TEMPLATE
from tests.configs import document, write_config
from tests.conftest import Pair
from tests.servers import Database
from tests.waiting import wait_for

SECRET = "Geheim-1"
SECONDS = 60  # ends a command that hangs


class Shell:
    """Runs commands in a directory of its own; `printed` is all that they ever printed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("PG")} | {"PYTHONPATH": os.getcwd()}
        self.printed = ""

    def __call__(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "streamer.cli", *arguments],
            cwd=self.directory,
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        self.printed += done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "streamer.cli", *arguments],
            cwd=self.directory,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def configure(self, values: Mapping[str, Any], name: str = "streamer.toml") -> None:
        write_config(self.directory / name, values)


@pytest.fixture
def streamer(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of an error."""
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


# -- without a server ------------------------------------------------------------------------------------------------------------


def test_the_version_is_printed(streamer: Shell) -> None:
    done = streamer("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("streamer 0.")


def test_help_lists_the_commands(streamer: Shell) -> None:
    done = streamer("--help")
    assert done.returncode == 0
    for command in ("init", "check", "tables", "setup", "teardown", "run", "status", "demo"):
        assert f"  {command} " in done.stdout


def test_help_of_80_columns_says_whole_sentences(streamer: Shell) -> None:
    streamer.environment["COLUMNS"] = "80"
    for group in ([], ["conflicts"], ["quarantine"], ["slots"], ["triggers"]):
        printed = streamer(*group, "--help").stdout
        assert [line for line in printed.partition("Commands:")[2].splitlines() if line.endswith("...")] == []


@pytest.mark.parametrize("arguments", [("nonsense",), ("run", "--nonsense"), ("setup", "--sync"), ("demo", "--seconds", "x")])
def test_wrong_usage_exits_with_2(streamer: Shell, arguments: tuple[str, ...]) -> None:
    done = streamer(*arguments)
    assert done.returncode == 2
    assert "Error: " in done.stderr or "Usage: " in done.stderr


def test_init_writes_a_config_that_loads(streamer: Shell) -> None:
    done = streamer("init")
    assert done.returncode == 0
    assert done.stdout == 'wrote "streamer.toml"\nnext: put your databases and tables into it, then run: streamer check\n'
    path = streamer.directory / "streamer.toml"
    assert path.read_text(encoding="utf-8") == TEMPLATE
    config = config_module.load(path, {"SHOP_PASSWORD": "x"})
    assert list(config.edges()) == [("shop", "a", "b")]


def test_the_defaults_that_init_shows_are_the_defaults(tmp_path: Path) -> None:
    shown = tmp_path / "shown.toml"
    keys = ("capture", "exclude", "copy", "copy_jobs", "run", "listen")
    text = TEMPLATE
    for key in keys:
        assert f"\n# {key} = " in text
        text = text.replace(f"\n# {key} = ", f"\n{key} = ")
    shown.write_text(text, encoding="utf-8")
    path = tmp_path / "hidden.toml"
    path.write_text(TEMPLATE, encoding="utf-8")
    environment = {"SHOP_PASSWORD": "x"}
    assert config_module.load(shown, environment) == config_module.load(path, environment)


def test_init_does_not_overwrite(streamer: Shell) -> None:
    (streamer.directory / "streamer.toml").write_text("mine")
    assert error_of(streamer("init")) == 'file "streamer.toml" exists already; give another name, or overwrite it with --force'
    assert (streamer.directory / "streamer.toml").read_text() == "mine"
    assert streamer("init", "--force").returncode == 0
    assert "streamer check --config other.toml" in streamer("init", "other.toml").stdout


@pytest.mark.parametrize("buffered", ["", "1"])
def test_output_to_a_full_disk_is_one_line(streamer: Shell, buffered: str) -> None:
    environment = streamer.environment | {"PYTHONUNBUFFERED": buffered}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "streamer.cli", "--help"], env=environment, stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.stderr == b"error: standard output cannot be written: No space left on device; make room there\n"
    assert done.returncode == 1


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_a_closed_output_is_no_bug(streamer: Shell, closed: str) -> None:
    write_config(streamer.directory / "streamer.toml", document({"a": "postgresql://127.0.0.1:1/x", "b": "sqlite:///y"}))
    command = f"{sys.executable} -m streamer.cli status {closed}"
    done = subprocess.run(command, shell=True, cwd=streamer.directory, env=streamer.environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert ("not running" in done.stdout) is (closed == "2>&-")


def test_init_into_nowhere_is_one_line(streamer: Shell) -> None:
    assert error_of(streamer("init", "no/where.toml")) == (
        'file "no/where.toml" cannot be written: No such file or directory; give a path that you may write to'
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, 'config file "streamer.toml" does not exist; write one with: streamer init'),
        (b"", 'config file "streamer.toml" is empty; write one with: streamer init'),
        (b"\xff\xfe", 'config file "streamer.toml" is not UTF-8'),
        (b"[nodes", 'config file "streamer.toml" is not TOML'),
        (b"[nodez.a]\nurl = 'x'", 'unknown key "nodez"; did you mean "nodes"?'),
        (b"[nodes.a]\nurl = 'postgresql://x:${NOT_SET}@h/d'", "environment variable NOT_SET is not set"),
        (b"[nodes.a]\nurl = 'oracle://x'\n[syncs]", '"oracle" is not a kind of url that streamer knows'),
    ],
)
def test_a_broken_config_is_one_line(streamer: Shell, content: bytes | None, words: str) -> None:
    if content is not None:
        (streamer.directory / "streamer.toml").write_bytes(content)
    assert words in error_of(streamer("check"))


def test_a_config_that_is_a_directory_is_one_line(streamer: Shell) -> None:
    assert 'config file "." is a directory' in error_of(streamer("check", "--config", "."))


def test_a_topology_with_a_loop_is_refused_by_every_command(streamer: Shell) -> None:
    nodes = {name: f"postgresql://x@127.0.0.1:1/{name}" for name in "abc"}
    syncs = {
        "one": {"sources": ["a"], "targets": ["b"], "tables": ["t"]},
        "two": {"sources": ["b"], "targets": ["c"], "tables": ["t"]},
        "three": {"sources": ["a"], "targets": ["c"], "tables": ["t"]},
    }
    streamer.configure(document(nodes, syncs=syncs))
    for command in ("check", "tables", "setup", "run", "status", "teardown"):
        assert 'would reach "c" twice' in error_of(streamer(command))


# -- with servers ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def shop(streamer: Shell, pair: Pair, tmp_path: Path) -> Iterator[tuple[Shell, Database, Database]]:
    """A config as a user has it: a role with a password that comes from the environment. No output ever holds it."""
    source, target = pair
    urls = {}
    for name, database in (("a", source), ("b", target)):
        database.execute(f"CREATE ROLE owner LOGIN SUPERUSER PASSWORD '{SECRET}'")
        urls[name] = database.server.url(database.name, "owner", SECRET).replace(SECRET, "${SHOP_PASSWORD}")
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'x')")
    streamer.environment["SHOP_PASSWORD"] = SECRET
    streamer.configure(document(urls | {"s": f"sqlite:///{tmp_path}/shop.sqlite"}))
    yield streamer, source, target
    assert SECRET not in streamer.printed


def test_the_way_of_the_readme(shop: tuple[Shell, Database, Database]) -> None:
    streamer, source, target = shop
    checked = streamer("check")
    assert checked.returncode == 0, checked.stdout
    assert checked.stdout.splitlines()[-1] == "0 errors, 2 warnings"
    assert "will be created, copy, then stream" in streamer("tables").stdout
    assert streamer("setup").returncode == 0
    assert streamer("setup").stdout.count("created") == 0
    assert streamer("run", "--once").returncode == 0
    source.execute("INSERT INTO t VALUES (2, 'y')")
    assert streamer("run", "--once", "--sync", "shop", "--source", "a").returncode == 0
    assert target.query("SELECT * FROM t ORDER BY id") == [(1, "x"), (2, "y")]
    assert streamer("status").returncode == 2
    removed = streamer("teardown", "--yes")
    assert removed.returncode == 0
    assert 'a: removed schema "streamer"' in removed.stdout
    assert streamer("teardown", "--yes").stdout == "there is nothing to remove\n"


def test_json_is_json(shop: tuple[Shell, Database, Database]) -> None:
    streamer, _, _ = shop
    assert {f["severity"] for f in json.loads(streamer("check", "--json").stdout)["findings"]} == {"ok", "warning"}
    assert json.loads(streamer("tables", "--json").stdout)["tables"][0]["targets"].keys() == {"b", "s"}
    assert json.loads(streamer("status", "--json").stdout)["edges"][0]["state"] == "not running"


def test_teardown_asks(shop: tuple[Shell, Database, Database]) -> None:
    streamer, source, _ = shop
    streamer("setup")
    refused = streamer("teardown", stdin="n\n")
    assert 'a: slot "streamer_shop_a"' in refused.stdout
    assert source.query("SELECT count(*) FROM pg_replication_slots") == [(1,)]
    assert streamer("teardown", stdin="").returncode == 1
    assert source.query("SELECT count(*) FROM pg_replication_slots") == [(1,)]
    assert streamer("teardown", stdin="y\n").returncode == 0
    assert source.query("SELECT count(*) FROM pg_replication_slots") == [(0,)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_run_in_good_order(shop: tuple[Shell, Database, Database], number: signal.Signals) -> None:
    streamer, source, target = shop
    streamer("setup")
    daemon = streamer.start("run")
    try:
        wait_for(lambda: streamer("status").returncode == 0, "the daemon to stream")
        source.execute("INSERT INTO t VALUES (2, 'y')")
        wait_for(applied(target, 2), "the row to arrive")
        taken = streamer("run", "--once")
        assert taken.returncode == 1
    finally:
        daemon.send_signal(number)
        printed = "".join(daemon.communicate(timeout=SECONDS))
    assert daemon.returncode == 0
    assert "Traceback" not in printed
    assert SECRET not in printed


def applied(target: Database, number: int) -> Callable[[], bool]:
    return lambda: target.query("SELECT count(*) FROM t") == [(number,)]


def test_run_says_what_is_wrong_in_one_line_for_each_problem(shop: tuple[Shell, Database, Database]) -> None:
    streamer, _, _ = shop
    done = streamer("run", "--once")
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors
    assert all(line.endswith("run: streamer setup") for line in errors), errors
    assert 'the config has no sync "x"' in error_of(streamer("setup", "--sync", "x"))
    assert "no stream of the config has sync x" in streamer("run", "--once", "--sync", "x").stderr


def test_a_wrong_password_is_one_line_and_is_not_shown(shop: tuple[Shell, Database, Database]) -> None:
    streamer, _, _ = shop
    streamer.environment["SHOP_PASSWORD"] = "Falsch-2"
    assert 'node "a": ' in (line := error_of(streamer("setup")))
    assert "password authentication failed" in line
    assert "~/.pgpass" in line
    done = streamer("check")
    assert done.returncode == 1
    assert "2 errors" in done.stdout
    assert "Falsch-2" not in streamer.printed


def test_an_interrupt_while_modules_are_imported_is_no_traceback(streamer: Shell) -> None:
    """As far as the first module that the command line needs, which here waits to be interrupted."""
    (streamer.directory / "typer.py").write_text("print('importing', flush=True)\ninput()\n")
    streamer.environment["PYTHONPATH"] = os.pathsep.join([str(streamer.directory), os.getcwd()])
    program = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "runpy.run_module('streamer', run_name='__main__')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=streamer.directory,
        env=streamer.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, errors) == (-signal.SIGINT, "")

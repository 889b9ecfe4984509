"""What the benchmark compares: PostgreSQL's built-in subscription, streamer with either plugin, and streamer between two sources.

A contender replicates everything from `pair.source` to `pair.target`, whose tables exist and are empty. Its first `start()` begins
with the initial copy. It is told from the others only here: the jobs (work.py) look at the two databases and at the slot.
The trap: a subscription that is merely disabled keeps its slot active for a moment, so `stop()` waits until it is not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.servers import Database, free_port
from tests.waiting import wait_for

ROOT = Path(__file__).parents[2]
NODE = """\
[nodes.{name}]
url = "{url}"
capture = "{plugin}"

"""
CONFIG = """\
{nodes}[http]
listen = "127.0.0.1:{port}"

{syncs}"""
SYNC = """\
[syncs.{name}]
{roles}
tables = {tables}
{options}
"""
PARALLEL = 160000  # large transactions are applied by several workers while they are made
EVERYTHING = {"bench": "public.*"}
ROLES = {
    False: {"sources": ["a"], "targets": ["b"]},
    True: {"sources": ["a", "b"]},
}


@dataclass(frozen=True, slots=True)
class Pair:
    """The two databases of one round."""

    source: Database
    target: Database


class Contender(Protocol):
    """Replicates a pair while it is started."""

    slot: str

    @property
    def log(self) -> str:
        """What it has logged."""

    def start(self) -> None:
        """Begin, or go on after `stop`; returns at once."""

    def stop(self) -> None:
        """Interrupt; on return nothing is read from the source any more."""

    def processes(self) -> list[int]:
        """What reads the changes and writes them, by pid, as far as it is not a session of others on a server."""

    def check(self) -> None:
        """Raise RuntimeError if it has ended by itself."""

    def close(self) -> None:
        """Remove all that it made."""


class BuiltIn:
    """CREATE PUBLICATION and CREATE SUBSCRIPTION with what its manual offers for speed."""

    slot = "bench"

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._created = False
        pair.source.execute("CREATE PUBLICATION bench FOR ALL TABLES")

    @property
    def log(self) -> str:
        return self._pair.target.server.log

    def start(self) -> None:
        if self._created:
            self._pair.target.execute("ALTER SUBSCRIPTION bench ENABLE")
        else:
            url = self._pair.source.url
            streaming = "parallel" if self._pair.target.server.version >= PARALLEL else "on"
            options = f"binary = on, streaming = {streaming}"
            self._pair.target.execute(f"CREATE SUBSCRIPTION bench CONNECTION '{url}' PUBLICATION bench WITH ({options})")
            self._created = True

    def stop(self) -> None:
        self._pair.target.execute("ALTER SUBSCRIPTION bench DISABLE")
        wait_for(lambda: not slot_is_active(self._pair, self.slot), "the subscription to let its slot go")

    def processes(self) -> list[int]:
        workers = self._pair.target.query("SELECT pid FROM pg_stat_subscription WHERE subname = 'bench' AND pid IS NOT NULL")
        return [pid for (pid,) in workers]

    def check(self) -> None:
        """The server restarts its workers; a deadline is all that can tell."""

    def close(self) -> None:
        if self._created:
            self._pair.target.execute("DROP SUBSCRIPTION bench")


class Daemon:
    """The daemon in a process of its own, as a user runs it. `syncs` names each sync's tables, `options` are of all of them."""

    slot = "streamer_bench_a"

    def __init__(
        self,
        urls: Mapping[str, str],
        roles: Mapping[str, Sequence[str]],
        plugin: str = "auto",
        syncs: Mapping[str, str] = EVERYTHING,
        options: Mapping[str, int] | None = None,
    ) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="streamer-bench-")
        self._config = Path(self._directory.name) / "streamer.toml"
        self._log_path = Path(self._directory.name) / "log"
        self._process: subprocess.Popen[bytes] | None = None
        nodes = "".join(NODE.format(name=name, url=url, plugin=plugin) for name, url in urls.items())
        named = "\n".join(f"{role} = {json.dumps(list(names))}" for role, names in roles.items())
        more = "".join(f"{name} = {value}\n" for name, value in (options or {}).items())
        listed = "".join(
            SYNC.format(name=name, roles=named, tables=json.dumps([tables]), options=more) for name, tables in syncs.items()
        )
        self._config.write_text(CONFIG.format(nodes=nodes, port=free_port(), syncs=listed))
        self._command("setup")

    @property
    def log(self) -> str:
        return self._log_path.read_text() if self._log_path.exists() else ""

    def processes(self) -> list[int]:
        """The daemon, if it runs."""
        return [] if self._process is None else [self._process.pid]

    def start(self) -> None:
        with self._log_path.open("ab") as log:
            command = [sys.executable, "-m", "streamer.cli", "run", "--config", str(self._config)]
            self._process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=_environment())

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=30)
            self._process = None

    def check(self) -> None:
        if self._process is not None and (code := self._process.poll()) is not None:
            raise RuntimeError(f"the daemon ended with exit code {code}: {self.log[-2000:]}")

    def close(self) -> None:
        self.stop()
        self._command("teardown", "--yes", "--force")
        self._directory.cleanup()

    def _command(self, verb: str, *options: str) -> None:
        command = [sys.executable, "-m", "streamer.cli", verb, "--config", str(self._config), *options]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=_environment())
        if done.returncode != 0:
            raise RuntimeError(f"streamer {verb} failed: {done.stderr}")


def _environment() -> dict[str, str]:
    """That of this process, but that modules are compiled once, as pip does it: else each start takes a third longer."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def make(name: str, pair: Pair) -> Contender:
    """Return a contender of `NAMES`, set up but not started."""
    if name == BUILT_IN:
        return BuiltIn(pair)
    urls = {"a": pair.source.url, "b": pair.target.url}
    return Daemon(urls, ROLES[name == MULTI_MASTER], "pgoutput" if name == MULTI_MASTER else name)


BUILT_IN = "built-in"
MULTI_MASTER = "multi-master"
NAMES = (BUILT_IN, "pgoutput", "wal2json", MULTI_MASTER)


def slot_is_active(pair: Pair, slot: str) -> bool:
    """Whether somebody reads the slot on the source now."""
    return pair.source.query("SELECT active FROM pg_replication_slots WHERE slot_name = %s", [slot]) == [(True,)]

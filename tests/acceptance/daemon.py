"""streamer as a user runs it: the command line in processes of its own, a config file, a log.

`Streamer` holds a config in a directory; `command()` runs a verb to its end, `start()` the daemon, which is stopped, killed and
asked over the same ways that a user has. The trap: the log goes to a file, because a pipe that nobody reads would block the daemon.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from tests.role import reached
from tests.servers import free_port
from tests.waiting import wait_for

REPOSITORY = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-m", "streamer.cli"]


class Streamer:
    """A config, the commands on it, and the daemon. As a context it leaves no daemon behind, and no traceback unseen."""

    def __init__(
        self,
        directory: Path,
        nodes: Mapping[str, str],
        *,
        sources: Sequence[str] = ("a",),
        targets: Sequence[str] = ("b",),
        tables: Sequence[str] = ("public.*",),
        capture: str = "auto",
        copy: str = "if-empty",
        options: Mapping[str, Mapping[str, object]] | None = None,
    ) -> None:
        """Write a config of the sync `shop`; `nodes` are names and urls, `options` other keys of some nodes."""
        self.directory = directory
        self.path = directory / "streamer.toml"
        self.environment: dict[str, str] = {}
        #: what commands begin with, to run somewhere else
        self.enter: Sequence[str] = ()
        self._log = directory / "log"
        self.port = free_port()
        self._daemon: subprocess.Popen[bytes] | None = None
        self._nodes = {name: reached(url) for name, url in nodes.items()}
        self._sync: dict[str, object] = {
            "sources": list(sources),
            "targets": list(targets),
            "tables": list(tables),
            "copy": copy,
        }
        self._capture = capture
        self._options = options or {}
        self.write_config()

    def write_config(self, **changes: object) -> None:
        """Write the config, with these keys of the sync changed."""
        self._sync |= changes
        lines = ["[http]", f'listen = "127.0.0.1:{self.port}"']
        for name, url in self._nodes.items():
            lines += [f"[nodes.{name}]", f"url = {json.dumps(url)}"]
            if url.startswith("postgres"):
                lines.append(f'capture = "{self._capture}"')
            lines += [f"{key} = {json.dumps(value)}" for key, value in self._options.get(name, {}).items()]
        lines.append("[syncs.shop]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in self._sync.items()]
        self.path.write_text("\n".join(lines) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.running:
            self.kill()
        print(self.log)  # pytest shows it with a failure
        if kind is None:
            _, found, what = self.log.partition("Traceback")
            assert not found, what[:4000]

    # -- commands --------------------------------------------------------------------------------------------------------------

    def command(self, *arguments: str, succeeds: bool = True, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a verb on the config to its end."""
        done = subprocess.run(
            [*self.enter, *PROGRAM, *arguments, "--config", str(self.path)],
            capture_output=True,
            text=True,
            timeout=seconds,
            **self._surroundings(),
        )
        assert not succeeds or done.returncode == 0, f"{' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        """Run a verb on the config, and return at once; all that it prints is its standard output."""
        return subprocess.Popen(
            [*self.enter, *PROGRAM, *arguments, "--config", str(self.path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **self._surroundings(),
        )

    def setup(self) -> Self:
        """Run `setup`."""
        self.command("setup")
        return self

    def status(self) -> list[dict[str, Any]]:
        """The edges, as `status --json` has them."""
        return list(json.loads(self.command("status", "--json", succeeds=False).stdout)["edges"])

    def _surroundings(self) -> dict[str, Any]:
        path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
        return {"cwd": self.directory, "env": {**os.environ, "PYTHONPATH": path, **self.environment}}

    # -- the daemon ------------------------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        return self._daemon is not None and self._daemon.poll() is None

    @property
    def pid(self) -> int:
        assert self._daemon is not None
        return self._daemon.pid

    @property
    def log(self) -> str:
        """All that daemons of this config have said, on standard output and error."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def beside(self, *, another_port: bool = False) -> Streamer:
        """Start a second daemon with the same config, or one that differs in the port only."""
        second = copy(self)
        second.environment = dict(self.environment)
        second._daemon, second._log = None, self.directory / "log of the second"
        if another_port:
            second.port, second.path = free_port(), self.directory / "second.toml"
            second.write_config()
        return second.start()

    def start(self, *options: str, output: IO[bytes] | None = None, errors: IO[bytes] | None = None) -> Self:
        """Start `run`; its standard output and error go to the log, or to a file of the test."""
        assert not self.running
        with self._log.open("ab") as log:
            self._daemon = subprocess.Popen(
                [*self.enter, *PROGRAM, "run", "--config", str(self.path), *options],
                stdin=subprocess.DEVNULL,
                stdout=output or log,
                stderr=errors or log,
                start_new_session=True,
                **self._surroundings(),
            )
        return self

    def start_streaming(self) -> Self:
        """Start `run`, and wait until all streams and edges stream."""
        self.start()
        self.wait_for_state("streaming")
        wait_for(lambda: all(s["state"] == "streaming" for s in self.streams()), "all streams to be read")
        return self

    def terminate(self) -> None:
        """Send SIGTERM, to a daemon that has come so far that it handles it: before, it dies of it as every program does."""
        assert self._daemon is not None
        wait_for(lambda: not self.running or self._handles(signal.SIGTERM), "the daemon to handle SIGTERM")
        self._daemon.send_signal(signal.SIGTERM)

    def _handles(self, number: signal.Signals) -> bool:
        """Whether the daemon has a handler of its own for this signal (https://man7.org/linux/man-pages/man5/proc_pid_status.5.html)."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
        return bool(int(caught, 16) >> (number - 1) & 1)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop the daemon's process while the context lasts, and let it go on: it sees only what has become of the servers."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def wait(self, seconds: float) -> int:
        """Wait for the end of the daemon; return its exit code."""
        assert self._daemon is not None
        try:
            return self._daemon.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the daemon did not end within {seconds:g} s") from None

    def stop(self, seconds: float = 30) -> int:
        """Stop the daemon as a service manager does; return its exit code."""
        self.terminate()
        return self.wait(seconds)

    def kill(self) -> None:
        """Kill the daemon with SIGKILL."""
        assert self._daemon is not None
        self._daemon.kill()
        self._daemon.wait(10)

    # -- what it says of itself ------------------------------------------------------------------------------------------------

    def streams(self) -> list[dict[str, Any]]:
        """The streams as the daemon's /status has them; none while it does not answer. `status` reads the same, more slowly."""
        assert self.running, f"the daemon has ended: {self.log}"
        try:
            return list(json.loads(self.get("/status"))["streams"])
        except OSError:
            return []

    def get(self, path: str) -> str:
        """What the daemon answers. Raises OSError."""
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"http://127.0.0.1:{self.port}{path}", timeout=5) as response:
            body: bytes = response.read()
        return body.decode()

    def edges(self) -> dict[str, dict[str, Any]]:
        """The edges as /status has them, by `source->target`."""
        return {f"{s['source']}->{e['target']}": e for s in self.streams() for e in s["edges"]}

    def copying(self) -> list[str]:
        """The edges that are amid the copy of a table."""
        return [name for name, edge in self.edges().items() if any(c["rows"] and not c["done"] for c in edge["copy"])]

    def problems(self) -> list[str]:
        """What streams and edges complain of now."""
        parts = [part for s in self.streams() for part in (s, *s["edges"])]
        return [part["problem"]["message"] for part in parts if part["problem"]]

    def wait_for_state(self, state: str) -> None:
        """Wait until all edges are in this state."""
        wait_for(lambda: self._all(lambda edge: bool(edge["state"] == state)), f"all edges to be {state}")

    def _all(self, condition: Callable[[dict[str, Any]], bool]) -> bool:
        edges = self.edges().values()
        return bool(edges) and all(map(condition, edges))

    def wait_for_problem(self, words: str) -> str:
        """Wait until a stream or edge complains with these words; return what it says."""
        found = wait_for(lambda: [p for p in self.problems() if words in p], f'"{words}" in what the daemon complains of')
        return found[0]

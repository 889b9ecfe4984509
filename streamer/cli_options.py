"""What the commands of the command line share: options, reading the config, printing, asking."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from streamer import config as config_module
from streamer import topology
from streamer.admin.printing import printable
from streamer.config import Config
from streamer.errors import StreamerError

ConfigFile = Annotated[Path, typer.Option("--config", metavar="FILE", readable=False, help="The config file.")]
SyncName = Annotated[str | None, typer.Option("--sync", metavar="NAME", help="Only this sync.")]
Yes = Annotated[bool, typer.Option("--yes", help="Don't ask.")]
Since = Annotated[str | None, typer.Option("--since", metavar="TIME", help="Only since then: 2h, 7d, or an ISO time.")]
Limit = Annotated[int, typer.Option("--limit", metavar="N", min=1, help="How many at most.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def load(path: Path) -> Config:
    """Return the config in a file, if it makes sense. Raises ConfigError."""
    config = config_module.load(path)
    topology.check(config)
    topology.check_urls(config)
    return config


def say(line: str) -> None:
    """Print a line at once; names may hold anything."""
    print(printable(line), flush=True)


def asking(question: str, yes: bool) -> Callable[[Sequence[str]], bool]:
    """Return what shows a person what will happen, and asks."""

    def confirm(lines: Sequence[str]) -> bool:
        print(*map(printable, lines), sep="\n")
        return yes or typer.confirm(question)

    return confirm


def report(problems: Sequence[StreamerError]) -> None:
    """Print errors, one a line, and exit with code 1 if there are any."""
    print_errors(problems)
    if problems:
        raise typer.Exit(1)


def print_errors(problems: Sequence[StreamerError]) -> None:
    """Print errors, one a line."""
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)

"""Pages of the docs typed into a shell, line by line, and what they print compared with what the page shows.

`page()` gives the blocks of a page in order. Numbers may differ, and … stands for whatever is printed there.
The trap: a command that goes on in the background must not keep the shell's output, or its next words are taken for another's.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
END: Final = "-- that was all --"
BLOCK: Final = re.compile(r"```(console|toml|sql)\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A block of code of a page: the heading that it stands below, its language, and its text."""

    heading: str
    language: str
    text: str


def page(path: str) -> Iterator[Block]:
    """The blocks of a page."""
    for section in re.split(r"^## ", (ROOT / path).read_text(encoding="utf-8"), flags=re.MULTILINE):
        heading, _, body = section.partition("\n")
        yield from (Block(heading, language, text) for language, text in BLOCK.findall(body))


class Shell:
    """A shell that somebody types into."""

    def __init__(self, directory: Path, path: Sequence[Path]) -> None:
        self._process = subprocess.Popen(
            ["bash"],
            cwd=directory,
            env=os.environ | {"PATH": os.pathsep.join([*map(str, path), os.environ["PATH"]]), "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def type(self, line: str) -> tuple[list[str], int]:
        """Return what a line prints, and its exit code."""
        keys, screen = self._process.stdin, self._process.stdout
        assert keys is not None
        assert screen is not None
        keys.write(f'{line}\nprintf "\\n{END}%s\\n" $?\n')
        keys.flush()
        printed: list[str] = []
        for text in screen:
            if text.startswith(END):
                return [one for one in printed if one], int(text.removeprefix(END))
            printed.append(text.rstrip("\n"))
        raise AssertionError(f"the shell has ended at: {line}: {printed}")

    def follow(self, commands: str) -> None:
        """Type all commands of a block, and see whether each succeeds and prints what is shown."""
        for typed in re.split(r"^\$ ", commands, flags=re.MULTILINE)[1:]:
            line, *shown = typed.splitlines()
            printed, code = self.type(line)
            assert code == 0, (line, printed)
            assert re.fullmatch(_pattern(shown), "".join(f"{_alike(one)}\n" for one in printed)), (line, printed)

    def close(self) -> None:
        """End it with all that it has started, whatever it waits for."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()


@contextmanager
def shell(directory: Path, *path: Path) -> Iterator[Shell]:
    """A shell in that directory, with `streamer` and these directories on its PATH."""
    commands = directory / "bin"
    commands.mkdir()
    (commands / "streamer").write_text(f'#!/bin/sh\nexec {sys.executable} -m streamer.cli "$@"\n')
    (commands / "streamer").chmod(0o755)
    made = Shell(directory, [commands, *path])
    try:
        yield made
    finally:
        made.close()


def _alike(line: str) -> str:
    """The line without what differs from one run to another: numbers, the width of columns, how tables were read."""
    return re.sub(r"\s+", " ", re.sub(r"[0-9A-F]+/[0-9A-F]+|\d+(\.\d+)?", "#", line)).strip()


def _pattern(shown: list[str]) -> str:
    """A pattern of what is shown; … is any number of lines."""
    return "".join(r"(.*\n)*" if line == "…" else re.escape(_alike(line)) + r"\n" for line in shown)

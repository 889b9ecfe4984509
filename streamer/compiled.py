"""The modules that every row passes, as C: where they lie once compiled, and whether Python imports them from there.

They are ordinary modules; the .pxd beside each gives variables types of C, and `hatch_build.py` compiles them with Cython when
streamer is installed where there is a C compiler. Where there is none, or with STREAMER_PURE_PYTHON set, the same sources run as
Python, and take half as much time again.

The trap: sources change after they were compiled. So what is compiled lies in a directory that is named after a digest of the
sources: what was made from others is not found.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Final

MODULES: Final = ("streamer.capture.assemble", "streamer.capture.copy_out", "streamer.capture.pgoutput", "streamer.sinks.net")
OFF: Final = "STREAMER_PURE_PYTHON"
"""The environment variable that lets the sources run, whatever it is set to, but for nothing."""

PACKAGE: Final = Path(__file__).parent


def source(module: str) -> Path:
    """Return the file of one of MODULES."""
    return PACKAGE.parent.joinpath(*module.split(".")).with_suffix(".py")


def compiled(module: str) -> Path:
    """Return where one of MODULES belongs once it is compiled for this Python, from the sources as they are."""
    digest = hashlib.sha256()
    for path in map(source, MODULES):
        digest.update(path.read_bytes() + path.with_suffix(".pxd").read_bytes())
    return PACKAGE / "native" / digest.hexdigest()[:16] / f"{module}{EXTENSION_SUFFIXES[0]}"


class _Finder(MetaPathFinder):
    """Finds modules as they were compiled, as long as they are there: an installation may replace them while we run."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        file = self._files.get(fullname)
        return None if file is None or not file.is_file() else spec_from_file_location(fullname, file)


def prefer() -> bool:
    """Have Python import the compiled modules from now on; return whether they are there, and wanted."""
    try:
        files = {module: compiled(module) for module in MODULES}
    except OSError:
        return False  # without the sources, nothing tells what was compiled from them
    found = not os.environ.get(OFF) and all(file.is_file() for file in files.values())
    if found:
        sys.meta_path.insert(0, _Finder(files))
    return found

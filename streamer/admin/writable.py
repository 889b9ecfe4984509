"""Whether the user that runs a command may write files and their directories, as `streamer check` tells it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from streamer.admin.findings import Finding, error

_RIGHT: Final = "give the user that runs streamer the right to write the file and its directory"


def judge_unwritable(node: str, files: Sequence[Path]) -> Iterator[Finding]:
    """Yield what keeps the files from being written, or made."""
    for directory in dict.fromkeys(file.parent for file in files):
        if not os.path.isdir(directory):
            yield error(f'node "{node}"', f'directory "{directory}" does not exist', f"mkdir -p {directory}")
        elif not _may(directory, os.W_OK | os.X_OK):
            yield error(f'node "{node}"', f'directory "{directory}" cannot be written', _RIGHT)
    for file in files:
        if os.path.exists(file) and not (os.path.isfile(file) and _may(file, os.R_OK | os.W_OK)):
            yield error(f'node "{node}"', f'file "{file}" cannot be written', _RIGHT)


def _may(path: Path, mode: int) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)

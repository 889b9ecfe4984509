"""Files that a command makes, and that must not be there yet unless it is told so."""

from __future__ import annotations

from pathlib import Path

from streamer.errors import UsageError


def write_new(text: str, file: Path, *, force: bool) -> None:
    """Write a file. Raises UsageError if it exists and `force` is not given, or cannot be written."""
    try:
        with file.open("w" if force else "x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError:
        raise UsageError(f'file "{file}" exists already', "give another name, or overwrite it with --force") from None
    except OSError as error:
        raise UsageError(f'file "{file}" cannot be written: {error.strerror}', "give a path that you may write to") from None

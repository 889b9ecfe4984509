"""Standard output that fails: it is closed, its disk is full, or nobody reads it any more.

The trap: Python writes to a file when it ends, and tells then in its own way what went wrong, with an exit code of its own.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import Final, TypeAlias

Code: TypeAlias = str | int | None
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE})


def written(run: Callable[[], Code]) -> Code:
    """Run a command and see that all is written that it prints; return its exit code. Where it cannot be, that is one line."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who has started us: `>&-`
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    try:
        code = run()
        sys.stdout.flush()
    except OSError as error:
        if error.filename is not None or error.errno not in _FULL:
            raise
        if error.errno != errno.EPIPE:  # who has read enough wants to hear nothing
            print(f"error: standard output cannot be written: {error.strerror}; make room there", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left of it would fail again
        return 1
    return code

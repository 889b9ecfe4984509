"""streamer: replicate PostgreSQL row changes to other databases. Start reading at `streamer/stream.py`."""

from __future__ import annotations

from typing import Final

from streamer import compiled

__version__ = "0.1.0"

FORM: Final = "compiled" if compiled.prefer() else "pure Python"
"""How the modules that every row passes run."""

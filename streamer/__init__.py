"""streamer: replicate PostgreSQL row changes to other databases. Start reading at `streamer/stream.py`."""

from __future__ import annotations

__version__ = "0.1.0"

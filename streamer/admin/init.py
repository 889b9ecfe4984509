"""`streamer init`: write a config to start from, with every key explained."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from streamer.admin.new_file import write_new
from streamer.admin.nodes import Say

TEMPLATE: Final = """\
# The config of streamer. A key that is commented out shows its default.

# Nodes: the databases, by a name of your choice (lower-case letters, digits and _).
[nodes.a]
# Where it is. ${NAME} is taken from the environment; a password may also be in ~/.pgpass.
url = "postgresql://postgres:${SHOP_PASSWORD}@127.0.0.1:5432/shop"
# How changes are read where the node is a source: auto, pgoutput (PostgreSQL 10 and later), wal2json (an extra package), or trigger
# (triggers on its tables: for old servers, and roles that may not replicate).
# capture = "auto"

# How much WAL a slot of ours may hold back on this source (kB, MB, GB, TB); without it any amount. And what happens
# when it is more: alert, pause (other work on this node waits), or drop-slot (the source lives, the targets need a new copy).
# max_retained_wal = "20GB"
# wal_guard = "alert"

[nodes.b]
url = "postgresql://postgres:${SHOP_PASSWORD}@127.0.0.1:5433/shop"

# A target may also be an SQLite file: sqlite:///relative/path or sqlite:////absolute/path.
# [nodes.s]
# url = "sqlite:///shop.sqlite"

# Or a MySQL or MariaDB database.
# [nodes.m]
# url = "mysql://streamer:${MYSQL_PASSWORD}@127.0.0.1:3306/shop"
# Where tables of schemas other than public stand: in that database as schema.table (prefix), or in databases of their names.
# schemas = "prefix"

# Or JSON lines, one for each change: jsonl:///relative/path, jsonl:////absolute/path, or jsonl:- for standard output.
# [nodes.log]
# url = "jsonl:///changes.jsonl"
# The size in MB at which it goes on in another file (changes.jsonl.000001); by default there is one file.
# rotate_mb = 100
# Where its progress is kept; by default beside the file, or in streamer-log.progress for standard output.
# progress = "changes.jsonl.progress"

# Syncs: what is replicated between nodes.
[syncs.shop]
# Nodes whose changes are captured; with two or more, each is also a target of the others.
sources = ["a"]
# Nodes that only receive.
targets = ["b"]
# Globs over schema.table; partitions belong to their table.
tables = ["public.*"]
# Globs taken out of tables.
# exclude = []
# Whether the rows that exist already are copied first: if-empty (only into tables without rows), always (replaces rows) or never.
# copy = "if-empty"
# Tables, and ranges of large ones, copied at once.
# copy_jobs = 2
# Rows of a range: what was copied in ranges is not copied again after a break.
# copy_range_rows = 500000
# When it runs: continuous, manual (when kicked: streamer kick shop) or "every 10m" (s, m, h or d).
# run = "continuous"
# How often tables with fullcopy (below) are copied in a sync that runs all the time; in others they are in every run.
# fullcopy_every = "1h"
# Whether the sequences of PostgreSQL targets are kept at or ahead of the source's.
# sequences = false
# Whether the daemon compares the rows of source and targets all the time (continuous), or only streamer verify does (manual); and
# how many rows a second.
# verify = "manual"
# verify_rate = 5000
# What happens to a row that a target refuses: stop, or quarantine (the target holds it back, and the rest goes on).
# on_error = "stop"
# What is written where the column of a target that is not PostgreSQL cannot hold a value: error (nothing), null, or clamp (what is
# nearest).
# on_unrepresentable = "error"
# The following keys are for two or more sources. Who wins when they change the same row at the same time: latest, apply, keep,
# error, "python:package.module:function", or a list of all sources, the strongest first.
# conflict = "latest"
# Seconds that the function may take, and what holds if it fails: stop, latest, apply or keep.
# conflict_timeout = 5.0
# conflict_fallback = "stop"
# Days for which resolved conflicts are kept, and for which deleted keys are.
# conflict_days = 30
# tombstone_days = 7
# Seconds by which the clock of another source may be ahead.
# max_clock_skew = 5.0

# What holds for a single table; the first five keys are for one source. [syncs.shop.target.b.table."public.accounts"] is for one
# target, and wins.
# [syncs.shop.table."public.accounts"]
# The columns that travel, and other names on the target, of the table and of columns.
# columns = ["id", "name"]
# rename = "crm.clients"
# rename_columns = { name = "full_name" }
# A condition over the row: a row that leaves it is deleted on the target, one that enters is inserted.
# where = "balance > 0"
# A function that gets each row as a dict, and returns the one that travels, or None.
# transform = "python:package.module:function"
# The columns that tell rows apart where there is no primary key.
# key = ["id"]
# Instead of capturing changes: copy the whole table, again and again. For one source only.
# fullcopy = false
# Instead of what the sync says.
# on_error = "stop"
# on_unrepresentable = "error"
# With two or more sources: who wins, instead of what the sync says.
# conflict = "latest"
# Columns to which the differences of all sources are added, and those of which the greater or the lesser value stays.
# delta = []
# max = []
# min = []

# Where the running daemon answers `streamer status` and Prometheus (/metrics).
[http]
# listen = "127.0.0.1:9851"
# What requests must bring as a bearer token; needed as soon as other machines can ask.
# token = "${STREAMER_TOKEN}"
"""


def write_config(file: Path, *, force: bool, say: Say) -> None:
    """Write the example config to `file`. Raises UsageError if it exists and `force` is not given, or cannot be written."""
    write_new(TEMPLATE, file, force=force)
    say(f'wrote "{file}"')
    option = "" if file == Path("streamer.toml") else f" --config {file}"
    say(f"next: put your databases and tables into it, then run: streamer check{option}")

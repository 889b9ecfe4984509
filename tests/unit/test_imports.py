"""Imports go one way, as the table says. Read from the syntax tree, so that nothing has to be importable.

A part is a module or a package right below `streamer`. It may import parts of the rows above its own, and of its own row as long as
no circle comes of it; a new part needs a place in the table.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import streamer

PACKAGE = Path(streamer.__file__).parent

LAYERS = (
    ("__init__", "compiled", "model", "errors"),
    (
        "ports",
        "post_data",
        "sequence_ports",
        "sequence_session",
        "config",
        "node_config",
        "http_config",
        "fullcopy_config",
        "patterns",
        "periods",
        "copytext",
        "copied_ranges",
        "conflict_config",
        "config_problems",
        "shape_config",
        "sql_text",
        "session",
        "silence",
        "spare_connections",
        "versions",
        "statements",
        "logs",
        "service_manager",
        "copy_report",
        "report",
        "retry",
        "workers",
    ),
    ("topology", "progress", "key_ranges", "router", "grouping", "queue", "schedule", "shaping", "wal_guard"),
    ("capture", "sinks"),
    (
        "stream",
        "runner",
        "edge",
        "complaints",
        "copying",
        "copy_jobs",
        "copy_work",
        "post_data_jobs",
        "full_copies",
        "sequences",
        "joining",
        "metrics",
        "http",
        "http_server",
        "slot_monitor",
    ),
    ("assembly", "daemon", "admin", "bucardo", "verify"),
    ("cli", "cli_bucardo", "cli_cutover", "cli_options", "cli_output", "cli_quarantine", "cli_snapshot", "cli_verify", "demo"),
    ("__main__",),
)

STRANGERS = (("capture", "sinks"), ("sinks", "capture"))
"""Parts of one row of which the first never imports the second."""

DRIVERS = ("psycopg", "pymysql", "sqlite3")
DRIVER_USERS = ("capture", "sinks", "admin", "verify", "demo", "session", "versions")
"""Who talks to a database; `session` opens the connections of the others."""


@cache
def modules() -> dict[str, ast.Module]:
    """The syntax tree of every module, by its name below `streamer`: `model`, `capture.slot`; a package is `capture.__init__`."""
    paths = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    return {name: ast.parse(path.read_text(encoding="utf-8"), str(path)) for name, path in sorted(paths.items())}


def imported(tree: ast.Module) -> Iterator[str]:
    """Every dotted name that the module imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_modules(name: str) -> set[str]:
    """The modules of ours that a module imports."""
    found = set()
    for dotted in imported(modules()[name]):
        first, *rest = dotted.split(".")
        if first == "streamer":
            # the name may be a package, a module, or something in one of them
            candidates = [".".join(rest[:length]) for length in range(len(rest), 0, -1)]
            known = [c for c in (*(x for n in candidates for x in (n, f"{n}.__init__")), "__init__") if c in modules()]
            found.add(known[0])
    return found


def part(module: str) -> str:
    return module.split(".")[0]


def layer(module: str) -> int:
    return next(number for number, parts in enumerate(LAYERS) if part(module) in parts)


def test_every_part_has_a_place_in_the_table() -> None:
    places = [name for parts in LAYERS for name in parts]
    assert len(places) == len(set(places))
    assert {part(name) for name in modules()} <= set(places)


@pytest.mark.parametrize("name", modules())
def test_a_module_imports_only_what_lies_above_it(name: str) -> None:
    wrong = {other for other in imported_modules(name) if layer(other) > layer(name) or (part(name), part(other)) in STRANGERS}
    assert not wrong


def test_no_imports_go_in_a_circle() -> None:
    graph = {name: imported_modules(name) for name in modules()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


@pytest.mark.parametrize("name", [name for name in modules() if part(name) not in DRIVER_USERS])
def test_a_module_that_talks_to_no_database_imports_no_driver(name: str) -> None:
    assert not {dotted for dotted in imported(modules()[name]) if dotted.split(".")[0] in DRIVERS}


def test_no_import_is_overlooked() -> None:
    tree = ast.parse("import sqlite3 as s\ndef f():\n    from psycopg import sql\n    import streamer.model, os.path\n")
    assert set(imported(tree)) == {"sqlite3", "psycopg.sql", "streamer.model", "os.path"}
    assert {"model", "errors", "router"} - imported_modules("topology") == set()

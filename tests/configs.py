"""Configs of tests: one sync called shop, from "a" to "b", unless told otherwise; as a `Config` or as a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamer import topology
from streamer.config import Config
from tests.role import reached
from tests.servers import free_port


def make_config(
    nodes: Mapping[str, str], *, capture: str = "auto", syncs: Mapping[str, Any] | None = None, **sync: object
) -> Config:
    """A config over these urls; `capture` is that of every source, `sync` are keys of the one sync, `syncs` takes its place."""
    return checked(document(nodes, capture=capture, syncs=syncs, **sync))


def document(
    nodes: Mapping[str, str], *, capture: str = "auto", syncs: Mapping[str, Any] | None = None, **sync: object
) -> dict[str, Any]:
    """The same as it would stand in a file."""
    source, *targets = nodes
    shop = {"sources": [source], "targets": targets, "tables": ["*.*"]} | sync
    return {
        "nodes": {name: _node(reached(url), capture) for name, url in nodes.items()},
        "syncs": syncs or {"shop": shop},
        "http": {"listen": f"127.0.0.1:{free_port()}"},
    }


def _node(url: str, capture: str) -> dict[str, Any]:
    return {"url": url, "capture": capture} if url.startswith("postgres") else {"url": url}


def checked(values: Mapping[str, Any]) -> Config:
    nodes = {name: node | {"url": reached(node["url"])} for name, node in values["nodes"].items()}
    config = Config.model_validate({**values, "nodes": nodes})
    topology.check(config)
    return config


def write_config(path: Path, values: Mapping[str, Any]) -> Path:
    """Write a config as TOML."""
    lines = []
    for table, keys in _tables("", values):
        lines += [f"[{table}]", *(f"{key} = {_toml(value)}" for key, value in keys.items()), ""]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _tables(prefix: str, values: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    flat = {key: value for key, value in values.items() if not isinstance(value, dict)}
    found = [(prefix, flat)] if flat else []
    for key, value in values.items():
        if isinstance(value, dict):
            name = f'"{key}"' if "." in key else key
            found += _tables(f"{prefix}.{name}".lstrip("."), value)
    return found


def _toml(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value) if isinstance(value, str) else str(value).lower()

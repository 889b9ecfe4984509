"""How a Grafana dashboard is put together: panels flow from left to right in 24 columns, and everything common is said once.

A panel is a plain dict as Grafana's JSON model has it; the functions here only fill in what all of ours share. The trap: Grafana
ignores keys that it does not know without a word, so look at a change in Grafana.

https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

Json: TypeAlias = dict[str, Any]

DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
WIDTH: Final = 24
STATES: Final = {
    "standby": (1, "light-purple"),
    "streaming": (2, "green"),
    "resting": (3, "blue"),
    "copying": (4, "light-blue"),
    "indexing": (5, "super-light-blue"),
    "starting": (6, "yellow"),
    "paused": (7, "purple"),
    "stopped": (8, "gray"),
    "retrying": (9, "orange"),
    "failed": (10, "red"),
}
"""The number that stands for a state in a timeline, and its colour. Where two daemons tell of an edge the greater number is shown,
so what the other one does goes before standing by."""


def thresholds(green: str = "green", **steps: float) -> Json:
    """Colours from values on: thresholds(orange=30, red=300)."""
    higher = [{"color": color, "value": value} for color, value in steps.items()]
    return {"mode": "absolute", "steps": [{"color": green, "value": None}, *higher]}


def query(expression: str, legend: str = "", *, instant: bool = False, **more: object) -> Json:
    """One query of a panel."""
    return {"expr": expression, "legendFormat": legend or "__auto", "instant": instant, "range": not instant, **more}


def states(metric: str, by: str, selector: str) -> str:
    """A query that gives the number of the state that each of `metric` is in, told apart by the labels `by`."""
    parts = [f'({metric}{{{selector}, state="{state}"}} == 1) * {number}' for state, (number, _) in STATES.items()]
    return f"max by ({by}) ({' or '.join(parts)})"


def panel(
    kind: str,
    title: str,
    description: str,
    *queries: Json,
    unit: str = "short",
    width: int = 8,
    height: int = 8,
    limits: Json | None = None,
    defaults: Mapping[str, object] | None = None,
    options: Mapping[str, object] | None = None,
    transformations: Sequence[Json] = (),
) -> Json:
    """A panel; `limits` are thresholds, `defaults` go into the field's defaults."""
    made: Json = {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "targets": [{"refId": chr(ord("A") + n), "datasource": DATASOURCE, **q} for n, q in enumerate(queries)],
        "fieldConfig": {"defaults": {"unit": unit, "thresholds": limits or thresholds(), **(defaults or {})}, "overrides": []},
        "options": dict(options or {}),
        "gridPos": {"w": width, "h": height},
    }
    return made | {"transformations": list(transformations)} if transformations else made


def stat(title: str, description: str, expression: str, *, unit: str = "short", limits: Json | None = None) -> Json:
    """One large number."""
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "background",
        "graphMode": "area",
        "textMode": "value",
    }
    return panel("stat", title, description, query(expression), unit=unit, width=4, height=4, limits=limits, options=options)


def lines(
    title: str,
    description: str,
    *queries: Json,
    unit: str = "short",
    width: int = 8,
    limits: Json | None = None,
    stacked: bool = False,
) -> Json:
    """A graph over time; thresholds are drawn as lines."""
    custom = {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 30 if stacked else 8,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "dashed" if limits else "off"},
    }
    options = {
        "legend": {"displayMode": "table", "placement": "bottom", "showLegend": True, "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    defaults = {"min": 0, "color": {"mode": "palette-classic"}, "custom": custom}
    return panel(
        "timeseries", title, description, *queries, unit=unit, width=width, limits=limits, defaults=defaults, options=options
    )


def timeline(title: str, description: str, *queries: Json) -> Json:
    """The states over time, as coloured bands."""
    defaults = {
        "mappings": state_names(),
        "color": {"mode": "thresholds"},
        "custom": {"lineWidth": 0, "fillOpacity": 80},
    }
    options = {
        "showValue": "auto",
        "mergeValues": True,
        "rowHeight": 0.9,
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "single", "sort": "none"},
    }
    return panel("state-timeline", title, description, *queries, width=WIDTH, defaults=defaults, options=options)


def state_names() -> list[Json]:
    """The mapping that shows the numbers of states as words, in their colours."""
    texts = {str(number): {"text": state, "color": color, "index": number} for state, (number, color) in STATES.items()}
    return [{"type": "value", "options": texts}]


def row(title: str) -> Json:
    """A heading; what follows stands below it."""
    return {"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": {"w": WIDTH, "h": 1}}


def variable(name: str, label: str, metric: str, *, of: str = "") -> Json:
    """A list to choose from: the values of a label, also several or all of them. `of` narrows it by other labels."""
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": DATASOURCE,
        "query": {"query": f"label_values({metric}{{{of}}}, {name})", "refId": name},
        "definition": f"label_values({metric}{{{of}}}, {name})",
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "options": [],
    }


def dashboard(
    uid: str, title: str, description: str, variables: Sequence[Json], links: Sequence[Json], panels: Sequence[Json]
) -> Json:
    """The whole, with the panels put into their places."""
    source = {
        "type": "datasource",
        "name": "datasource",
        "label": "Data source",
        "query": "prometheus",
        "refresh": 1,
        "options": [],
    }
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["streamer", "postgresql"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "",
        "templating": {"list": [source | {"regex": "", "multi": False, "includeAll": False}, *variables]},
        "annotations": {"list": [_restarts()]},
        "links": list(links),
        "panels": _placed(panels),
    }


def _restarts() -> Json:
    return {
        "name": "daemon started",
        "datasource": DATASOURCE,
        "enable": True,
        "iconColor": "blue",
        "expr": 'process_start_time_seconds{job="streamer"} * 1000',
        "useValueForTime": "on",
        "titleFormat": "streamer started",
        "step": "60s",
    }


def _placed(panels: Sequence[Json]) -> list[Json]:
    """The panels with their numbers and places, line by line."""
    placed = []
    x = y = height = 0
    for number, one in enumerate(panels, start=1):
        size = one["gridPos"]
        if x + size["w"] > WIDTH:
            x, y, height = 0, y + height, 0
        placed.append(one | {"id": number, "gridPos": {"x": x, "y": y, **size}})
        x, height = x + size["w"], max(height, size["h"])
    return placed

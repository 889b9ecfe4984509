"""A private Prometheus on a free port of 127.0.0.1 that asks a daemon twice a second, and promtool. Both are of one package."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.servers import free_port
from tests.waiting import wait_for

RULES = Path(__file__).parents[1] / "grafana/alerts.yml"
CONFIG = """\
global: {{scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms}}
rule_files: [{rules}]
scrape_configs: [{{job_name: streamer, static_configs: [{{targets: ["127.0.0.1:{port}"]}}]}}]
"""


def program(name: str) -> str:
    """The path of `prometheus` or `promtool`."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is missing: install prometheus")
    return path


def rules() -> dict[str, str]:
    """The query of every alert rule, by the alert's name."""
    return dict(re.findall(r"- alert: (\w+)\n +expr: (.+)\n", RULES.read_text(encoding="utf-8")))


class Prometheus:
    """A running server."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    @property
    def ready(self) -> bool:
        try:
            with self._open(f"{self._url}/-/ready", timeout=10):
                return True
        except OSError:
            return False

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples that the query gives now, each with its `metric` (labels) and `value` (time, text)."""
        try:
            with self._open(f"{self._url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}", timeout=10) as response:
                return list(json.load(response)["data"]["result"])
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{expression}: {error.read().decode()}") from None

    def firing(self) -> set[str]:
        """The alerts that fire."""
        return {sample["metric"]["alertname"] for sample in self.query('ALERTS{alertstate="firing"}')}


@contextmanager
def scraping(directory: Path, port: int) -> Iterator[Prometheus]:
    """Run a Prometheus that asks the daemon at `port`, with our rules, but without their patience."""
    impatient = directory / "alerts.yml"
    impatient.write_text(re.sub(r"\n +for: \w+", "", RULES.read_text(encoding="utf-8")), encoding="utf-8")
    config = directory / "prometheus.yml"
    config.write_text(CONFIG.format(rules=impatient, port=port), encoding="utf-8")
    listen = free_port()
    command = [
        program("prometheus"),
        f"--config.file={config}",
        f"--storage.tsdb.path={directory / 'prometheus'}",
        f"--web.listen-address=127.0.0.1:{listen}",
        "--log.level=warn",
    ]
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"GOMAXPROCS": "1"})
    try:
        server = Prometheus(listen)
        wait_for(lambda: server.ready, "Prometheus to answer")
        yield server
    finally:
        process.terminate()
        process.wait(20)
        print((directory / "prometheus.log").read_text())

"""The files that deploy streamer: the compose file is one, and what it sets up works; the unit is one; both run what exists.

Nothing is built here: what the containers would run is run on the servers of the tests. `tests/compose_spec` is the schema of the
compose specification, with its licence. https://github.com/compose-spec/compose-spec
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Final

import fastjsonschema
import pytest
import yaml

from streamer import config
from tests.acceptance.daemon import Streamer
from tests.conftest import Databases
from tests.mysql_servers import MysqlDatabase
from tests.servers import PostgresServer
from tests.waiting import wait_for, wait_for_equal

ROOT: Final = Path(__file__).parents[2]
UNIT: Final = ROOT / "deploy/streamer.service"
COMPOSE: Final[dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))


def inline(name: str) -> str:
    """A file that the compose file holds, as a container sees it."""
    return str(COMPOSE["configs"][name]["content"]).replace("$$", "$")


def settings(service: str) -> dict[str, str]:
    """The settings that a PostgreSQL server of the compose file is started with."""
    command = COMPOSE["services"][service]["command"]
    return dict(argument.split("=", 1) for argument in command if "=" in argument)


def test_the_compose_file_is_one_by_the_specification() -> None:
    schema = json.loads((ROOT / "tests/compose_spec/compose-spec.json").read_text(encoding="utf-8"))
    fastjsonschema.compile(schema)(COMPOSE)


def test_the_compose_file_mounts_what_is_there() -> None:
    used = {mounted["source"] for service in COMPOSE["services"].values() for mounted in service.get("configs", ())}
    assert used == set(COMPOSE["configs"])
    files = [entry["file"] for entry in COMPOSE["configs"].values() if "file" in entry]
    files += [volume.split(":")[0] for service in COMPOSE["services"].values() for volume in service.get("volumes", ())]
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_the_servers_of_the_compose_file_are_told_to_allow_what_is_used() -> None:
    for service in ("a", "b"):
        assert settings(service)["wal_level"] == "logical"
        assert settings(service)["track_commit_timestamp"] == "on"
        assert "wal2json" in settings(service)["output_plugin_libraries"].split(",")


@pytest.mark.parametrize(
    "name", ["prometheus.yml", "provisioning/datasources/prometheus.yml", "provisioning/dashboards/streamer.yml"]
)
def test_what_prometheus_and_grafana_are_given_is_yaml(name: str) -> None:
    assert yaml.safe_load((ROOT / "grafana" / name).read_text(encoding="utf-8"))


def test_what_compose_sets_up_works(
    databases: Databases, pg15: PostgresServer, pg18: PostgresServer, mariadb: MysqlDatabase, tmp_path: Path
) -> None:
    a, b = databases.create(pg15, "shop"), databases.create(pg18, "shop")
    for node in (a, b):
        node.execute(inline("tables.sql"))
    streamer = Streamer(tmp_path, {"a": a.url, "b": b.url})
    text = inline("streamer.toml").replace("0.0.0.0:9851", f"127.0.0.1:{streamer.port}")
    places = {"a": a.url, "b": b.url, "m": mariadb.url}
    streamer.path.write_text(re.sub(r'url = ".*@(\w)/shop"', lambda found: f'url = "{places[found[1]]}"', text))
    environment = COMPOSE["services"]["streamer"]["environment"]
    streamer.environment |= environment
    with streamer:
        streamer.setup().start()
        token = {"Authorization": f"Bearer {inline('token')}"}
        wait_for(lambda: answer(streamer.port, "/metrics", token).count("streamer_edge_up{") == 3, "the metrics of three edges")
        wait_for(lambda: answer(streamer.port, "/readyz", {}) != "", "all streams to be ready")
        a.execute("INSERT INTO customers (name) VALUES ('Ada')")
        b.execute("INSERT INTO customers (name) VALUES ('Bob')")
        for query in (a.query, b.query, mariadb.query):
            wait_for_equal(lambda query=query: sorted(query("SELECT name FROM customers")), [("Ada",), ("Bob",)], "both rows")  # type: ignore[misc]
        assert answer(streamer.port, "/metrics", {}) == "", "nobody is told without the token"
        assert streamer.stop() == 0
        assert environment["PASSWORD"] not in streamer.log


def answer(port: int, path: str, headers: dict[str, str]) -> str:
    """What the daemon answers; nothing if it refuses, or does not answer yet."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=5) as response:
            return str(response.read().decode())
    except OSError:
        return ""


# -- systemd, Docker ---------------------------------------------------------------------------------------------------------


def systemd_analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is missing: install systemd")
    return subprocess.run([program, *arguments], capture_output=True, text=True)


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    here = UNIT.read_text(encoding="utf-8").replace("/opt/streamer/bin/streamer", shutil.which("true") or "")
    unit = tmp_path / "streamer.service"
    unit.write_text(here.replace("=streamer\n", "=daemon\n"), encoding="utf-8")
    verified = systemd_analyze("verify", str(unit))
    assert (verified.returncode, verified.stdout) == (0, ""), verified.stderr
    assert "streamer.service" not in verified.stderr


def test_systemd_finds_the_unit_hardly_exposed() -> None:
    judged = systemd_analyze(
        "security", "--offline=true", "--threshold=15", str(UNIT)
    )  # 1.5 of 10, where 10 is no hardening at all
    assert judged.returncode == 0, judged.stdout


def test_the_unit_and_the_image_run_a_command_that_exists() -> None:
    (started,) = re.findall(r"^ExecStart=/opt/streamer/bin/(.*)$", UNIT.read_text(encoding="utf-8"), re.MULTILINE)
    assert started.split() == ["streamer", "run", "--config", "/etc/streamer/streamer.toml"]
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert 'ENTRYPOINT ["streamer"]\nCMD ["run"]' in dockerfile
    copied = [name for line in re.findall(r"^COPY (?!--)(.*) \S+$", dockerfile, re.MULTILINE) for name in line.split()]
    assert copied
    assert [name for name in copied if not (ROOT / name).exists()] == []


def test_the_compose_file_has_a_config_that_is_valid(tmp_path: Path) -> None:
    (tmp_path / "streamer.toml").write_text(inline("streamer.toml"), encoding="utf-8")
    loaded = config.load(tmp_path / "streamer.toml", COMPOSE["services"]["streamer"]["environment"])
    assert loaded.http.address == ("0.0.0.0", 9851)

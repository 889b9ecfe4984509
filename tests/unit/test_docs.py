"""The docs describe each command, option and config key; what they show as a config is one; their links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import pytest
import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from streamer import config, conflict_config, http_config, node_config, topology
from streamer.admin.init import TEMPLATE
from streamer.admin.status import RELOAD, Line, NodeFinding
from streamer.cli import app
from streamer.report import DeltaReport

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("grafana/*.md")])
COMMANDS: Final[dict[str, Any]] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
MODELS: Final[dict[str, type[BaseModel]]] = {
    "[nodes.NAME]": node_config.Node,
    "[syncs.NAME]": config.Sync,
    '[syncs.NAME.table."TABLE"]': conflict_config.TableSettings,
    "[http]": http_config.Http,
}


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def section(page: str, heading: str) -> str:
    """What stands below the first heading that begins so, up to the next one of its level or above."""
    level = heading.split(" ")[0]
    start = page.find(f"\n{heading}")
    assert start >= 0, f"no heading {heading!r}"
    body = page[start + 1 :].split("\n", 1)[1]
    return re.split(rf"^#{{1,{len(level)}}} ", body, maxsplit=1, flags=re.MULTILINE)[0]


def keys_of(model: type[BaseModel]) -> list[tuple[str, FieldInfo]]:
    """The keys of a table of the config with what is known of them; tables below it have sections of their own."""
    return [(name, field) for name, field in model.model_fields.items() if not isinstance(field.default, dict)]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_described_with_all_its_options(command: str) -> None:
    described = section(text("docs/cli.md"), f"## `streamer {command}")
    options = [name for parameter in COMMANDS[command].params for name in parameter.opts if name.startswith("--")]
    assert [o for o in options if o not in ("--config", "--help") and f"`{o}" not in described] == []


def test_no_command_is_described_that_does_not_exist() -> None:
    assert set(re.findall(r"^## `streamer ([\w-]+)", text("docs/cli.md"), re.MULTILINE)) == set(COMMANDS)


def test_what_status_prints_as_json_is_described() -> None:
    (shown,) = re.findall(r"```\n(.*?)```", section(text("docs/cli.md"), "## `streamer status"), re.DOTALL)
    keys = re.findall(r'"(\w+)"', re.sub(r'"ok\|.*?"', "", shown))
    top = ["severity", "running", "edges", "nodes", "deltas"]
    assert sorted(keys) == sorted([*top, *(field.name for made in (Line, NodeFinding, DeltaReport) for field in fields(made))])


@pytest.mark.parametrize("table", MODELS)
def test_every_config_key_is_described_and_in_the_file_that_init_writes(table: str) -> None:
    described = section(text("docs/configuration.md"), f"## `{table}`")
    keys = {field.alias or name for name, field in keys_of(MODELS[table])}
    assert set(re.findall(r"^### `(\w+)`", described, re.MULTILINE)) == keys
    assert {key for key in keys if not re.search(rf"^(# )?{key} = ", TEMPLATE, re.MULTILINE)} == set()


def test_every_default_is_told() -> None:
    page = text("docs/configuration.md")
    for table, model in MODELS.items():
        for name, field in keys_of(model):
            described = section("\n" + section(page, f"## `{table}`"), f"### `{field.alias or name}`")
            assert default_of(field) in described, f"{table} {name}: {default_of(field)}"


def default_of(field: FieldInfo) -> str:
    """What the page says of a key's default."""
    if field.is_required():
        return "Required"
    return {(): "[]", None: "Default: ", False: "`false`"}.get(field.default, str(field.default))


@pytest.mark.parametrize("page", ["README.md", "docs/configuration.md"])
def test_what_is_shown_as_a_config_is_one(page: str, tmp_path: Path) -> None:
    examples = re.findall(r"```toml\n(.*?)```", text(page), re.DOTALL)
    assert examples
    for example in examples:
        (tmp_path / "streamer.toml").write_text(example, encoding="utf-8")
        topology.check(config.load(tmp_path / "streamer.toml", {"SHOP_PASSWORD": "secret"}))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_the_daemon_is_found_by_the_command_that_reloads_its_config(tmp_path: Path) -> None:
    (command,) = re.findall(r"pkill -HUP .*'", section(text("docs/operating.md"), "## Changing the config"))
    assert command in RELOAD
    script = tmp_path / "bin/streamer"  # as pip makes it
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nprint(flush=True)\ninput()\n")
    script.chmod(0o755)
    with subprocess.Popen([script, "run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        daemon.stdout.readline()
        # no signal: there may be other daemons on this machine
        asked = subprocess.run(["sh", "-c", f"echo $$; {command.replace('pkill -HUP', 'pgrep')}"], capture_output=True, text=True)
        shell, *found = asked.stdout.split()
        daemon.communicate()
    assert str(daemon.pid) in found
    assert shell not in found

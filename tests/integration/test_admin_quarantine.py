"""`streamer quarantine` on each kind of target that keeps one: what is shown, retried and discarded, and what is refused again."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from streamer.admin.quarantine import Filter, discard, find, get, make_filter, retry
from streamer.admin.status import Severity, status
from streamer.cli import app
from streamer.config import Config
from streamer.errors import StreamerError, UsageError
from streamer.model import LSN, UNCHANGED, Change, Kind
from tests.changes import delete, group, insert, relation, table, truncate, update, write
from tests.configs import document, make_config, write_config
from tests.integration.targets import EDGE, MysqlTarget, PostgresTarget, Rows, SqliteTarget, Target, opened
from tests.servers import Database

NAMED = table("named", id="integer", name="text")
R = relation(NAMED)
NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"


@dataclass
class Place:
    """A target with a table in which the name "taken" is taken by a row of its own, and a config that names it as node b."""

    target: Target
    nodes: dict[str, str]

    @property
    def config(self) -> Config:
        return make_config(self.nodes, on_error="quarantine")

    def write(self, *changes: Change, to: int) -> None:
        with opened(self.target, lambda table: True) as sink:
            write(sink, group(*changes, to=to))

    def free(self) -> None:
        """Take the row away that is in the way."""
        with opened(self.target) as sink:
            write(sink, group(delete(R, "1000", None), to=900))

    @property
    def rows(self) -> Rows:
        return self.target.rows(NAMED)

    def retry(self, *ids: str, **wanted: str) -> tuple[list[str], list[str]]:
        """What retry says, and what goes wrong."""
        said: list[str] = []
        problems = retry(self.config, make_filter(ids=ids, **wanted), said.append)
        return said, [str(problem) for problem in problems]


@pytest.fixture(params=["sqlite", "mariadb", "postgres15"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    target: Target
    if request.param == "sqlite":
        path = tmp_path / "target.sqlite"
        target, url = SqliteTarget(path), f"sqlite:///{path}"
    elif request.param == "mariadb":
        database = request.getfixturevalue("mariadb")
        target, url = MysqlTarget(database), database.url
    else:
        database = request.getfixturevalue("target15")
        target, url = PostgresTarget(database), database.url
    target.create(NAMED, "name")
    made = Place(target, {"a": NOWHERE, "b": url})
    made.write(insert(R, "1000", "taken"), to=110)
    return made


def held(place: Place) -> None:
    """Rows 1 and 2 are refused, and 2 has followers, one of which is row 3 now; 4 is written."""
    place.write(insert(R, "1", "taken"), insert(R, "4", "d"), to=200)
    place.write(insert(R, "2", "taken"), to=300)
    place.write(update(R, "2", "b"), update(R, "3", "c", old=("2", UNCHANGED)), to=400)


def ids(place: Place) -> list[int]:
    return [change.id for change in find(place.config, Filter(), 50).changes]


def test_changes_are_found_the_newest_first(place: Place) -> None:
    held(place)
    found = find(place.config, Filter(), 3)
    assert [(c.kind, c.key, c.error is None) for c in found.changes] == [
        (Kind.UPDATE, {"id": "2"}, True),
        (Kind.UPDATE, {"id": "2"}, True),
        (Kind.INSERT, {"id": "2"}, False),
    ]
    assert (found.more, found.problems) == (True, [])
    first, second, third, last = find(place.config, Filter(), 50).changes
    assert first.id > second.id > third.id > last.id
    assert (last.edge, last.new, last.old, last.origin, last.position) == (EDGE, {"id": "1", "name": "taken"}, None, "a", "0/C7")
    assert get(place.config, f"b:{last.id}") == last
    for filters, number in (
        ({"table": "named"}, 4),
        ({"table": "public.other"}, 0),
        ({"sync": "shop"}, 4),
        ({"node": "b"}, 4),
        ({"since": "1h"}, 4),
        ({"since": "2099-01-01"}, 0),
    ):
        assert len(find(place.config, make_filter(**filters), 50).changes) == number, filters


def test_a_retry_applies_everything_in_order_and_later_changes_are_written_again(place: Place) -> None:
    held(place)
    with opened(place.target, lambda table: True) as sink:  # as a daemon has it open meanwhile
        write(sink, group(delete(R, "1000", None), update(R, "1", "a"), to=500))
        assert place.retry() == (["shop: a -> b: applied 5 changes"], [])
        assert place.rows == [("1", "a"), ("3", "c"), ("4", "d")]
        assert write(sink, group(update(R, "3", "e"), to=600)).updated == 1
    assert place.rows == [("1", "a"), ("3", "e"), ("4", "d")]
    assert place.retry() == (["there is nothing in quarantine"], [])


def test_a_retry_that_is_refused_again_leaves_everything_as_it_was(place: Place) -> None:
    held(place)
    before = place.target.held()
    said, (problem,) = place.retry()
    assert said == []
    assert "public.named" in problem
    assert problem.endswith("it is held as before; cure what is in its way, then retry again")
    assert place.target.held() == before
    assert place.rows == [("1000", "taken"), ("4", "d")]


def test_a_row_that_was_put_right_on_the_source_needs_no_other_cure(place: Place) -> None:
    held(place)
    assert place.retry(f"b:{ids(place)[0]}") == (["shop: a -> b: applied 3 changes"], [])
    assert place.rows == [("1000", "taken"), ("3", "c"), ("4", "d")]
    assert len(place.target.held()) == 1


def test_a_row_with_a_long_history_is_applied_as_what_it_came_to(place: Place) -> None:
    with opened(place.target, lambda table: True) as sink:
        write(sink, group(insert(R, "1", "taken")))
        for to in range(210, 219):
            write(sink, group(*(update(R, "1", "taken", old=("1", UNCHANGED)) for _ in range(100)), to=to))
        write(sink, group(update(R, "1", "a"), to=300))
    (first,) = [change.id for change in find(place.config, Filter(), 1000).changes if change.kind is Kind.INSERT]
    assert place.retry(f"b:{first}") == (["shop: a -> b: applied 902 changes"], [])
    assert place.rows == [("1", "a"), ("1000", "taken")]


def test_one_change_brings_all_of_its_row_and_no_others(place: Place) -> None:
    held(place)
    place.free()
    last, _, _, first = ids(place)
    assert place.retry(f"b:{first}") == (["shop: a -> b: applied 1 change"], [])
    assert place.rows == [("1", "taken"), ("4", "d")]
    place.write(update(R, "1", "a"), to=910)
    assert place.retry(f"b:{last}", f"b:{first}", f"b:{last}") == (
        ["shop: a -> b: applied 3 changes"],
        [f"there is no change b:{first} in quarantine; it was retried or discarded; see: streamer quarantine list"],
    )
    assert place.rows == [("1", "a"), ("3", "c"), ("4", "d")]


def test_changes_whose_row_is_not_there_are_told(place: Place) -> None:
    held(place)
    place.free()
    first = ids(place)[-1]
    place.write(update(R, "1", "x"), to=910)
    with opened(place.target) as sink:
        assert sink.quarantined() == 5
    assert discard(place.config, make_filter(ids=[f"b:{first}"]), lambda lines: True, print) == []
    place.write(insert(R, "5", "e"), to=920)
    assert place.retry(table="named")[0] == ["shop: a -> b: applied 3 changes"]


def test_discarding_asks_and_forgets_a_row_with_its_followers(place: Place) -> None:
    held(place)
    last = f"b:{ids(place)[0]}"
    shown: list[str] = []

    def ask(answer: bool) -> list[str]:
        said: list[str] = []

        def confirm(lines: Sequence[str]) -> bool:
            shown[:] = lines
            return answer

        assert discard(place.config, make_filter(ids=[last]), confirm, said.append) == []
        return said

    assert ask(False) == []
    assert len(place.target.held()) == 4
    assert ask(True) == ["shop: a -> b: discarded 3 changes"]
    assert shown[0].endswith("insert of public.named, id=2")
    assert shown[-1] == "shop: a -> b: 3 changes will be forgotten; the rows on the target stay as they are"
    assert len(place.target.held()) == 1
    assert place.rows == [("1000", "taken"), ("4", "d")]


def test_status_without_a_daemon_tells_how_many_are_held(place: Place) -> None:
    held(place)
    (line,) = status(place.config).edges
    assert line.quarantined == 4
    assert line.severity == Severity.CRITICAL  # nothing runs


def test_random_changes_are_as_on_the_source_after_a_retry(place: Place) -> None:
    """Whatever is refused and follows: rows of which nothing is held are right at once, and all are after a cure and a retry."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    source: dict[str, str] = {}
    with opened(place.target, lambda table: True) as sink:
        for to in range(200, 212):
            changes = [_random_change(chance, source) for _ in range(chance.choice((1, 3, 60)))]
            write(sink, group(*changes, to=to))
    touched = {json.loads(row)["id"] for _, *rows, _ in place.target.held() for row in rows if row is not None}
    assert {id_: name for id_, name in place.rows if id_ not in {*touched, "1000"}} == {
        id_: name for id_, name in source.items() if id_ not in touched
    }
    place.free()
    _, problems = place.retry()
    assert problems == []
    assert {id_: name for id_, name in place.rows} == source


def _random_change(chance: random.Random, source: dict[str, str]) -> Change:
    """A change of the source, where the name "taken" is one of many."""
    key, other = str(chance.randrange(30)), str(chance.randrange(30))
    name = "taken" if chance.random() < 0.2 and "taken" not in source.values() else f"n{chance.randrange(1 << 40)}"
    if chance.random() < 0.004:
        source.clear()
        return truncate(R)
    if key not in source:
        source[key] = name
        return insert(R, key, name)
    if chance.random() < 0.2:
        del source[key]
        return delete(R, key, None)
    if chance.random() < 0.3 and other not in source:
        del source[key]
        source[other] = name
        return update(R, other, name, old=(key, UNCHANGED))
    source[key] = name
    return update(R, key, name)


def test_a_retry_on_postgresql_is_tagged_with_the_node_that_made_the_changes(target15: Database) -> None:
    """Readers of its WAL must know where they come from; a transaction has one origin."""
    target = PostgresTarget(target15)
    target.create(NAMED, "name")
    place = Place(target, {"a": NOWHERE, "b": target15.url})
    place.write(insert(R, "1000", "taken"), to=110)
    with opened(target, lambda table: True) as sink:
        for to, node in ((200, "a"), (300, "z"), (400, "z"), (500, "a")):
            made = group(insert(R, str(to), "taken"), to=to)
            write(sink, replace(made, origin=replace(made.origin, node=node)))
    target15.execute("ALTER TABLE named DROP CONSTRAINT named_name_key")
    before = target.position()
    assert place.retry() == ([f"shop: a -> b: applied {number}" for number in ("1 change", "2 changes", "1 change")], [])
    assert target15.query("SELECT origin, origin_position FROM streamer.progress") == [("a", str(LSN(499)))]
    assert (target.position(), len(place.rows)) == (before, 5)


# -- what cannot be asked for --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "error"),
    [
        ({"ids": ["b"]}, '"b" is not the id of a change; take one that streamer quarantine list shows, like b:12'),
        ({"ids": ["a:1"]}, 'node "a" keeps no quarantine; these do: b'),
        ({"node": "z"}, 'node "z" keeps no quarantine; these do: b'),
        ({"sync": "z"}, 'the config has no sync "z"'),
        ({"ids": ["b:1"], "table": "t"}, "ids and --node or --table exclude each other"),
    ],
)
def test_what_makes_no_sense_is_refused(wanted: dict[str, Any], error: str, tmp_path: Path) -> None:
    config = make_config({"a": NOWHERE, "b": f"sqlite:///{tmp_path}/b.sqlite"})
    with pytest.raises(UsageError, match=r".") as refused:
        retry(config, make_filter(**wanted), print)
    assert str(refused.value).startswith(error)


def test_events_in_files_have_no_quarantine(tmp_path: Path) -> None:
    config = make_config({"a": NOWHERE, "b": f"jsonl://{tmp_path}/b.jsonl"}, on_error="quarantine")
    with pytest.raises(UsageError, match=r"no sync has a target that keeps a quarantine; see docs/quarantine\.md"):
        find(config, Filter(), 1)


def test_a_target_of_an_older_version_says_what_to_do(target15: Database, tmp_path: Path) -> None:
    """Both the sink and the commands."""
    target = PostgresTarget(target15)
    target15.execute("DROP TABLE streamer.quarantine")
    config = make_config({"a": NOWHERE, "b": target15.url})
    found = find(config, Filter(), 1)
    assert [str(p) for p in found.problems] == ['node "b" is not set up to keep a quarantine; run: streamer setup']
    sink = target.sink()
    with pytest.raises(StreamerError, match='schema streamer on "b" is of an older version; run: streamer setup'):
        sink.open()
    sink.close()


# -- the command line --------------------------------------------------------------------------------------------------------------


def call(directory: Path, nodes: dict[str, str], *arguments: str, answer: str = "") -> Result:
    path = write_config(directory / "streamer.toml", document(nodes, on_error="quarantine"))
    return CliRunner().invoke(app, ["quarantine", *arguments, "--config", str(path)], input=answer)


def test_the_commands_print_what_a_person_and_a_program_want(place: Place, tmp_path: Path) -> None:
    def streamer(*arguments: str, answer: str = "") -> str:
        done = call(tmp_path, place.nodes, *arguments, answer=answer)
        assert done.exit_code == 0, done.output
        return done.output

    assert streamer("list") == "nothing is in quarantine\n"
    held(place)
    header, *lines = streamer("list", "--limit", "2").splitlines()
    assert header.split() == ["time", "(UTC)", "id", "table", "key", "change", "error"]
    assert lines[0].endswith("update  (follows an earlier one)")
    assert lines[2] == "there are older ones: see --limit"
    document = json.loads(streamer("list", "--json"))
    assert [change["follows"] for change in document["changes"]] == [True, True, False, False]
    last = document["changes"][0]
    shown = streamer("show", last["id"])
    assert shown.startswith(f"{last['id']}: update of table public.named, key id=2\n")
    assert "error:   none: it follows an earlier change of the same row" in shown
    assert json.loads(streamer("show", last["id"], "--json")) == last
    assert last["new_row"] == {"id": "3", "name": "c"}
    assert streamer("retry", last["id"]) == "shop: a -> b: applied 3 changes\n"
    refused = call(tmp_path, place.nodes, "retry")
    assert refused.exit_code == 1
    assert "public.named" in refused.stderr
    assert call(tmp_path, place.nodes, "discard", answer="n\n").output.endswith("Forget them? [y/N]: n\n")
    assert streamer("discard", "--yes").endswith("shop: a -> b: discarded 1 change\n")
    assert streamer("list") == "nothing is in quarantine\n"

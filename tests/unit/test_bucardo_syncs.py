"""Syncs of Bucardo's as syncs here, and what is left out. Each config goes through our own loader."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.bucardo import reading
from streamer.bucardo.control import Code, Control, Custom, Database, Relation, Sync
from streamer.bucardo.translation import translate
from streamer.config import slot_name
from streamer.model import TableName
from tests.unit.controls import ARCHIVE, LINES, NUMBERS, ORDERS, control, database, imported, loaded, sync

MASTERS = "a:source b:source d:target"


def test_a_sync_with_one_source_is_the_same_here(tmp_path: Path) -> None:
    config, notes = imported(tmp_path, control(sync(relations=[ORDERS, LINES, NUMBERS])))
    shop = config.syncs["shop"]
    assert (shop.sources, shop.targets, shop.run, shop.sequences) == (("a",), ("b",), "continuous", True)
    assert shop.tables == ("public.orders", "public.lines", "public.orders_id_seq")
    assert "left out" not in notes
    assert "by hand" not in notes


@pytest.mark.parametrize(
    ("onetimecopy", "roles", "copy"), [(0, "", "never"), (1, "", "always"), (2, "", "if-empty"), (1, MASTERS, "if-empty")]
)
def test_onetimecopy_says_what_is_copied(tmp_path: Path, onetimecopy: int, roles: str, copy: str) -> None:
    config, _ = imported(tmp_path, control(sync(roles=roles or "a:source b:target", onetimecopy=onetimecopy)))
    assert config.syncs["shop"].copy_rows == copy


@pytest.mark.parametrize(
    ("autokick", "checktime", "run"),
    [(True, 0, "continuous"), (True, 600, "continuous"), (False, 0, "manual"), (False, 600, "every 10m"), (False, 90, "every 90s"),
     (False, 0.2, "every 1s"), (False, 86400 * 1000, "every 366d")],
)  # fmt: skip
def test_kicks_say_when_it_runs(tmp_path: Path, autokick: bool, checktime: float, run: str) -> None:
    config, _ = imported(tmp_path, control(sync(autokick=autokick, checktime=checktime)))
    assert config.syncs["shop"].run == run


# -- conflicts ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "policy", "kind"),
    [
        ("bucardo_latest", "latest", "different"),
        ("bucardo_latest_all_tables", "latest", "different"),
        ("bucardo_abort", "error", "same"),
        ("bucardo_custom", "error", "different"),
        ("bucardo_source", "error", "by hand"),
        ("bucardo_random", "error", "by hand"),
        ("b a", ("b", "a"), "same"),
        ("b,d", ("b", "a"), "different"),
    ],
)
def test_a_conflict_strategy_is_a_policy(tmp_path: Path, strategy: str, policy: object, kind: str) -> None:
    config, notes = imported(tmp_path, control(sync(roles=MASTERS, conflict_strategy=strategy)))
    assert config.syncs["shop"].conflict == policy
    assert any(f"conflict_strategy {strategy}" in line for line in notes[kind])


def test_a_strategy_means_nothing_with_one_source(tmp_path: Path) -> None:
    config, _ = imported(tmp_path, control(sync(conflict_strategy="bucardo_abort")))
    assert "conflict" not in config.syncs["shop"].model_fields_set


def test_code_for_conflicts_names_a_function_that_is_to_be_written(tmp_path: Path) -> None:
    codes = [Code("longest text!", "conflict", True, sync="shop"), Code("sums", "conflict", True, relation=2)]
    codes += [Code("second", "conflict", True, sync="shop")]
    config, notes = imported(tmp_path, control(sync(roles=MASTERS), codes=codes))
    shop = config.syncs["shop"]
    assert shop.conflict == "python:from_bucardo:longest_text_"
    assert shop.rules_for(TableName("public", "lines")).conflict == "python:from_bucardo:sums"
    assert [line.split('"')[1] for line in notes["by hand"]] == ["sums", "second", "longest text!"]


def test_code_of_every_kind_is_told_with_what_there_is_here(tmp_path: Path) -> None:
    hooks = ["before_txn", "before_sync", "after_sync", "exception", "after_table_sync"]
    codes = [Code(hook, hook, True, sync="shop") for hook in hooks]
    codes += [
        Code("idle", "after_txn", False, sync="shop"),
        Code("lost", "after_txn", True),
        Code("none", "conflict", True, relation=1),
    ]
    _, notes = imported(tmp_path, control(sync(), codes=codes))
    assert [line.split('"')[1] for line in notes["by hand"]] == hooks
    assert "on_error" in next(line for line in notes["by hand"] if "exception" in line)
    assert [line.split('"')[1] for line in notes["left out"]] == ["idle", "lost"]
    assert 'customcode "none" (conflict): of table "public.orders": with one source there are no conflicts' in notes["no meaning"]


# -- shapes ------------------------------------------------------------------------------------------------------------------------


def test_the_most_exact_customname_holds(tmp_path: Path) -> None:
    names = [
        Custom(1, "everywhere"),
        Custom(1, "of_sync", sync="shop"),
        Custom(1, "of_c", database="c"),
        Custom(1, 'crm."Of Sync on d"', database="d", sync="shop"),
        Custom(1, "of_another", database="b", sync="other"),
    ]
    config, _ = imported(tmp_path, control(sync(roles="a:source b:target c:target d:target"), names=names))
    orders = TableName("public", "orders")
    shop = config.syncs["shop"]
    assert {node: str(shop.shapes_for(node)[orders].target) for node in "bcd"} == {
        "b": "public.of_sync",
        "c": "public.of_c",
        "d": "crm.Of Sync on d",
    }


def test_what_all_targets_have_alike_stands_with_the_table(tmp_path: Path) -> None:
    config, _ = imported(tmp_path, control(sync(roles="a:source b:target c:target"), names=[Custom(1, "Sales.Orders")]))
    assert config.syncs["shop"].target == {}
    assert config.syncs["shop"].table["public.orders"].rename == "sales.orders"


def test_names_fold_as_the_targets_sql_folds_them(tmp_path: Path) -> None:
    config, _ = imported(tmp_path, control(sync(), databases=[database("b", kind="mysql")], names=[Custom(1, "Orders2")]))
    assert config.syncs["shop"].table["public.orders"].rename == "public.Orders2"


def test_customcols_that_name_columns_are_columns(tmp_path: Path) -> None:
    columns = [Custom(1, 'SELECT id, name AS "Full Name", Mail m'), Custom(2, "SELECT *")]
    config, notes = imported(tmp_path, control(sync(), columns=columns))
    settings_of = config.syncs["shop"].table["public.orders"]
    assert settings_of.columns == ("id", "name", "mail")
    assert settings_of.rename_columns == {"name": "Full Name", "mail": "m"}
    assert "public.lines" not in config.syncs["shop"].table
    assert "by hand" not in notes


@pytest.mark.parametrize(
    "clause", ["SELECT id, 'x' AS name", "SELECT id, upper(name) AS name", "SELECT id, a, b || c AS d", "SELECT id::text"]
)
def test_customcols_that_compute_are_a_function_that_is_to_be_written(tmp_path: Path, clause: str) -> None:
    config, notes = imported(tmp_path, control(sync(), columns=[Custom(1, clause)]))
    assert config.syncs["shop"].table["public.orders"].transform == "python:from_bucardo:public_orders"
    assert "public_orders" in notes["by hand"][0]


def test_a_target_of_several_sources_with_other_names_has_a_sync_of_its_own(tmp_path: Path) -> None:
    config, notes = imported(tmp_path, control(sync(roles=f"{MASTERS} e:target"), names=[Custom(1, "crm.orders", database="e")]))
    assert (config.syncs["shop"].sources, config.syncs["shop"].targets) == (("a", "b"), ("d",))
    assert (config.syncs["shop_e"].sources, config.syncs["shop_e"].targets) == (("a",), ("e",))
    assert config.syncs["shop_e"].table["public.orders"].rename == "crm.orders"
    assert any("a sync of its own" in line for line in notes["different"])


def test_schemas_are_left_out_of_names_in_sqlite_as_bucardo_does_unless_two_tables_would_be_one(tmp_path: Path) -> None:
    file = database("b", kind="sqlite", dbname="/tmp/x.db")
    config, _ = imported(tmp_path, control(sync(relations=[ARCHIVE, LINES]), databases=[file]))
    assert config.syncs["shop"].table["old.orders"].rename == "public.orders"
    both = replace(ARCHIVE, id=5, schema="older")
    config, notes = imported(tmp_path, control(sync(relations=[ARCHIVE, both]), databases=[file]))
    assert config.syncs["shop"].table == {}
    assert len([line for line in notes["different"] if "several tables" in line]) == 2


# -- full copies -------------------------------------------------------------------------------------------------------------------


def test_a_full_copy_is_made_at_a_kick(tmp_path: Path) -> None:
    config, _ = imported(tmp_path, control(sync(roles="a:source b:fullcopy")))
    shop = config.syncs["shop"]
    assert shop.run == "manual"
    assert all(shop.copies_whole(TableName("public", name)) for name in ("orders", "lines"))
    config, _ = imported(tmp_path, control(sync(roles="a:source b:fullcopy", checktime=3600)))
    assert config.syncs["shop"].run == "every 1h"


def test_any_other_role_is_a_target(tmp_path: Path) -> None:
    config, _ = imported(tmp_path, control(sync(roles="a:source b:replica")))
    assert config.syncs["shop"].targets == ("b",)


def test_a_full_copy_beside_targets_has_a_sync_of_its_own(tmp_path: Path) -> None:
    config, notes = imported(tmp_path, control(sync(roles=f"{MASTERS} e:fullcopy", checktime=3600)))
    assert config.syncs["shop"].targets == ("d",)
    assert (config.syncs["shop_fullcopy"].sources, config.syncs["shop_fullcopy"].targets) == (("a",), ("e",))
    assert config.syncs["shop_fullcopy"].run == "manual"
    assert any("Bucardo 5.6 copies nothing there" in line for line in notes["different"])


# -- what is left out --------------------------------------------------------------------------------------------------------------


def left_out(tmp_path: Path, broken: Sync, *databases: Database) -> str:
    """Why a sync stands in the file as a comment, beside one that is taken."""
    translation = translate(control(sync("good", "x:source y:target"), broken, databases=databases))
    assert list(loaded(translation, tmp_path).syncs) == ["good"]
    assert f"# [syncs.{broken.name}]" in translation.config
    notes = [note for note in translation.notes.notes if (note.kind, note.object) == ("left out", f'sync "{broken.name}"')]
    assert " ".join(notes[-1].text.split()[:5]) in translation.config
    return notes[-1].text


def test_what_cannot_run_is_a_comment_with_the_reason(tmp_path: Path) -> None:
    assert left_out(tmp_path, sync(status="inactive")) == "is inactive"
    assert left_out(tmp_path, sync(relations=[NUMBERS])).startswith("has no tables, and sequences")
    assert left_out(tmp_path, sync(), database("a", status="inactive")) == 'its source "a" is left out'
    assert left_out(tmp_path, sync(), database("b", kind="mongo")) == "has no target left"
    assert left_out(tmp_path, sync(relations=[replace(ORDERS, ghost=True)])) == "has no tables"


def test_a_sync_whose_comments_are_taken_away_is_one_again(tmp_path: Path) -> None:
    relations = [Relation(number, "public", f"a_table_with_a_long_name_{number}") for number in range(9)]
    active, idle = (translate(control(sync("shop", relations=relations, status=status))) for status in ("active", "inactive"))
    config = re.sub(r"^# (LEFT OUT.*\n)?", "", idle.config.partition("# [syncs")[2], flags=re.MULTILINE)
    document = tomllib.loads(f"[syncs{config}")
    assert document["syncs"] == tomllib.loads(active.config)["syncs"]


def test_a_topology_that_streamer_refuses_is_a_comment_with_the_paths(tmp_path: Path) -> None:
    syncs = [sync("one", "a:source b:target"), sync("other", "a:source c:target"), sync("third", "c:source b:target")]
    config, notes = imported(tmp_path, control(*syncs))
    assert list(config.syncs) == ["one", "other"]
    (reason,) = notes["left out"]
    paths = "a -(other)-> c -(third)-> b and a -(one)-> b"
    assert reason.startswith(f'sync "third": streamer refuses it: a transaction made on "a" would reach "b" twice: {paths}; ')


def test_a_file_of_events_that_two_syncs_would_write_is_refused_for_the_second(tmp_path: Path) -> None:
    file = database("f", kind="flatpg")
    config, notes = imported(
        tmp_path, control(sync("one", "a:source f:target"), sync("two", "b:source f:target"), databases=[file])
    )
    assert list(config.syncs) == ["one"]
    assert "would share" in notes["left out"][0]


def test_inactive_targets_are_left_out_and_the_sync_goes_on(tmp_path: Path) -> None:
    config, notes = imported(
        tmp_path, control(sync(roles="a:source b:target c:target"), databases=[database("c", status="inactive")])
    )
    assert config.syncs["shop"].targets == ("b",)
    assert "c" not in config.nodes
    assert len(notes["left out"]) == 2


def test_nothing_is_left_where_every_sync_is_inactive() -> None:
    translation = translate(control(sync(status="inactive")))
    assert translation.syncs == 0


# -- the report --------------------------------------------------------------------------------------------------------------------


def test_what_is_handed_on_is_told_with_and_without_makedelta(tmp_path: Path) -> None:
    syncs = [sync("one", "a:source b:target"), sync("two", "b:source c:target")]
    _, notes = imported(tmp_path, control(*syncs))
    assert any(
        line.startswith('db "b", makedelta: what sync "one" brings there goes on by sync "two"; with')
        for line in notes["different"]
    )
    _, notes = imported(tmp_path, control(*syncs, databases=[database("b", makedelta=True)]))
    assert not any("makedelta" in line for line in notes.get("different", []))
    assert any("makedelta" in line for line in notes["same"])


def test_what_has_no_meaning_here_is_told(tmp_path: Path) -> None:
    table = replace(ORDERS, conflict_strategy="b a", autokick=False, key=())
    shop = sync(relations=[table], settings=("lifetime", "strict_checking"))
    _, notes = imported(tmp_path, control(shop, changed=("log_level",), own_triggers=(1,)))
    assert any("lifetime" in line for line in notes["no meaning"])
    assert any(line.startswith('strict_checking of "shop": streamer check') for line in notes["no meaning"])
    assert any("log_level" in line for line in notes["no meaning"])
    assert any("conflict_strategy" in line for line in notes["no meaning"])
    assert any("autokick is lost" in line for line in notes["different"])
    assert any("has no key" in line for line in notes["by hand"])
    assert any("trigger of yours" in line for line in notes["by hand"])


def test_sequences_are_followed_where_there_is_a_target_that_has_some(tmp_path: Path) -> None:
    masters = sync(roles="a:source b:source c:target", relations=[ORDERS, NUMBERS])
    for kind, expected in (("postgres", True), ("sqlite", False)):
        config, notes = imported(tmp_path, control(masters, databases=[database("c", kind=kind, dbname="/tmp/c")]))
        assert config.syncs["shop"].sequences is expected
        assert ("public.orders_id_seq" in config.syncs["shop"].tables) is expected
        assert any("have no sequences" in line for line in notes.get("no meaning", [])) is not expected
        assert any("Bucardo sets all to the highest" in line for line in notes["different"])


def test_relations_of_no_sync_are_told(tmp_path: Path) -> None:
    shop = replace(control(sync()), relations={1: ORDERS, 2: LINES, 3: NUMBERS})
    assert [n.object for n in translate(shop).notes.notes if n.text == "is in no sync"] == ['sequence "public.orders_id_seq"']


# -- reading -----------------------------------------------------------------------------------------------------------------------


def test_rows_of_bucardo_5_0_are_read_by_what_they_have() -> None:
    rows: dict[str, list[dict[str, Any]]] = {table: [] for table in reading.TABLES}
    settings_of = {"bucardo_version": "5.0.0", "default_conflict_strategy": "b a"}  # without defval
    rows["bucardo_config"] = [{"name": name, "setting": value, "item": None} for name, value in settings_of.items()]
    rows["db"] = [{"name": name, "dbname": "shop"} for name in "ab"]  # without dbdsn and makedelta
    rows["dbmap"] = [{"db": name, "role": "source", "dbgroup": "g", "gang": 1} for name in "ab"]
    goat = {"id": 1, "schemaname": "s", "tablename": "t", "reltype": "table", "pkey": "x|y", "autokick": True}
    rows["goat"] = [goat | {"conflict_strategy": None, "rebuild_index": 0}]
    rows["herdmap"] = [{"herd": "h", "goat": 1}]
    old = {"name": "old", "herd": "h", "dbs": "g", "autokick": False, "conflict_strategy": "", "status": "active", "onetimecopy": 2}
    rows["sync"] = [old]
    found = reading.from_rows(rows)
    (one,) = found.syncs
    assert (found.version, one.autokick, one.conflict_strategy, one.onetimecopy) == ("5.0.0", False, "b a", 2)
    assert one.relations == (Relation(1, "s", "t", key=("x", "y"), autokick=True),)


def test_bucardo_4_kept_its_settings_otherwise() -> None:
    row = {"setting": "bucardo_version", "value": "4.5.0", "name": None}
    assert reading.version_of([row]) == "4.5.0"


# -- any of them -------------------------------------------------------------------------------------------------------------------

ODD = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=8)
NAMES = st.from_regex(r"[a-zA-Z]\w{0,40}", fullmatch=True)
PASSWORD = "pass@wörd"
ROLES = st.sampled_from(["source", "source", "target", "target", "fullcopy"])
KINDS = st.sampled_from(["postgres"] * 6 + ["mysql", "sqlite", "flatpg", "mongo"])


@st.composite
def controls(draw: st.DrawFn) -> Control:
    names = draw(st.lists(NAMES, min_size=2, max_size=5, unique=True))
    kinds = {name: draw(KINDS) for name in names}
    odd = st.fixed_dictionaries({"user": ODD, "password": st.sampled_from(["", PASSWORD]), "dbname": ODD})
    databases = [database(name, kind=kinds[name], **draw(odd)) for name in names]
    relations = [Relation(n, draw(ODD), draw(ODD), draw(st.booleans())) for n in range(draw(st.integers(1, 4)))]
    syncs = []
    for name in draw(st.lists(NAMES, min_size=1, max_size=4, unique=True)):
        members = draw(st.lists(st.sampled_from(names), min_size=2, unique=True))
        roles = {one: draw(ROLES) if kinds[one] == "postgres" else "target" for one in members}
        syncs.append(
            replace(
                sync(name),
                roles=roles,
                relations=tuple(relations),
                conflict_strategy=draw(ODD),
                onetimecopy=draw(st.integers(0, 2)),
            )
        )
    customs = [
        Custom(draw(st.sampled_from(relations)).id, draw(ODD), draw(st.sampled_from([None, *names])))
        for _ in range(draw(st.integers(0, 3)))
    ]
    return control(*syncs, databases=databases, names=tuple(customs), columns=tuple(customs))


@given(controls())
@settings(max_examples=100, deadline=None)
def test_whatever_bucardo_holds_the_file_loads_and_tells_no_password(
    tmp_path_factory: pytest.TempPathFactory, found: Control
) -> None:
    translation = translate(found)
    for told in (translation.config, translation.notes.as_text(), translation.notes.as_json()):
        assert PASSWORD not in told
    if translation.syncs:
        config = loaded(translation, tmp_path_factory.getbasetemp())
        slots = [slot_name(name, source) for name, one in config.syncs.items() for source in one.sources]
        assert len(set(slots)) == len(slots)

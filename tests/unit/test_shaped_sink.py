"""A sink around another: what the sink inside is given, what the edge outside gets back, and how often the source is asked."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import ModuleType

import pytest

from streamer.errors import ApplyError, ConfigError, SchemaError, SourceError
from streamer.model import LSN, EdgeName, Identity, SlotIdentity, TableName
from streamer.ports import CopyTable, Question, Start
from streamer.shape_config import Shape
from streamer.sinks.shaped import ShapedSink, Shapes, load_functions
from tests.changes import delete, group, insert, relation, table, truncate, update, write
from tests.memory import MemoryDatabase, MemorySink, MemoryTable

ITEMS = table("items", id="integer", n="integer", name="text")
OTHERS = table("others", id="integer", n="integer", name="text")
T, OTHER, THINGS = ITEMS.table, OTHERS.table, TableName("s", "things")
EDGE = EdgeName("shop", "a", "b")
SLOT = SlotIdentity("7", "shop", "streamer_shop_a")
SAME = Shape(T, T, None, {}, "", "")
CUT = Shape(T, THINGS, frozenset({"id", "name"}), {"name": "called"}, "n > 1", "")


class Asked:
    """A row filter that finds numbers above 1 in the first column good, and remembers what it was asked."""

    def __init__(self) -> None:
        self.rounds: list[list[Question]] = []
        self.problem: Exception | None = None
        self.closed = False

    def answer(self, questions: Sequence[Question]) -> Sequence[Sequence[bool]]:
        self.rounds.append(list(questions))
        if self.problem is not None:
            raise self.problem
        return [[row[0] is not None and int(row[0]) > 1 for row in question.rows] for question in questions]

    def cancel(self) -> None:
        """Nothing takes long here."""

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def database() -> MemoryDatabase:
    made = MemoryDatabase()
    made.tables[T] = MemoryTable(("id", "n", "name"), ("id",))
    made.tables[OTHER] = MemoryTable(("id", "n", "name"), ("id",))
    made.tables[THINGS] = MemoryTable(("id", "called"), ("id",))
    return made


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture
def own() -> Iterator[ModuleType]:
    """A module of the user's."""
    module = ModuleType("own_rows")
    sys.modules["own_rows"] = module
    yield module
    del sys.modules["own_rows"]


def opened(database: MemoryDatabase, asked: Asked, *shapes: Shape) -> ShapedSink:
    of = {shape.table: shape for shape in shapes}
    sink = ShapedSink(MemorySink(EDGE, database), Shapes(of, load_functions(shapes), lambda: {T: ["id"]}, asked))
    if sink.open() is None:
        sink.begin(SLOT, LSN(100))
    return sink


def things(database: MemoryDatabase) -> list[tuple[str | None, ...]]:
    return sorted((tuple(row.values()) for row in database.tables[THINGS].rows), key=repr)


# -- streaming ---------------------------------------------------------------------------------------------------------------------


def test_transactions_end_where_they_did_though_rows_are_left_out(database: MemoryDatabase, asked: Asked) -> None:
    items = relation(ITEMS, Identity.FULL)
    sink = opened(database, asked, CUT)
    numbers = ("2", "1", "1", "2", "2", "2")  # rows with a 1 do not travel
    changes = [insert(items, str(key), number, "a") for key, number in enumerate(numbers)]
    write(sink, replace(group(*changes), ends=[1, 3, 5]))
    (written,) = database.groups
    assert (len(written.changes), list(written.ends)) == (4, [1, 1, 3])


def test_changes_are_written_in_their_new_shape(database: MemoryDatabase, asked: Asked) -> None:
    items = relation(ITEMS, Identity.FULL)
    sink = opened(database, asked, CUT)
    done = write(
        sink,
        group(
            insert(items, "1", "1", "a"),
            insert(items, "2", "2", "b"),
            insert(items, "3", None, "c"),
            update(items, "1", "5", "a", old=("1", "1", "a")),
            update(items, "2", "0", "b", old=("2", "2", "b")),
            insert(relation(OTHERS), "9", "0", "stays"),
        ),
    )
    assert things(database) == [("1", "a")]
    assert (done.inserted, done.deleted) == (3, 1)
    assert [row["name"] for row in database.tables[OTHER].rows] == ["stays"]


def test_all_rows_of_several_groups_are_asked_about_at_once_and_equal_ones_once(database: MemoryDatabase, asked: Asked) -> None:
    items = relation(ITEMS, Identity.FULL)
    sink = opened(database, asked, CUT)
    many = [insert(items, str(i), str(i % 3), "x") for i in range(30)]
    sink.write([group(*many[:15], to=200), group(*many[15:], to=300)], lambda: False)
    ((question,),) = asked.rounds
    assert (question.table, question.where, [c.name for c in question.columns]) == (T, "n > 1", ["n"])
    assert sorted(question.rows, key=repr) == [("0",), ("1",), ("2",)]
    assert len(things(database)) == 10


def test_nothing_is_asked_when_no_row_is_in_question(database: MemoryDatabase, asked: Asked) -> None:
    items, others = relation(ITEMS, Identity.FULL), relation(OTHERS)
    sink = opened(database, asked, CUT)
    write(sink, group(insert(others, "1", "2", "x"), truncate(items)))
    assert asked.rounds == []


def test_a_group_of_which_nothing_is_left_moves_progress(database: MemoryDatabase, asked: Asked) -> None:
    sink = opened(database, asked, CUT)
    write(sink, group(insert(relation(ITEMS), "1", "1", "a"), to=250))
    assert things(database) == []
    assert database.progress[EDGE].position == LSN(250)


def test_a_condition_that_fails_leaves_the_target_alone(database: MemoryDatabase, asked: Asked) -> None:
    sink = opened(database, asked, CUT)
    asked.problem = SourceError("division by zero")
    with pytest.raises(SourceError, match="division by zero"):
        write(sink, group(insert(relation(ITEMS), "1", "1", "a")))
    assert database.groups == []


def test_an_old_row_that_lacks_what_is_needed_stops_the_edge(database: MemoryDatabase, asked: Asked) -> None:
    sink = opened(database, asked, CUT)
    with pytest.raises(SchemaError, match='does not carry the column "n"'):
        write(sink, group(delete(relation(ITEMS), "1", None, None)))


def test_a_new_version_of_a_table_is_shaped_anew(database: MemoryDatabase, asked: Asked) -> None:
    wider = relation(table("items", id="integer", name="text", extra="text", n="integer"), Identity.FULL)
    sink = opened(database, asked, CUT)
    write(sink, group(insert(relation(ITEMS, Identity.FULL), "1", "2", "a")))
    write(sink, group(insert(wider, "2", "b", "?", "2"), to=300))
    assert things(database) == [("1", "a"), ("2", "b")]


# -- names -------------------------------------------------------------------------------------------------------------------------


def test_progress_comes_back_under_the_source_s_names(database: MemoryDatabase, asked: Asked) -> None:
    sink = opened(database, asked, CUT)
    sink.keep(T, LSN(7))
    sink.keep(OTHER, LSN(8))
    assert database.progress[EDGE].copied == {THINGS: LSN(7), OTHER: LSN(8)}
    assert sink.progress_by_source()["a"].copied == {T: LSN(7), OTHER: LSN(8)}
    sink.close()
    reopened = ShapedSink(MemorySink(EDGE, database), Shapes({T: CUT}, {}, dict, asked)).open()
    assert reopened is not None
    assert reopened.copied == {T: LSN(7), OTHER: LSN(8)}


def test_what_was_recorded_under_the_old_name_is_not_the_renamed_table(database: MemoryDatabase, asked: Asked) -> None:
    sink = opened(database, asked)
    sink.keep(T, LSN(7))
    sink.close()
    progress = ShapedSink(MemorySink(EDGE, database), Shapes({T: CUT}, {}, dict, asked)).open()
    assert progress is not None
    assert progress.copied == {}


def test_the_target_is_asked_for_the_table_that_it_has(database: MemoryDatabase, asked: Asked) -> None:
    sink = opened(database, asked, CUT)
    write(sink, group(insert(relation(ITEMS), "1", "2", "a")))
    assert sink.has(T)
    assert not sink.is_empty(T)
    assert sink.is_empty(OTHER)
    del database.tables[THINGS]
    assert not sink.has(T)


def test_both_ends_are_closed(database: MemoryDatabase, asked: Asked) -> None:
    opened(database, asked, CUT).close()
    assert asked.closed
    assert database.writers == set()


def test_what_the_source_cannot_give_keeps_the_target_unopened(database: MemoryDatabase, asked: Asked) -> None:
    def examine() -> dict[TableName, Sequence[str]]:
        raise SchemaError('table "public.items" has no column "x"')

    with pytest.raises(SchemaError, match="has no column"):
        ShapedSink(MemorySink(EDGE, database), Shapes({T: CUT}, {}, examine, asked)).open()
    assert database.writers == set()


# -- copies ------------------------------------------------------------------------------------------------------------------------

COPY = CopyTable(T, ("id", "n", "name"), (23, 23, 25), rows=3, key=("id",))


def test_a_copy_is_loaded_under_the_target_s_names(database: MemoryDatabase, asked: Asked) -> None:
    sink = opened(database, asked, CUT)
    read = Shapes({T: CUT}, {}, dict, asked).read(COPY)
    assert (read.columns, read.where) == (("id", "name"), "n > 1")
    assert sink.load(read, Start(LSN(5)), [b"1\ta\n", b"2\t\\N\n"]) == 2
    assert things(database) == [("1", "a"), ("2", None)]
    assert sink.progress_by_source()["a"].copied == {T: LSN(5)}


def test_tables_that_keep_their_shape_are_copied_in_ranges(database: MemoryDatabase, asked: Asked) -> None:
    other = replace(COPY, table=TableName("public", "other"))
    database.tables[other.table] = MemoryTable(other.columns, ("id",))
    ranges = opened(database, asked, CUT).ranges
    assert ranges is not None
    assert (ranges.takes(other), ranges.takes(COPY)) == (True, False)


def test_copied_rows_go_through_the_function(database: MemoryDatabase, asked: Asked, own: ModuleType) -> None:
    own.rows = lambda row: None if row["n"] == "0" else {**row, "name": f"{row['n']}\t{row['name']}"}  # type: ignore[attr-defined]
    shape = replace(CUT, transform="python:own_rows:rows")
    sink = opened(database, asked, shape)
    assert sink.load(COPY, Start(LSN(5)), [b"1\t0\ta\n", b"2\t5\t\\N\n3\t6\tx\\ty\n"]) == 2
    assert things(database) == [("2", "5\tNone"), ("3", "6\tx\ty")]


def test_a_function_that_fails_undoes_the_copy(database: MemoryDatabase, asked: Asked, own: ModuleType) -> None:
    own.rows = lambda row: {**row, "name": 1 // 0}  # type: ignore[attr-defined]
    sink = opened(database, asked, replace(SAME, transform="python:own_rows:rows"))
    with pytest.raises(ApplyError, match=r'transform "python:own_rows:rows" raised ZeroDivisionError: .* for the row with id = 1'):
        sink.load(COPY, Start(LSN(5)), [b"1\t0\ta\n"])
    assert database.tables[T].rows == []


def test_a_table_without_a_shape_is_loaded_as_it_is(database: MemoryDatabase, asked: Asked) -> None:
    sink = opened(database, asked, CUT)
    copy = replace(COPY, table=OTHER)
    assert Shapes({T: CUT}, {}, dict, asked).read(copy) is copy
    assert sink.load(copy, Start(LSN(5)), [b"1\t2\ta\n"]) == 1


# -- functions ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("python:no_such_module:rows", 'table "public.items": transform "python:no_such_module:rows": there is no module'),
        ("python:own_rows:missing", 'module "own_rows" has no function "missing"; name one that takes a row as a dict'),
    ],
)
def test_a_function_that_is_not_there_is_an_error_at_the_start(own: ModuleType, name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_functions([replace(SAME, transform=name)])

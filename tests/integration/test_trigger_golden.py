"""golden.sql through triggers: after each of its transactions a batch has the net effect of what pgoutput tells of it.

Tables that triggers cannot capture (without a key) are left out; what is not told apart by the same key is compared by its rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from streamer.capture.pgoutput import PgoutputDecoder
from streamer.model import TableName, Value
from tests.integration.delta_readers import Rows, apply, captured, place, reading
from tests.integration.test_golden import assembled, open_source, script_sections
from tests.servers import Database

PEEKED = (
    "SELECT data FROM pg_logical_slot_get_binary_changes('golden', NULL, NULL, 'proto_version', '1', 'publication_names', 'golden')"
)


def test_a_batch_has_the_net_effect_of_the_transactions_that_pgoutput_tells(source15: Database) -> None:
    script = script_sections()
    source15.execute(script.pop("tables"))
    source15.execute(re.findall("CREATE TABLE.*?;", script["xml"])[0])
    script["xml"] = re.sub("CREATE TABLE.*?;", "", script["xml"])
    source15.execute("CREATE PUBLICATION golden FOR ALL TABLES WITH (publish_via_partition_root = true)")
    source15.execute("SELECT pg_create_logical_replication_slot('golden', 'pgoutput')")
    _, source = captured(source15)
    keys = {table.table: table.key for table in source.tables() if table.key and table.carried}
    assert {TableName("public", name) for name in ("numbers", "by_index", "long_key", "parted", "altered", "first")} <= keys.keys()
    by_wal: Rows = {}
    by_trigger: Rows = {}
    with reading(source, place(source)) as batches, open_source(source15) as connection:
        decoder = PgoutputDecoder(generated=lambda table: {"twice"})
        for name, text in script.items():
            connection.pgconn.exec_(b"ROLLBACK")
            result = connection.pgconn.exec_(f"BEGIN; {text}; COMMIT".encode())
            assert not result.error_message, result.error_message.decode()
            payloads = [bytes(row[0]) for row in connection.execute(PEEKED)]
            changes = [c for read in assembled(decoder.decode, payloads) for c in read.changes if c[1].table in keys]
            apply(by_wal, changes, keys)
            if changes:
                apply(by_trigger, batches.next().changes, keys)
            for table in keys:
                columns = by_columns(by_wal.get(table, {})), by_columns(by_trigger.get(table, {}))
                assert columns[1] == columns[0], f"{name}: {table}"


def by_columns(rows: Mapping[tuple[Value, ...], Mapping[str, Value]]) -> list[list[tuple[str, Value]]]:
    """The rows in an order of their own."""
    return sorted((sorted(row.items()) for row in rows.values()), key=repr)

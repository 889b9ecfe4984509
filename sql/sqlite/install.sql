-- What streamer keeps in an SQLite target. Idempotent.
CREATE TABLE IF NOT EXISTS streamer_progress (
    sync TEXT NOT NULL,
    source TEXT NOT NULL,
    target TEXT NOT NULL,
    system_identifier TEXT NOT NULL,  -- of the source's cluster, with database and slot: what the position belongs to
    database TEXT NOT NULL,
    slot TEXT NOT NULL,
    position TEXT NOT NULL,           -- LSN: all that was committed on the source before it is in this file
    origin TEXT,                      -- the node that the last transaction was first made on
    origin_position TEXT,
    origin_time TEXT,
    updated TEXT NOT NULL,
    PRIMARY KEY (sync, source, target)
);
CREATE TABLE IF NOT EXISTS streamer_copy (
    sync TEXT NOT NULL,
    source TEXT NOT NULL,
    target TEXT NOT NULL,
    schema_name TEXT NOT NULL,
    table_name TEXT NOT NULL,
    position TEXT NOT NULL,           -- LSN of the snapshot: earlier changes of the table are in its rows
    rows INTEGER,                     -- NULL if the table needed no copy
    copied_at TEXT NOT NULL,
    PRIMARY KEY (sync, source, target, schema_name, table_name)
);

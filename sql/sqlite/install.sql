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
    position TEXT NOT NULL,           -- LSN of the snapshot: earlier changes of the table are in its rows; 0/0: not finished
    rows INTEGER,                     -- NULL if the table needed no copy
    copied_at TEXT NOT NULL,
    PRIMARY KEY (sync, source, target, schema_name, table_name)
);
CREATE TABLE IF NOT EXISTS streamer_copied_part (
    sync TEXT NOT NULL,
    source TEXT NOT NULL,
    target TEXT NOT NULL,
    schema_name TEXT NOT NULL,
    table_name TEXT NOT NULL,
    bounds TEXT NOT NULL,             -- a JSON array: column, whether it is a number, greater than, not greater than (null: without end)
    position TEXT NOT NULL,
    row_count INTEGER NOT NULL,
    PRIMARY KEY (sync, source, target, schema_name, table_name, bounds)
);
CREATE TABLE IF NOT EXISTS streamer_quarantine (
    id INTEGER PRIMARY KEY,
    sync TEXT NOT NULL,
    source TEXT NOT NULL,
    target TEXT NOT NULL,
    schema_name TEXT NOT NULL,
    table_name TEXT NOT NULL,
    kind TEXT NOT NULL,
    row_key TEXT NOT NULL,            -- a JSON object, as are the rows: {column: text or null}; a column that did not travel is missing
    row_id TEXT NOT NULL,             -- a digest of edge, table and key, before the change
    next_row_id TEXT NOT NULL,        -- and after it: by these later changes of the row are found
    relation TEXT NOT NULL,           -- what it takes to apply it: {identity, net, columns: [[name, type, part of the identity]]}
    old_row TEXT,
    new_row TEXT,
    error TEXT,                       -- NULL if it follows a refused change of the same row
    origin TEXT NOT NULL,
    origin_position TEXT NOT NULL,
    origin_time TEXT NOT NULL,
    quarantined TEXT NOT NULL,
    UNIQUE (row_id, id),
    UNIQUE (next_row_id, id)
);

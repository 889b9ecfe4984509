-- What streamer keeps in a PostgreSQL database. Idempotent.

CREATE SCHEMA IF NOT EXISTS streamer;

-- One row an edge that ends here: what this database holds of it. Every transaction that streamer applies writes its row first, so
-- that a reader of this database's WAL knows by the first change where a transaction was made.
CREATE TABLE IF NOT EXISTS streamer.progress (
    sync text NOT NULL,
    source text NOT NULL,
    target text NOT NULL,
    system_identifier text NOT NULL,
    database text NOT NULL,
    slot text NOT NULL,
    position text NOT NULL,
    origin text NOT NULL,
    origin_position text NOT NULL,
    origin_time timestamp with time zone NOT NULL,
    updated timestamp with time zone NOT NULL DEFAULT now(),
    -- the newest commit time, for each other node, that the origin had applied when it made the transaction: {node: time}
    seen text NOT NULL DEFAULT '{}',
    -- and that the source had applied by `position`; empty if the transaction was made there, and the same
    source_seen text NOT NULL DEFAULT '',
    PRIMARY KEY (sync, source, target)
) WITH (fillfactor = 10);

-- An installation from before there were several sources. (ADD COLUMN IF NOT EXISTS is not known to 9.4 and 9.5.)
DO $$
DECLARE
    missing record;
BEGIN
    FOR missing IN
        SELECT c.name, c.value FROM (VALUES ('seen', '{}'), ('source_seen', '')) AS c (name, value)
        WHERE NOT EXISTS (SELECT 1 FROM pg_catalog.pg_attribute
                          WHERE attrelid = 'streamer.progress'::regclass AND attname = c.name AND NOT attisdropped)
    LOOP
        EXECUTE format('ALTER TABLE streamer.progress ADD COLUMN %I text NOT NULL DEFAULT %L', missing.name, missing.value);
    END LOOP;
END
$$;

-- The tables of an edge whose rows are here, and from which position on their changes are applied. A row is the first write of the
-- transaction that copies the table, so that tables can be copied side by side: they would wait for each other at the progress row.
CREATE TABLE IF NOT EXISTS streamer.copy (
    sync text NOT NULL,
    source text NOT NULL,
    target text NOT NULL,
    schema_name text NOT NULL,
    table_name text NOT NULL,
    position text NOT NULL,
    rows bigint,
    origin text NOT NULL,
    origin_position text NOT NULL,
    origin_time timestamp with time zone NOT NULL,
    PRIMARY KEY (sync, source, target, schema_name, table_name)
);

-- What follows is for syncs with several sources.

-- Since when this node takes part in a sync. What was written here before is taken for equal on all nodes: nobody's later change
-- conflicts with it.
CREATE TABLE IF NOT EXISTS streamer.member (
    sync text NOT NULL,
    target text NOT NULL,
    joined timestamp with time zone NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (sync, target)
);

-- A deleted key, or a truncated table; the row's xmin tells when and where that was. The id is the MD5 of the compact JSON array of
-- schema, table and the key's values as text; of schema and table alone for a truncate. Written by triggers on the tables.
CREATE TABLE IF NOT EXISTS streamer.tombstone (
    id uuid PRIMARY KEY,
    schema_name text NOT NULL,
    table_name text NOT NULL,
    key text NOT NULL,
    deleted timestamp with time zone NOT NULL DEFAULT now()
);

-- A row of a table with merged columns (delta, max, min) whose other columns were last written by the transaction xid, although
-- the row's own xmin is newer. The id is made as that of a tombstone.
CREATE TABLE IF NOT EXISTS streamer.version (
    id uuid PRIMARY KEY,
    xid xid NOT NULL,
    written timestamp with time zone NOT NULL DEFAULT now()
);

-- A row, or a tombstone (buried), that an initial copy brought: as written by the transaction xid here, it has really this version.
-- Nobody maintains it: what is written again has another xmin. The id is made as that of a tombstone.
CREATE TABLE IF NOT EXISTS streamer.copied (
    id uuid NOT NULL,
    buried boolean NOT NULL,
    xid xid NOT NULL,
    origin text NOT NULL,
    commit_time timestamp with time zone NOT NULL,
    copied timestamp with time zone NOT NULL DEFAULT now(),
    PRIMARY KEY (id, buried)
);

-- A row here, written in a local transaction, stands for the delete of that key: readers of the WAL make it one. It tells every
-- node of a row that lost against another one with the same unique value, also where the loser never was in the table.
CREATE TABLE IF NOT EXISTS streamer.removal (
    id bigserial PRIMARY KEY,
    schema_name text NOT NULL,
    table_name text NOT NULL,
    -- a JSON object, {column: text}
    key text NOT NULL,
    removed timestamp with time zone NOT NULL DEFAULT now()
);

-- A conflict that was resolved here, or that stopped an edge. See: streamer conflicts.
CREATE TABLE IF NOT EXISTS streamer.conflict (
    id bigserial PRIMARY KEY,
    resolved timestamp with time zone NOT NULL DEFAULT clock_timestamp(),
    sync text NOT NULL,
    source text NOT NULL,
    target text NOT NULL,
    schema_name text NOT NULL,
    table_name text NOT NULL,
    -- key and rows are JSON objects, {column: text or null}; a row that is not there is NULL
    key text NOT NULL,
    kind text NOT NULL,
    change text NOT NULL,
    current_row text,
    current_origin text,
    current_commit timestamp with time zone,
    incoming_row text,
    incoming_origin text,
    incoming_commit timestamp with time zone,
    incoming_position text,
    -- incoming, current or merged; NULL if it is not resolved
    winner text,
    rule text,
    error text
);

-- Where a transaction was made that streamer wrote here: for servers that cannot keep it with the transaction itself.
CREATE TABLE IF NOT EXISTS streamer.transaction (
    xid bigint PRIMARY KEY,
    origin text NOT NULL,
    commit_time timestamp with time zone NOT NULL,
    applied timestamp with time zone NOT NULL DEFAULT now()
);

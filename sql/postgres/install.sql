-- What streamer keeps in a PostgreSQL database, for servers from 8.4 on. Each statement makes one thing; setup leaves out those whose
-- thing is there.

CREATE SCHEMA streamer;

-- One row an edge that ends here: what this database holds of it. Every transaction that streamer applies writes its row first, so
-- that a reader of this database's WAL knows by the first change where a transaction was made.
CREATE TABLE streamer.progress (
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
    PRIMARY KEY (sync, source, target)
) WITH (fillfactor = 10);

-- The newest commit time, for each other node, that the origin had applied when it made the transaction: {node: time}.
ALTER TABLE streamer.progress ADD COLUMN seen text NOT NULL DEFAULT '{}';

-- And that the source had applied by `position`; empty if the transaction was made there, and the same.
ALTER TABLE streamer.progress ADD COLUMN source_seen text NOT NULL DEFAULT '';

-- The tables of an edge whose rows are here, and from which position on their changes are applied. A row is the first write of the
-- transaction that copies the table, so that tables can be copied side by side: they would wait for each other at the progress row.
-- Position 0/0: the table is copied again and again, or its copy in ranges is not finished.
CREATE TABLE streamer.copy (
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

-- Ranges of tables that are copied so, each committed with its row, the first write of its transaction. `bounds` is a JSON array: the
-- column, whether it is a number, greater than which value, and not greater than which (null: without end).
CREATE TABLE streamer.copied_part (
    sync text NOT NULL,
    source text NOT NULL,
    target text NOT NULL,
    schema_name text NOT NULL,
    table_name text NOT NULL,
    bounds text NOT NULL,
    position text NOT NULL,
    rows bigint,
    origin text NOT NULL,
    origin_position text NOT NULL,
    origin_time timestamp with time zone NOT NULL,
    PRIMARY KEY (sync, source, target, schema_name, table_name, bounds)
);

-- An index or a constraint of a table that setup has made here, until it is made too: when the rows are there of schema_name.table_name,
-- as the source calls the table, and of the other one, to which a foreign key refers. Delete a row to do without what it makes.
CREATE TABLE streamer.post_data (
    number bigserial PRIMARY KEY,
    sync text NOT NULL,
    target text NOT NULL,
    kind text NOT NULL,
    schema_name text NOT NULL,
    table_name text NOT NULL,
    other_schema text,
    other_table text,
    -- the relation that gets it, perhaps a partition, and its name there
    on_schema text NOT NULL,
    on_table text NOT NULL,
    name text NOT NULL,
    what text NOT NULL,
    statement text NOT NULL,
    -- why this database does not take it; empty as long as that is not known
    refused text NOT NULL DEFAULT ''
);

-- What follows is for syncs with several sources.

-- Since when this node takes part in a sync. What was written here before is taken for equal on all nodes: nobody's later change
-- conflicts with it.
CREATE TABLE streamer.member (
    sync text NOT NULL,
    target text NOT NULL,
    joined timestamp with time zone NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (sync, target)
);

-- Where the first rows of an edge's table come from, as `setup` found it without rows here: by a copy, whatever applications write here
-- before that, or, if no source had any, all of them with the stream. Nothing leaves this node before the copies are here.
CREATE TABLE streamer.first_rows (
    sync text NOT NULL,
    source text NOT NULL,
    target text NOT NULL,
    schema_name text NOT NULL,
    table_name text NOT NULL,
    by_copy boolean NOT NULL,
    PRIMARY KEY (sync, source, target, schema_name, table_name)
);

-- A deleted key, or a truncated table; the row's xmin tells when and where that was. The id is the MD5 of the compact JSON array of
-- schema, table and the key's values as text; of schema and table alone for a truncate. Written by triggers on the tables.
CREATE TABLE streamer.tombstone (
    id uuid PRIMARY KEY,
    schema_name text NOT NULL,
    table_name text NOT NULL,
    key text NOT NULL,
    deleted timestamp with time zone NOT NULL DEFAULT now()
);

-- A row of a table with merged columns (delta, max, min) whose other columns were last written by the transaction xid, although
-- the row's own xmin is newer. The id is made as that of a tombstone.
CREATE TABLE streamer.version (
    id uuid PRIMARY KEY,
    xid xid NOT NULL,
    written timestamp with time zone NOT NULL DEFAULT now()
);

-- A row, or a tombstone (buried), that an initial copy brought: as written by the transaction xid here, it has really this version.
-- Nobody maintains it: what is written again has another xmin. The id is made as that of a tombstone.
CREATE TABLE streamer.copied (
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
CREATE TABLE streamer.removal (
    id bigserial PRIMARY KEY,
    schema_name text NOT NULL,
    table_name text NOT NULL,
    -- a JSON object, {column: text}
    key text NOT NULL,
    removed timestamp with time zone NOT NULL DEFAULT now()
);

-- A conflict that was resolved here, or that stopped an edge. See: streamer conflicts.
CREATE TABLE streamer.conflict (
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

-- Where and when a transaction was made that wrote rows here, for servers that cannot keep it with the transaction itself: those that
-- streamer applied, and where triggers have told the times of others until they were purged, these too, with an empty origin.
CREATE TABLE streamer.transaction (
    xid bigint PRIMARY KEY,
    origin text NOT NULL,
    commit_time timestamp with time zone NOT NULL,
    applied timestamp with time zone NOT NULL DEFAULT now()
);

-- A change that an edge could not write here, with the error, or without one if it follows a refused change of the same row: until it
-- is retried or discarded. See: streamer quarantine. Times are told as of the commit that was written together with it.
CREATE TABLE streamer.quarantine (
    id bigserial PRIMARY KEY,
    sync text NOT NULL,
    source text NOT NULL,
    target text NOT NULL,
    schema_name text NOT NULL,
    table_name text NOT NULL,
    kind text NOT NULL,
    -- key and rows are JSON objects, {column: text or null}; a row that is not there is NULL, a column that did not travel is missing
    row_key text NOT NULL,
    -- a digest of edge, table and key, before the change and after it: by these later changes of the row are found
    row_id text NOT NULL,
    next_row_id text NOT NULL,
    -- what it takes to apply it: {identity, net, columns: [[name, type, part of the identity]]}
    relation text NOT NULL,
    old_row text,
    new_row text,
    error text,
    origin text NOT NULL,
    origin_position text NOT NULL,
    origin_time timestamp with time zone NOT NULL,
    quarantined timestamp with time zone NOT NULL,
    UNIQUE (row_id, id),
    UNIQUE (next_row_id, id)
);

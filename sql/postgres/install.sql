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
    PRIMARY KEY (sync, source, target)
) WITH (fillfactor = 10);

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
